"""The lab itself: what other tests stand on has to be real, to clean up, and to tell changes from none."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.lab import requirements
from tests.lab.clean import BASE, remove_leftovers
from tests.lab.fixtures import HostFactory
from tests.lab.host import LabHost
from tests.lab.mirror import ReleaseMirror
from tests.lab.nvml import install_nvml_standin, standin_env
from tests.lab.ollama_release import ARCHIVE_NAME, CHECKSUM_NAME, OLLAMA_VERSION, OllamaRelease
from tests.lab.ollama_release import ollama_release as build_release
from tests.lab.registry import MODEL, ModelRegistry
from tests.lab.serving import Faults

pytestmark = pytest.mark.lab

QUERY = ["--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]


@pytest.fixture(scope="module")
def host(module_lab_host: HostFactory) -> LabHost:
    """One host that several tests look at and leave as it was."""
    return module_lab_host("ws1")


@pytest.fixture(scope="module")
def ollama_host(module_lab_host: HostFactory, ollama_release: OllamaRelease) -> LabHost:
    """A host with two GPUs of the stand-in on which the release, unpacked by hand, serves."""
    host = module_lab_host("ollama1", nvml="2x-rtx-4090")
    with ReleaseMirror([ollama_release]) as mirror:
        base = f"{mirror.url(host.controller_address)}/v{ollama_release.version}"
        host.run(
            f"cd /root && curl -sSfO {base}/{ARCHIVE_NAME} && curl -sSfO {base}/{CHECKSUM_NAME}"
            f" && sha256sum --quiet -c {CHECKSUM_NAME}"
            f" && mkdir /opt/ollama && tar -C /opt/ollama --zstd -xf {ARCHIVE_NAME}"
            " && ln -s /opt/ollama/bin/ollama /usr/local/bin/ollama"
            " && systemd-run --quiet --unit=ollama --setenv=HOME=/root --setenv=OLLAMA_CONTEXT_LENGTH=1024"
            " /usr/local/bin/ollama serve"
        )
    host.run("for i in $(seq 100); do curl -sf localhost:11434/api/version && exit 0; sleep 0.1; done; exit 1")
    return host


def api(host: LabHost, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the host's Ollama from the host itself; the last line of a stream is the answer."""
    data = [] if body is None else ["--data", json.dumps(body)]
    answer = host.run(["curl", "--silent", "--show-error", f"http://127.0.0.1:11434{path}", *data]).stdout
    return json.loads(answer.strip().splitlines()[-1])


