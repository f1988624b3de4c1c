"""What goes wrong on real hosts: one clear error each, nothing half done, and the next apply converges."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.applying import Site, answer, command, ours_running_here, provision, site
from tests.lab.fixtures import HostFactory
from tests.lab.mirror import ReleaseMirror
from tests.lab.registry import MODEL, ModelRegistry
from tests.lab.serving import Faults

pytestmark = [pytest.mark.lab, pytest.mark.slow]

LEASE_S = 8
"""How long work on a host outlives its run, at most (playbooks/module_utils/leased_job.py), plus the time to notice."""


@pytest.fixture
def here(lab_host: HostFactory, release_mirror: ReleaseMirror, model_registry: ModelRegistry, tmp_path: Path) -> Site:
    return site(lab_host("faulty"), release_mirror, model_registry, tmp_path)


def test_hosts_that_cannot_be_worked_on(here: Site, tmp_path: Path) -> None:
    host = here.host
    before = host.snapshot()

    def refused(*where: str) -> tuple[int, list[str]]:
        found = provision("apply", here.plan, *where, *here.sources, "--yes")
        assert found.envelope["errors"][0]["hint"]
        assert found.envelope["data"] is None
        return found.exit_code, found.codes

    no_sudo = provision("apply", here.plan, "--host", f"nosudo@{host.name}", *here.where[2:], *here.sources, "--yes")
    assert (no_sudo.exit_code, no_sudo.codes) == (6, ["no-sudo"])
    other_key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other_key], check=True)
    config = host.ssh_config.read_text().replace(str(host.identity_file), str(other_key))
    (tmp_path / "config").write_text(config)
    assert refused("--host", host.name, "--ssh-config", str(tmp_path / "config")) == (5, ["ssh-auth"])
    host.rotate_host_key()
    assert refused(*here.where) == (5, ["host-key-changed"])
    host.trust_host_key()
    host.unplug()
    assert refused(*here.where)[0] == 5
    host.plug_in()
    host.rotate_host_key()
    host.trust_host_key()
    changes = before.diff(host.snapshot(), ignore=["/etc/ssh/ssh_host_*"])
    assert changes == []


def test_mirror_faults(here: Site) -> None:
    before = here.host.snapshot()
    here.mirror.faults = Faults(status=404)
    missing = here.apply()
    assert (missing.exit_code, missing.codes) == (6, ["mirror-not-found"])
    assert "404" in missing.envelope["errors"][0]["message"]

    here.mirror.reset()
    here.mirror.wrong_checksum = True
    wrong = here.apply()
    assert (wrong.exit_code, wrong.codes) == (6, ["checksum-mismatch"])
    assert wrong.envelope["data"]["hosts"][0]["failed_step"] == "Download, verify and unpack the Ollama release"
    assert here.host.run("ls -A /opt/ollama/.download; ls /opt/ollama").stdout.split() == ["unpacked"]

    here.mirror.reset()
    here.mirror.faults = Faults(cut_after_bytes=5_000_000, times=1, only="tar")
    cut = here.apply()
    assert (cut.exit_code, cut.codes) == (6, ["download-interrupted"])
    here.mirror.reset()
    assert here.apply().exit_code == 0
    resumed = [request for request in here.mirror.requests if request.path.endswith(".tar.zst")]
    assert [request.range for request in resumed] == ["bytes=5000000-"]

    assert here.remove().exit_code == 0
    assert before.diff(here.host.snapshot()) == []


def test_registry_cut_in_mid_pull(here: Site) -> None:
    # Ollama itself tries again: the registry has to stay broken until it gives up.
    here.registry.faults = Faults(cut_after_bytes=3_000_000, only="/data/")
    cut = here.apply()
    assert (cut.exit_code, cut.codes) == (6, ["pull-interrupted"])
    assert cut.envelope["data"]["hosts"][0]["failed_step"] == "Pull the models"
    here.registry.reset()
    (outcome,) = here.apply().envelope["data"]["hosts"]
    assert outcome["changes"] == ["Pull the models"]
    assert here.verify("--allow-cpu").exit_code == 0


def test_disk_full_on_the_host(here: Site) -> None:
    here.host.small_disk("/srv/models", 40_000_000)
    full = here.apply("--models-path", "/srv/models")
    assert (full.exit_code, full.codes) == (6, ["disk-full"])
    assert "/srv/models" in full.envelope["errors"][0]["message"]
    assert not (here.host.root / "opt/ollama").exists()

    here.host.small_disk("/opt", 60_000_000)
    full = here.apply()
    assert (full.exit_code, full.codes) == (6, ["disk-full"])
    assert "/opt" in full.envelope["errors"][0]["message"]


def test_disk_that_fills_up_in_mid_pull(here: Site) -> None:
    here.host.small_disk("/srv/models", 150_000_000)
    here.registry.faults = Faults(throttle_bytes_per_s=4_000_000, only="/data/")
    arguments = here.apply_arguments("--yes", "--models-path", "/srv/models")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(f"pulling {MODEL}" in line for line in process.stderr)
    here.host.fill_disk("/srv/models", leave_bytes=1_000_000)
    stdout, stderr = process.communicate(timeout=90)
    full = answer(process.returncode, stdout, stderr)
    assert (full.exit_code, full.codes) == (6, ["disk-full"])
    here.host.free_disk("/srv/models")
    here.registry.reset()
    assert here.apply("--models-path", "/srv/models").exit_code == 0


def test_port_taken_and_foreign_ollama(here: Site) -> None:
    host = here.host
    before = host.snapshot()
    host.run("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 11434")
    time.sleep(1)
    taken = here.apply()
    assert (taken.exit_code, taken.codes) == (6, ["port-taken"])
    assert "python3" in taken.envelope["errors"][0]["message"]
    host.run("systemctl stop squatter")
    unit = "[Service]\nExecStart=/bin/sleep infinity\n"
    host.write("/etc/systemd/system/ollama.service", unit)
    foreign = here.apply()
    assert (foreign.exit_code, foreign.codes) == (6, ["foreign-ollama"])
    host.run("rm /etc/systemd/system/ollama.service; systemctl daemon-reload")
    assert before.diff(host.snapshot()) == []


@pytest.mark.parametrize("phase", ["downloading Ollama", f"pulling {MODEL}"])
def test_interrupted_apply_leaves_nothing_running(here: Site, phase: str) -> None:
    slow = Faults(throttle_bytes_per_s=1_000_000, only="tar|/data/")
    if phase.startswith("pulling"):
        here.registry.faults = slow
    else:
        here.mirror.faults = slow
    running_before = set(here.host.processes())
    process = subprocess.Popen(
        command(*here.apply_arguments("--yes")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if phase in line:
            break
    else:
        pytest.fail("".join(seen))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    interrupted = answer(process.returncode, stdout, stderr)
    assert (interrupted.exit_code, interrupted.codes) == (130, ["interrupted"])
    assert ours_running_here() == []

    deadline = time.monotonic() + LEASE_S + 6
    while time.monotonic() < deadline:
        left = [one for one in set(here.host.processes()) - running_before if "ollama serve" not in one]
        if not left:
            break
        time.sleep(0.5)
    assert left == []

    here.mirror.reset()
    here.registry.reset()
    assert here.apply().exit_code == 0
    (outcome,) = here.apply().envelope["data"]["hosts"]
    assert outcome["status"] == "unchanged"
    assert here.verify("--allow-cpu").exit_code == 0


def test_one_of_two_hosts_fails(
    lab_host: HostFactory, release_mirror: ReleaseMirror, model_registry: ModelRegistry, tmp_path: Path
) -> None:
    good, bad = lab_host("good"), lab_host("bad")
    here = site(good, release_mirror, model_registry, tmp_path)
    config = tmp_path / "config"
    config.write_text(good.ssh_config.read_text() + bad.ssh_config.read_text())
    bad.run("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 11434")
    where = ["--host", "good", "--host", "bad", "--ssh-config", str(config)]
    both = provision("apply", here.plan, *where, *here.sources, "--yes")
    assert (both.exit_code, both.envelope["status"], both.codes) == (6, "partial", ["port-taken"])
    assert {one["host"]: one["status"] for one in both.envelope["data"]["hosts"]} == {
        "good": "changed", "bad": "failed"
    }  # fmt: skip
