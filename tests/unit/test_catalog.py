"""Reading the catalog: names, the user's own entries, what broken entries say, and the cache."""

import os
import pickle
import subprocess
import sys
from datetime import date

import pytest

from provision.catalog import load_catalog
from provision.catalog_rules import check_catalog
from provision.domain.hardware import Accelerator, Machine, MemoryPool, Origin
from provision.errors import InvalidFile, UsageError
from provision.probes.match import with_catalog
from provision.resources import cache_dir

SOURCE = '[[source]]\nid = "s"\ntitle = "a sheet"\nkind = "vendor_spec"\nchecked_on = 2026-11-24\n'
BUILD = """\
[[build]]
model = "{model}"
quantization = "{quantization}"
weights_bytes = 1
precision = "exact"
source = "s"
"""
CARD = """\
[[accelerator]]
id = "{id}"
name = "{name}"
vendor = "nvidia"
device_class = "nvidia-gddr"
memory_kind = "dedicated"
memory_bytes = {memory}
aliases = ["{alias}"]
provenance = {{ "*" = "s" }}
"""


@pytest.fixture(autouse=True)
def _folders_of_the_test(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "shared-cache"))


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "data" / "provision" / "catalog"
    folder.mkdir(parents=True)
    return folder


def card(id="my-card", name="My Card", alias="mine", memory="1_073_741_824"):
    return CARD.format(id=id, name=name, alias=alias, memory=memory)


@pytest.mark.parametrize(
    "name",
    ["RTX 4090", "rtx4090", "4090", "NVIDIA GeForce RTX 4090", "GeForce RTX 4090", " rtx-4090 ", "nvidia-rtx-4090"],
)
def test_card_by_any_of_its_names(name):
    assert load_catalog().accelerator(name).id == "nvidia-rtx-4090"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RTX 4090 D", "nvidia-rtx-4090-d"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "nvidia-rtx-4090-laptop"),
        ("RTX 4070 Ti SUPER", "nvidia-rtx-4070-ti-super"),
        ("RTX 4070 Ti", "nvidia-rtx-4070-ti"),
        ("A6000", "nvidia-rtx-a6000"),
        ("NVIDIA GB10", "nvidia-gb10"),
        ("Intel(R) Arc(TM) A770 Graphics", "intel-arc-a770"),
        ("AMD Radeon RX 7900 XTX", "amd-rx-7900-xtx"),
        ("RTX 4060 Ti 16 GiB", "nvidia-rtx-4060-ti-16gb"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm-80"),
    ],
)
def test_names_are_compared_whole(name, expected):
    assert load_catalog().accelerator(name).id == expected


def test_a_name_of_two_sizes_asks_which():
    with pytest.raises(UsageError) as raised:
        load_catalog().accelerator("NVIDIA GeForce RTX 4060 Ti")
    assert raised.value.code == "ambiguous-gpu"
    assert raised.value.hint == 'which one: "RTX 4060 Ti 16GB" or "RTX 4060 Ti 8GB"'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RTX 3060", "nvidia-rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 3060", "nvidia-rtx-3060-12gb"),
        ("RTX 3060 8GB", "nvidia-rtx-3060-8gb"),
        ("RTX 3080", "nvidia-rtx-3080-10gb"),
        ("RTX 3080 12 GB", "nvidia-rtx-3080-12gb"),
        ("RTX 4000 Ada", "nvidia-rtx-4000-ada"),
        ("Quadro RTX 4000", "nvidia-quadro-rtx-4000"),
        ("RTX 6000 Ada", "nvidia-rtx-6000-ada"),
        ("Quadro RTX 6000", "nvidia-quadro-rtx-6000"),
        ("RTX PRO 6000", "nvidia-rtx-pro-6000-blackwell"),
        ("RTX A6000", "nvidia-rtx-a6000"),
        ("H100 NVL", "nvidia-h100-nvl"),
        ("H100 PCIe", "nvidia-h100-pcie-80"),
        ("RTX 2000 Ada Laptop", "nvidia-rtx-2000-ada-laptop"),
        ("RTX 5090 D", "nvidia-rtx-5090-d"),
    ],
)
def test_names_that_others_mix_up(name, expected):
    assert load_catalog().accelerator(name).id == expected