def get(url: str, **headers: str) -> bytes:
    """GET over loopback, past any proxy of this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as response:
        content = response.read()
    assert isinstance(content, bytes)
    return content


class TestHost:
    def test_boots_completely_and_answers_over_ssh(self, host: LabHost) -> None:
        assert host.run("systemctl is-system-running").stdout.strip() == "running"
        assert host.run("hostname").stdout.strip() == "ws1"
        assert host.run(["cat"], input="a line\n").stdout == "a line\n"

    def test_users_have_the_rights_their_names_say(self, host: LabHost) -> None:
        assert host.run("sudo -n id -u", user="deploy").stdout.strip() == "0"
        refused = host.run("sudo -n true", user="nosudo", check=False)
        assert refused.returncode != 0
        assert "password is required" in refused.stderr

    def test_ssh_config_is_all_that_a_client_needs(self, host: LabHost) -> None:
        done = subprocess.run(
            ["ssh", "-F", host.ssh_config, "ws1", "whoami"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "deploy"

    def test_failure_tells_what_the_command_printed(self, host: LabHost) -> None:
        with pytest.raises(RuntimeError, match="no such thing"):
            host.run("echo no such thing >&2; exit 3")

    def test_two_hosts_are_two_machines(self, host: LabHost, lab_host: HostFactory) -> None:
        other = lab_host("ws2")
        host.run("systemd-run --quiet --unit=only-here sleep 100")
        assert any("sleep 100" in line for line in host.processes())
        assert not any("sleep 100" in line for line in other.processes())
        assert other.run("systemctl is-active only-here", check=False).returncode != 0
        host.run("systemctl stop only-here")
        assert other.address != host.address

    def test_host_reaches_the_controller_and_nothing_else(self, host: LabHost) -> None:
        assert "default" not in host.run("ip route").stdout
        assert host.run("getent hosts blobs.lab").stdout.split()[0] == host.controller_address


class TestSnapshot:
    def test_of_an_untouched_host_finds_nothing(self, host: LabHost) -> None:
        before = host.snapshot()
        host.run("true", user="deploy")
        assert before.diff(host.snapshot()) == []

    def test_sees_every_kind_of_change_and_its_removal(self, host: LabHost) -> None:
        before = host.snapshot()
        host.run(
            "set -e; echo 1 > /etc/new; echo '# more' >> /etc/hosts; chmod 600 /etc/issue; useradd --system lab-user;"
            " printf '[Service]\\nExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 8123\\n"
            "[Install]\\nWantedBy=multi-user.target\\n' > /etc/systemd/system/lab-unit.service;"
            " systemctl daemon-reload; systemctl enable --quiet --now lab-unit;"
            " for i in $(seq 50); do ss -Hltn | grep -q 8123 && break; sleep 0.1; done"
        )
        lines = before.diff(host.snapshot())
        assert any(line.startswith("file added: /etc/new (file 0644 root:root 2 bytes") for line in lines)
        assert any(line.startswith("file changed: /etc/hosts ") for line in lines)
        assert any(line.startswith("file changed: /etc/issue (file 0644") and "-> file 0600" in line for line in lines)
        assert any(line.startswith("user added: lab-user ") for line in lines)
        assert any(line.startswith("group added: lab-user ") for line in lines)
        assert "unit added: lab-unit.service (enabled loaded active)" in lines
        assert "port added: tcp 127.0.0.1:8123 (python3)" in lines
        assert not before.diff(host.snapshot(), ignore=["*lab-*", "/etc/*", "tcp *"])
        host.run(
            "systemctl disable --quiet --now lab-unit; rm /etc/systemd/system/lab-unit.service /etc/new;"
            " systemctl daemon-reload; userdel lab-user; sed -i '$d' /etc/hosts; chmod 644 /etc/issue"
        )
        assert before.diff(host.snapshot()) == []


class TestFaults:
    def test_killed_host_is_gone_and_comes_back_with_its_files(self, lab_host: HostFactory) -> None:
        host = lab_host("victim")
        host.run("echo kept > /root/file; sync")
        host.kill()
        assert host.run("true", check=False, timeout_s=30).returncode == 255
        host.boot()
        assert host.run("cat /root/file").stdout == "kept\n"
        host.power_off()
        host.boot()
        assert host.run("systemctl is-system-running").stdout.strip() == "running"

    def test_changed_host_key_is_refused(self, lab_host: HostFactory) -> None:
        host = lab_host("reinstalled")
        host.rotate_host_key()
        refused = host.run("true", check=False)
        assert refused.returncode == 255
        assert "HOST IDENTIFICATION HAS CHANGED" in refused.stderr
        host.trust_host_key()
        host.run("true")

    def test_unplugged_host_cannot_be_reached(self, host: LabHost) -> None:
        host.unplug()
        try:
            ssh = ["ssh", "-F", str(host.ssh_config), "-o", "ConnectTimeout=1", "ws1", "true"]
            assert subprocess.run(ssh, capture_output=True, check=False).returncode == 255
        finally:
            host.plug_in()
        host.run("true")

    @pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
    def test_small_disk_gets_full(self, host: LabHost, kind: Any) -> None:
        path = f"/srv/{kind}"
        host.small_disk(path, 32 << 20, kind)
        host.fill_disk(path, leave_bytes=1 << 20)
        full = host.run(f"dd if=/dev/zero of={path}/file bs=1M count=3", check=False)
        assert full.returncode != 0
        assert "No space left" in full.stderr
        host.free_disk(path)
        host.run(f"dd if=/dev/zero of={path}/file bs=1M count=3")
        host.run(f"umount {path} && rmdir {path}")

    def test_this_machines_disk_is_not_filled(self, host: LabHost) -> None:
        with pytest.raises(ValueError, match="own disk"):
            host.fill_disk("/etc")

    def test_killed_test_run_leaves_nothing_after_cleaning(self, host: LabHost) -> None:
        script = (
            "import os, signal\nfrom tests.lab.host import LabHost\n"
            "host = LabHost('orphan').__enter__()\nhost.small_disk('/srv/x', 16 << 20, 'ext4')\n"
            "print(host.lab_id, host.link.interface, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        lab_id, interface = killed.stdout.split()
        assert (BASE / lab_id / "root" / "etc").is_dir()
        removed = remove_leftovers()
        assert lab_id in removed
        assert host.lab_id not in removed
        assert not (BASE / lab_id).exists()
        assert lab_id not in Path("/proc/self/mountinfo").read_text()
        assert lab_id not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert not (Path("/sys/class/net") / interface).exists()
        assert lab_id not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
        host.run("true")


class TestOllama:
    def test_release_runs_on_the_host(self, ollama_host: LabHost) -> None:
        assert api(ollama_host, "/api/version") == {"version": OLLAMA_VERSION}
        assert ollama_host.snapshot().ports["tcp 127.0.0.1:11434"] == "ollama"

    def test_pulls_over_the_link_and_generates_on_the_cpu(
        self, ollama_host: LabHost, model_registry: ModelRegistry
    ) -> None:
        model = model_registry.reference(ollama_host.controller_address)
        assert api(ollama_host, "/api/pull", {"model": model, "insecure": True}) == {"status": "success"}
        statuses = {request.status for request in model_registry.requests}
        assert statuses >= {200, 206, 307}
        (tag,) = api(ollama_host, "/api/tags")["models"]
        assert tag["details"]["quantization_level"] == "Q4_1"
        options = {"num_predict": 24, "temperature": 0}
        prompt = "What is the capital of France?"
        body = {"model": model, "prompt": prompt, "stream": False, "options": options}
        answer = api(ollama_host, "/api/generate", body)
        assert "Paris" in answer["response"]
        assert 1 < answer["eval_count"] <= 24
        assert answer["eval_duration"] > 0
        assert answer["prompt_eval_count"] > 10
        (running,) = api(ollama_host, "/api/ps")["models"]
        assert running["size_vram"] == 0 < running["size"]
        assert any("runner" in line and "--ctx-size 1024 " in line for line in ollama_host.processes())

    def test_cut_pull_resumes_where_it_stopped(self, ollama_host: LabHost, model_registry: ModelRegistry) -> None:
        model = model_registry.reference(ollama_host.controller_address)
        for known in api(ollama_host, "/api/tags")["models"]:
            ollama_host.run(["ollama", "rm", known["name"]])
        model_registry.faults = Faults(cut_after_bytes=20 << 20, times=1, only="/data/")
        answer = api(ollama_host, "/api/pull", {"model": model, "insecure": True})
        assert answer == {"status": "success"}
        transfers = [request for request in model_registry.requests if request.sent_bytes > 1 << 20]
        assert transfers[0].sent_bytes == 20 << 20
        assert not (transfers[1].range or "").startswith("bytes=0-")

    def test_corrupt_blob_is_refused(self, ollama_host: LabHost, model_registry: ModelRegistry) -> None:
        for known in api(ollama_host, "/api/tags")["models"]:
            ollama_host.run(["ollama", "rm", known["name"]])
        model = model_registry.reference(ollama_host.controller_address)
        model_registry.faults = Faults(corrupt=True, only="/data/")
        answer = api(ollama_host, "/api/pull", {"model": model, "insecure": True})
        assert "digest mismatch" in answer["error"]

    def test_unknown_model_is_refused(self, ollama_host: LabHost, model_registry: ModelRegistry) -> None:
        model = model_registry.reference(ollama_host.controller_address, "no-such-model:latest")
        answer = api(ollama_host, "/api/pull", {"model": model, "insecure": True})
        assert "does not exist" in answer["error"]

    def test_same_server_under_another_version(self) -> None:
        other = build_release("0.5.5-ipexllm-20260101")
        told = subprocess.run([other.program, "--version"], capture_output=True, text=True, check=True)
        assert "0.5.5-ipexllm-20260101" in told.stdout + told.stderr
        with pytest.raises(ValueError, match="22 characters"):
            build_release("0.32")


class TestMirror:
    def test_serves_a_release_with_its_checksum(
        self, release_mirror: ReleaseMirror, ollama_release: OllamaRelease
    ) -> None:
        base = f"{release_mirror.url()}/v{OLLAMA_VERSION}"
        archive = get(f"{base}/{ARCHIVE_NAME}")
        assert get(f"{base}/{CHECKSUM_NAME}").decode() == f"{ollama_release.sha256}  ./{ARCHIVE_NAME}\n"
        assert hashlib.sha256(archive).hexdigest() == ollama_release.sha256
        assert get(f"{base}/{ARCHIVE_NAME}", Range="bytes=10-19") == archive[10:20]
        assert release_mirror.requests[0].sent_bytes == len(archive)

    def test_faults_strike_as_asked_and_reset_ends_them(self, release_mirror: ReleaseMirror) -> None:
        base = f"{release_mirror.url()}/v{OLLAMA_VERSION}"
        with pytest.raises(urllib.error.HTTPError) as unknown:
            get(f"{release_mirror.url()}/v9.9.9/{ARCHIVE_NAME}")
        assert unknown.value.code == 404
        unknown.value.close()
        release_mirror.faults = Faults(status=503, times=1)
        with pytest.raises(urllib.error.HTTPError) as down:
            get(f"{base}/{CHECKSUM_NAME}")
        assert down.value.code == 503
        down.value.close()
        true_line = get(f"{base}/{CHECKSUM_NAME}")
        release_mirror.wrong_checksum = True
        assert get(f"{base}/{CHECKSUM_NAME}") != true_line
        release_mirror.faults = Faults(throttle_bytes_per_s=100_000)
        began = time.monotonic()
        get(f"{base}/{ARCHIVE_NAME}", Range="bytes=0-49999")
        assert time.monotonic() - began > 0.4
        release_mirror.reset()
        assert get(f"{base}/{CHECKSUM_NAME}") == true_line


class TestNvmlStandin:
    def test_host_has_two_cards(self, ollama_host: LabHost) -> None:
        lines = ollama_host.run(["nvidia-smi", *QUERY]).stdout.splitlines()
        assert lines == ["0, NVIDIA GeForce RTX 4090, 24564", "1, NVIDIA GeForce RTX 4090, 24564"]
        assert ollama_host.run("nvidia-smi -L", user="deploy").stdout.count("GPU-") == 2
        assert "Kernel Module  570.133.07 " in ollama_host.run("cat /proc/driver/nvidia/version", user="deploy").stdout

    def test_binding_sees_two_cards(self) -> None:
        script = (
            "import pynvml as n\nn.nvmlInit()\n"
            "cards = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]\n"
            "print([n.nvmlDeviceGetMemoryInfo(card, n.nvmlMemory_v2).total >> 20 for card in cards])\n"
        )
        done = self._python(script, "2x-rtx-4090")
        assert done.stdout.strip() == "[24564, 24564]", done.stderr

    def test_what_a_card_lacks_is_not_supported(self) -> None:
        script = "import pynvml as n\nn.nvmlInit()\nn.nvmlDeviceGetMemoryInfo(n.nvmlDeviceGetHandleByIndex(0))\n"
        assert "NVMLError_NotSupported" in self._python(script, "gb10").stderr
        assert self._nvidia_smi("gb10", *QUERY).stdout == "0, NVIDIA GB10, [N/A]\n"

    def test_driver_mismatch_fails_in_both(self) -> None:
        assert (
            "NVMLError_LibRmVersionMismatch"
            in self._python("import pynvml\npynvml.nvmlInit()", "driver-mismatch").stderr
        )
        plain = self._nvidia_smi("driver-mismatch")
        assert plain.returncode == 18
        assert plain.stdout.startswith("Failed to initialize NVML: Driver/library version mismatch\n")

    def test_ecc_takes_its_share(self) -> None:
        ecc = "--query-gpu=memory.total,ecc.mode.current"
        assert self._nvidia_smi("rtx-a6000", ecc, "--format=csv,noheader").stdout == "49140 MiB, Disabled\n"
        assert self._nvidia_smi("rtx-a6000-ecc", ecc, "--format=csv,noheader").stdout == "46068 MiB, Enabled\n"

    def test_multi_instance_parts_are_listed(self) -> None:
        assert self._nvidia_smi("mig", "-L").stdout.count("MIG 3g.40gb") == 2

    def test_unknown_field_and_profile_are_refused(self, tmp_path: Path) -> None:
        wrong = self._nvidia_smi("2x-rtx-4090", "--query-gpu=colour", "--format=csv")
        assert (wrong.returncode, wrong.stdout) == (2, 'Field "colour" is not a valid field to query.\n\n')
        with pytest.raises(ValueError, match="no NVML profile"):
            install_nvml_standin(tmp_path, "rtx-9999")

    @staticmethod
    def _python(script: str, profile: str) -> subprocess.CompletedProcess[str]:
        if reason := requirements.missing_build_tools():
            pytest.skip(reason)
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=standin_env(profile), capture_output=True, text=True, check=False)

    @staticmethod
    def _nvidia_smi(profile: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        if reason := requirements.missing_build_tools():
            pytest.skip(reason)
        environment = standin_env(profile)
        return subprocess.run(["nvidia-smi", *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_model_is_what_the_registry_says(model_registry: ModelRegistry) -> None:
    name, _, tag = MODEL.partition(":")
    manifest = json.loads(get(f"{model_registry.url()}/v2/library/{name}/manifests/{tag}"))
    kinds = {layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]}
    assert kinds == {"model", "template", "params"}
    for layer in manifest["layers"][1:]:
        content = get(f"{model_registry.url()}/v2/library/{name}/blobs/{layer['digest']}")
        assert layer["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
