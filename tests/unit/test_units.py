import pytest

from provision import units


@pytest.mark.parametrize(
    ("text", "value"),
    [("24GiB", 24 * 2**30), ("24GB", 24 * 10**9), ("24 gib", 24 * 2**30), ("1.5TiB", 1.5 * 2**40), ("4096", 4096)],
)
def test_bytes_are_binary_or_decimal_as_written(text, value):
    assert units.parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("16k", 16384), ("8192", 8192), ("1m", 2**20), ("128K", 131_072)])
def test_tokens_count_in_powers_of_two(text, value):
    assert units.parse_tokens(text) == value


@pytest.mark.parametrize("text", ["", "abc", "24XB", "-3GiB", "1e9", "24 Gi B", "0x10"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="24GiB"):
        units.parse_bytes(text)


def test_formatting_round_trips_within_its_precision():
    assert units.format_bytes(19_851_336_576) == "18.49 GiB"
    assert units.format_bytes(-512 * 2**20) == "-512.00 MiB"
    assert units.format_tokens(16384) == "16k"
    assert units.format_tokens(5000) == "5,000"


def test_unknown_is_said_not_guessed():
    for form in (units.format_bytes, units.format_tokens, units.format_tokens_per_s, units.format_seconds):
        assert form(None) == "unknown"
