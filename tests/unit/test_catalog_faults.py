"""Broken entries of users: one line that names file, entry, key and fix, whatever the mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provision.catalog import files_of, load_catalog
from provision.errors import InvalidFile
from tests.helpers import run_cli

_MODEL = """[[model]]
id = "m"
name = "m"
family = "f"
hidden_size = 64
attention_heads = 4
vocabulary_size = 100
context_tokens_max = 99_999
tied_embeddings = false
provenance = { "*" = "s" }
"""
_BUILD = """
[[build]]
model = "m"
quantization = "Q8_0"
weights_bytes = 1_000_000_000
precision = "exact"
source = "s"
"""
_LAYER = '{ kind = "attention", count = 2, kv_heads = 1, key_dim = 1, value_dim = 1 }'
_SOUND = f"{_MODEL}layers = [{_LAYER}]\n"


def _layer(old: str, new: str) -> str:
    return f"{_MODEL}layers = [{_LAYER.replace(old, new)}]\n"


BROKEN = {
    "no layers": (f"{_MODEL}layers = []\n", "[[model]] 'm': layers: is empty", "add a group to layers"),
    "a word for a number": (
        _layer("value_dim = 1", 'value_dim = "1"'),
        "[[model]] 'm': layers.0.value_dim: input should be a valid integer, not '1'",
        "write layers.0.value_dim as a number without quotes",
    ),
    "a kind that is none": (
        _layer('"attention"', '"atention"'),
        "[[model]] 'm': layers.0.kind: none of attention, latent, state, but 'atention'",
        "write attention",
    ),
    "a key misspelt inside": (
        _layer("count", "counts"),
        "[[model]] 'm': layers.0.counts: unknown key (and 1 more)",
        "write count",
    ),
    "a key that another kind lacks": (
        f'{_MODEL}layers = [{{ kind = "state", count = 2 }}]\n',
        "[[model]] 'm': layers.0.state_bytes_per_sequence: missing",
        "add layers.0.state_bytes_per_sequence",
    ),
    "a number for a list": (
        f"{_MODEL}layers = 7\n",
        "[[model]] 'm': layers: input should be a valid array, not 7",
        "correct layers",
    ),
    "less than nothing": (_layer("count = 2", "count = -2"), "'m': layers.0.count: is -2", "correct layers.0.count"),
    "nothing": (_layer("count = 2", "count = 0"), "'m': layers.0.count: is 0", "correct layers.0.count"),
    "more than can be": (
        _layer("count = 2", "count = 1_000_000_000"),
        "'m': layers: are 1,000,000,000 in all",
        "correct layers.0.count",
    ),
    "a pattern of others": (
        f"{_SOUND}layer_pattern = [0, 3]\n",
        "'m': layer_pattern: names a group",
        "remove layer_pattern",
    ),
    "more experts used than there are": (
        f"{_SOUND}experts = {{ count = 4, used = 9, feed_forward_size = 1 }}\n",
        "'m': experts.used: is 9, of 4",
        "correct experts.used",
    ),
    "a misspelt key of experts": (
        f"{_SOUND}experts = {{ count = 4, usd = 2, feed_forward_size = 1 }}\n",
        "'m': experts.usd: unknown key",
        "write used",
    ),
    "a size of nothing": (
        _SOUND + _BUILD.replace("1_000_000_000", "0"),
        "[[build]] 'm Q8_0': weights_bytes: is 0",
        "correct weights_bytes",
    ),
    "a size beyond all numbers": (
        _SOUND + _BUILD.replace("1_000_000_000", "9" * 30),
        "[[build]] 'm Q8_0': weights_bytes: is 999,999,",
        "correct weights_bytes",
    ),
    "a layout of another model": (
        f"{_SOUND}{_BUILD}layout = {{ embedding_bytes = 1, output_bytes = 1, layer_bytes = [1] }}\n",
        "[[build]] 'm Q8_0': layout.layer_bytes: has 1 entries for the 2 layers of m",
        "remove layout",
    ),
    "a misspelt key of the layout": (
        f"{_SOUND}{_BUILD}layout = {{ embeding_bytes = 1, output_bytes = 1, layer_bytes = [1, 1] }}\n",
        "[[build]] 'm Q8_0': layout.embeding_bytes: unknown key",
        "write embedding_bytes",
    ),
    "brackets without end": ("a = " + "[" * 100_000, "mine.toml: not readable as TOML", "correct "),
    "no text": ("\0" * 100, "mine.toml: not readable as TOML", "correct "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_is_one_line_with_its_fix(case: str, tmp_path: Path) -> None:
    content, message, hint = BROKEN[case]
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(InvalidFile) as raised:
        load_catalog(tmp_path)
    assert message in raised.value.message
    assert "mine.toml" in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(hint)


def test_the_entry_that_the_broken_ones_are_made_of_is_sound(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(_SOUND + _BUILD)
    assert load_catalog(tmp_path).model("m").layer_count == 2


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.touch()
    os.truncate(file, 2**40)
    with pytest.raises(InvalidFile, match="has 1,099,511,627,776 bytes: no file of the catalog"):
        files_of(tmp_path)


def test_check_tells_every_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "provision" / "catalog"
    folder.mkdir(parents=True)
    layout = "layout = { embedding_bytes = 1, output_bytes = 1, layer_bytes = [1] }\n"
    (folder / "mine.toml").write_text(_SOUND + _BUILD + layout)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    run = run_cli("catalog", "check", "--json")
    assert run.code == 3
    assert any("has 1 entries for the 2 layers" in error["message"] for error in run.json["errors"])