@pytest.mark.parametrize(
    ("memory_gib", "expected"), [(8, "nvidia-rtx-3060-8gb"), (12, "nvidia-rtx-3060-12gb"), (24, None)]
)
def test_of_cards_that_report_one_name_the_size_tells_which(memory_gib, expected):
    card = Accelerator(
        index=0,
        vendor="nvidia",
        name="NVIDIA GeForce RTX 3060",
        memory=MemoryPool(total_bytes=memory_gib * 2**30 - 50 * 2**20),
    )
    machine = Machine(name="box", origin=Origin.DETECTED, memory=MemoryPool(total_bytes=None), accelerators=(card,))
    assert with_catalog(machine, load_catalog()).accelerators[0].catalog_id == expected


@pytest.mark.parametrize("name", ["RTX 409", "4090 D Laptop", "RTX", "", "nvidia"])
def test_part_of_a_name_finds_nothing(name):
    with pytest.raises(UsageError) as raised:
        load_catalog().accelerator(name)
    assert raised.value.code == "unknown-gpu"


def test_unknown_names_are_answered_with_the_nearest():
    catalog = load_catalog()
    with pytest.raises(UsageError) as gpu:
        catalog.accelerator("RTX 4099")
    assert '"RTX 4090"' in str(gpu.value.hint)
    with pytest.raises(UsageError) as model:
        catalog.model("lama3.1:8b")
    assert (model.value.code, "llama3.1:8b" in str(model.value.hint)) == ("unknown-model", True)
    with pytest.raises(UsageError) as build:
        catalog.build("gpt-oss:20b", "q4_k_m")
    assert (build.value.code, build.value.hint) == ("unknown-build", "use one of MXFP4")
    with pytest.raises(UsageError, match="no tier 'team'") as tier:
        catalog.tier("team")
    assert "team-server" in str(tier.value.hint)


@pytest.mark.parametrize(
    "name",
    ["llama3.1:8b", "Llama3.1:8B", "llama3.1", "llama3.1:latest", "Llama-3.1-8B-Instruct", "llama3.1:8b-instruct-q8_0"],
)
def test_model_by_any_of_its_names(name):
    assert load_catalog().model(name).id == "llama3.1:8b"


def test_other_lookups():
    catalog = load_catalog()
    assert catalog.quantization("q4_k_m").id == "Q4_K_M"
    assert catalog.engine("Ollama").version == "0.32.15"
    assert catalog.platform("DDR5-5600") is catalog.platform("ddr5-5600-2ch")
    assert catalog.build("LLAMA3.1", "f16").weights_bytes == 16_061_054_976
    assert catalog.builds_of("no-such-model") == ()
    assert catalog.source(catalog.builds[0].source).checked_on <= date(2026, 11, 24)


def test_own_entries_are_added_and_replace_ours(mine):
    own = card("nvidia-rtx-4090", "NVIDIA GeForce RTX 4090", "RTX 4090", "51_539_607_552")
    (mine / "cards.toml").write_text(SOURCE + own + card())
    catalog = load_catalog()
    assert catalog.accelerator("RTX 4090").memory_bytes == 48 * 2**30
    assert catalog.accelerator("my card").id == "my-card"


