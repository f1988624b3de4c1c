"""What a machine is made of. One shell script reads, here or over SSH; pure functions understand what it printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from provision.domain.hardware import DEFAULT_MODEL_PATH, DEFAULT_TIMEOUT_S, Machine, Origin, RunningEngine
from provision.domain.record import record
from provision.errors import Unreachable
from provision.probes import engines, host, nvidia
from provision.probes.ssh import SshTarget, run_script

_HOSTS_AT_ONCE = 16
_MARK = "@@provision "
_SCRIPT = Path(__file__).with_name("probe.sh")
"""POSIX shell; prints the sections."""


@record
class HostFailure:
    """A host that could not be read, and why."""

    host: str
    code: str
    message: str
    hint: str | None = None


def detect_local(model_path: str = DEFAULT_MODEL_PATH, timeout_s: float = DEFAULT_TIMEOUT_S) -> Machine:
    """This machine: NVML and psutil, and the probe script for the rest. Raises Unreachable if the script cannot run."""
    import subprocess

    try:
        with _SCRIPT.open("rb") as script:
            running = subprocess.Popen(
                ["sh", "-s", "--", model_path], stdin=script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
    except OSError as error:
        raise Unreachable(f"cannot run sh: {error.strerror}", hint="command -v sh", code="no-shell") from error
    with running:
        try:
            # The libraries load and look while the script runs.
            reading = nvidia.read_nvml()
            figures = host.read_host(model_path)
            printed, _ = running.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            running.kill()
            raise Unreachable(
                f"this machine's tools did not answer within {timeout_s:g} s",
                hint="provision detect --timeout 120",
                code="timeout",
            ) from None
        except BaseException:
            running.kill()
            raise
    sections = parse_sections(printed.decode(errors="replace"), "this machine")
    report = nvidia.parse_nvml(reading, sections.get("nvidia-driver", "")) if reading else _smi_report(sections)
    return machine_of(sections, model_path, name="this machine", cards=report, figures=figures)


def detect_remote(
    targets: Sequence[SshTarget], model_path: str = DEFAULT_MODEL_PATH, timeout_s: float = DEFAULT_TIMEOUT_S
) -> tuple[Machine | HostFailure, ...]:
    """Each host over SSH, many at once, in the order given; a host that fails does not hold up the others."""
    from concurrent.futures import ThreadPoolExecutor

    script = _SCRIPT.read_text(encoding="utf-8")

    def look(target: SshTarget) -> Machine | HostFailure:
        try:
            if target.local:
                return detect_local(model_path, timeout_s)
            text = run_script(target, script, model_path, timeout_s)
            return machine_of(parse_sections(text, target.name), model_path, name=target.host)
        except Unreachable as error:
            return HostFailure(host=target.name, code=error.code, message=error.message, hint=error.hint)

    with ThreadPoolExecutor(max_workers=max(1, min(len(targets), _HOSTS_AT_ONCE))) as pool:
        return tuple(pool.map(look, targets))


def parse_sections(text: str, name: str) -> dict[str, str]:
    """Section name to its text. What a login shell printed before the first section is left out.

    Raises Unreachable (`unreadable`) when the last section is missing: the probe was cut off.
    """
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(_MARK):
            lines = sections.setdefault(line.removeprefix(_MARK).strip(), [])
        else:
            lines.append(line)
    if "end" not in sections:
        raise Unreachable(
            f"{name}: the probe's output is cut off", hint="provision detect --timeout 120", code="unreadable"
        )
    return {key: "\n".join(value).strip("\n") for key, value in sections.items()}


def machine_of(
    sections: Mapping[str, str],
    model_path: str,
    *,
    name: str,
    cards: nvidia.NvidiaReport | None = None,
    figures: host.HostFigures | None = None,
) -> Machine:
    """The machine that the sections describe; `cards` and `figures` are better readings of parts of it, if any.

    `name` counts only where the host does not tell its own.
    """

    def section(key: str) -> str:
        return sections.get(key, "")

    uname = host.parse_uname(section("uname"))
    cpu = host.parse_cpu(section("cpuinfo"), section("lscpu"), section("cores"), section("online"), uname.architecture)
    if cpu and figures:
        cpu = replace(
            cpu,
            physical_cores=figures.physical_cores or cpu.physical_cores,
            logical_cores=figures.logical_cores or cpu.logical_cores,
        )
    memory, limits = host.limited_memory(
        figures.memory if figures else host.parse_memory(section("meminfo")), section("cgroup-memory")
    )
    cards = cards or _smi_report(sections)
    return Machine(
        name=uname.name or name,
        origin=Origin.DETECTED,
        cpu=cpu,
        memory=memory,
        accelerators=cards.accelerators,
        disks=(figures.disk if figures else host.parse_disk(section("disk"), model_path),),
        operating_system=host.parse_operating_system(section("os-release"), uname),
        engines=_engines(sections),
        findings=(
            *cards.findings,
            *nvidia.without_driver(section("nvidia-pci"), cards),
            *limits,
            *host.parse_systemd(section("systemd")),
        ),
    )


def _smi_report(sections: Mapping[str, str]) -> nvidia.NvidiaReport:
    return nvidia.parse_nvidia_smi(
        sections.get("nvidia-smi", ""), sections.get("nvidia-smi-summary", ""), sections.get("nvidia-driver", "")
    )


def _engines(sections: Mapping[str, str]) -> tuple[RunningEngine, ...]:
    def section(key: str) -> str:
        return sections.get(key, "")

    found = [engines.parse_ollama(section("ollama-version"), section("ollama-tags"))]
    for port in engines.OPENAI_PORTS:
        models, version, props = (section(f"openai-{port}-{what}") for what in ("models", "version", "props"))
        found.append(engines.parse_openai(port, models, version, props))
    return tuple(one for one in found if one)