BROKEN = {
    "quoted-number": (
        card(memory='"24"'),
        "cards.toml: [[accelerator]] 'my-card': memory_bytes: input should be a valid integer, not '24'",
        "write memory_bytes as a number without quotes",
    ),
    "unknown-key": (
        card().replace("vendor", "vendr"),
        "[[accelerator]] 'my-card': vendr: unknown key",
        "write vendor",
    ),
    "missing-key": (
        card().replace('device_class = "nvidia-gddr"\n', ""),
        "[[accelerator]] 'my-card': device_class: missing",
        "add device_class",
    ),
    "wrong-choice": (
        card().replace('"dedicated"', '"shared"'),
        "[[accelerator]] 'my-card': memory_kind: input should be 'dedicated' or 'unified', not 'shared'",
        "correct memory_kind",
    ),
    "unknown-table": ("[[gpu]]\nid = 1\n", "cards.toml: 'gpu' is not a table of this file", "use [[accelerator]]"),
    "no-tables": (
        'accelerator = [1, "a"]\n',
        "[[accelerator]] 'number 1': input should be an object, not 1",
        "write it as a table, [[accelerator]]",
    ),
    "not-toml": ("[[accelerator]\n", "cards.toml: not readable as TOML", "correct "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_entry_is_one_line_with_file_entry_key_and_fix(mine, case):
    text, message, hint = BROKEN[case]
    (mine / "cards.toml").write_text(text)
    with pytest.raises(InvalidFile) as raised:
        load_catalog()
    assert message in raised.value.message
    assert "\n" not in raised.value.message
    assert str(raised.value.hint).startswith(hint)
    assert check_catalog().errors


def _folder(path):
    path.mkdir()


def _dangling_link(path):
    path.symlink_to("nothing")


def _pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_folder, _dangling_link, _pipe])
def test_what_is_called_toml_and_cannot_be_read_is_one_line(mine, make):
    make(mine / "a.toml")
    with pytest.raises(InvalidFile) as raised:
        load_catalog()
    assert str(mine / "a.toml") in raised.value.message
    assert raised.value.hint


UNSOUND = [
    (card().replace('{ "*" = "s" }', "{ }"), "'my-card': memory_bytes has no source"),
    (card().replace('"*" = "s"', '"*" = "t"'), "there is no source 't'"),
    (card().replace('"*" = "s"', '"*" = "s", colour = "s"'), "provenance.colour is of no key here"),
    (card("b", "B", "b") + card("a", "A", "a"), "[[accelerator]] 'a' is out of order"),
    (card() + card(), "'my-card' is there twice"),
    (card(alias="RTX 4090"), "the name 'rtx4090' also means"),
    (
        BUILD.format(model="no:1b", quantization="Q4_K_M"),
        "there is no model 'no:1b'",
    ),
    (
        BUILD.format(model="llama3.1:8b", quantization="Q4_K_X"),
        "there is no quantization 'Q4_K_X'",
    ),
    ("", "[[source]] 's' is used by nothing"),
]


@pytest.mark.parametrize(("text", "message"), UNSOUND)
def test_rules_of_check(mine, text, message):
    (mine / "own.toml").write_text(SOURCE + text)
    messages = [finding.message for finding in check_catalog().errors]
    assert any(message in text for text in messages), messages
    assert all(finding.hint for finding in check_catalog().errors)


def test_order_says_what_to_move_where(mine):
    (mine / "own.toml").write_text(SOURCE + card("b", "B", "b") + card("a", "A", "a"))
    (finding,) = check_catalog().errors
    assert finding.hint == "move it before [[accelerator]] 'b'"


# The cache


def pickles():
    return list(cache_dir().glob("catalog-*.pickle"))


@pytest.mark.usefixtures("own_cache")
def test_second_load_imports_neither_pydantic_nor_tomllib():
    load_catalog()
    code = "import sys, provision.catalog as c; c.load_catalog(); print({'pydantic', 'tomllib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "set()"


@pytest.mark.usefixtures("own_cache")
def test_change_of_a_file_is_seen_and_the_old_cache_goes(mine):
    (mine / "own.toml").write_text(SOURCE + card())
    first = load_catalog()
    (mine / "own.toml").write_text(SOURCE + card(memory="2_147_483_648"))
    second = load_catalog()
    assert second.accelerator("mine").memory_bytes == 2**31
    assert first.revision != second.revision
    assert len(pickles()) == 1
    assert cache_dir().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"not a pickle", b"\x80\x05K*.", None])
@pytest.mark.usefixtures("own_cache")
def test_corrupt_cache_is_made_again(damage):
    expected = load_catalog()
    (path,) = pickles()
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert load_catalog().revision == expected.revision
    assert pickle.loads(pickles()[0].read_bytes()).revision == expected.revision


class _Trap:
    def __reduce__(self):
        return (os._exit, (99,))


@pytest.mark.usefixtures("own_cache")
def test_cache_that_others_can_write_is_not_trusted():
    load_catalog()
    (path,) = pickles()
    path.write_bytes(pickle.dumps(_Trap()))
    path.chmod(0o666)
    assert load_catalog().accelerator("RTX 4090")


def test_unwritable_cache_costs_only_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_catalog().model("llama3.1:8b")
