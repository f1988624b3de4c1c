"""Carries plans out on hosts, checks what runs there, and takes it off again."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from provision.ansible import AnsibleHost, HostResult, PlayEvent, run_playbook
from provision.domain.finding import Finding
from provision.domain.plan import Candidate, Plan
from provision.domain.record import record
from provision.engines.ollama_role import OllamaOptions, endpoint, model_name, planned_models, role_vars
from provision.errors import Interrupted

_APPLY_AGAIN = "the same command again: what is done stays, the rest goes on where it stopped"


@record
class DeployProgress:
    """Something that is under way on a host. Bytes are None where the step has no amount."""

    host: str
    step: str
    done_bytes: int | None = None
    total_bytes: int | None = None
    changed: bool = False
    """The step is complete and has changed the host (with --check: would have)."""


@record
class HostOutcome:
    host: str
    status: Literal["changed", "unchanged", "failed"]
    changes: tuple[str, ...]
    """Names of the tasks that changed something, in order."""
    failed_step: str | None = None
    failure: Finding | None = None


@record
class DeployReport:
    hosts: tuple[HostOutcome, ...]
    check: bool

    @property
    def failed(self) -> tuple[HostOutcome, ...]:
        return tuple(host for host in self.hosts if host.failure)


@record
class LoadedModel:
    name: str
    digest: str | None
    size_bytes: int | None
    """In memory, weights, cache and buffers; None when it could not be loaded."""
    vram_bytes: int | None
    context_tokens: int | None
    """Of one sequence; None from versions that do not tell."""


@record
class HostState:
    """What runs on one host, against the plan. Findings are drift; remarks are not."""

    host: str
    version: str | None
    listens_on: tuple[str, ...]
    models: tuple[LoadedModel, ...]
    findings: tuple[Finding, ...]
    remarks: tuple[Finding, ...] = ()


OnProgress = Callable[[DeployProgress], None]


def apply_plan(
    plan: Plan,
    targets: Sequence[AnsibleHost],
    options: OllamaOptions,
    on_progress: OnProgress,
    *,
    check: bool = False,
) -> DeployReport:
    """Install Ollama with the plan's settings and models on all targets at once.

    Hosts that fail are in the report. Raises UsageError and NothingFits before anything is done, Interrupted on Ctrl-C
    (nothing is left running; the next apply converges), ApplyFailed when Ansible could not run.
    """
    variables = role_vars(plan, options)
    return _play("site", targets, variables, on_progress, check=check, again=_APPLY_AGAIN)


def remove_from(
    targets: Sequence[AnsibleHost], on_progress: OnProgress, *, keep_models: bool = False, check: bool = False
) -> DeployReport:
    """Put every target back as it was before the first apply, from the ledger on the host.

    `keep_models` leaves the folder of models; a later removal without it still takes that off. Raises as `apply_plan`.
    """
    variables = {"remove_keep_models": keep_models}
    return _play("remove", targets, variables, on_progress, check=check, again="provision remove again")


def verify_plan(
    plan: Plan,
    targets: Sequence[AnsibleHost],
    pinned_version: str,
    given: Mapping[str, Any],
    *,
    allow_cpu: bool = False,
) -> tuple[HostState, ...]:
    """Ask what runs on each target, load every planned model there, and hold it against the plan.

    Expected is what the options in `given` (names of OllamaOptions) say, else what apply recorded on the host, else
    the defaults with `pinned_version`. Reads the running process, its addresses and its API; changes nothing but which
    models are loaded. `allow_cpu` makes "runs on the CPU" a remark. Raises UsageError, NothingFits and Interrupted.
    """
    chosen = planned_models(plan)
    defaults = {"version": pinned_version}
    variables: dict[str, object] = {"models_wanted": role_vars(plan, _expected(defaults, {}, given))["models_wanted"]}
    if "listen" in given:
        variables["verify_base_url"] = endpoint(_expected(defaults, {}, given))[0]
    try:
        result = run_playbook("verify", _with(targets, variables))
    except KeyboardInterrupt:
        raise Interrupted("verify was interrupted", code="interrupted") from None
    states = []
    for host in result.hosts:
        seen: Mapping[str, Any] = next(iter(host.results.values()), {})
        options = _expected(defaults, seen.get("choices", {}), given)
        states.append(_state(host, seen, chosen, role_vars(plan, options), options, allow_cpu=allow_cpu))
    return tuple(states)


def _expected(*layers: Mapping[str, Any]) -> OllamaOptions:
    """Later layers win. What runs is judged as it is: an old version is no reason not to look."""
    options: dict[str, Any] = {"allow_old_version": True}
    for layer in layers:
        options |= layer
    return OllamaOptions(**options)


def _with(targets: Sequence[AnsibleHost], variables: Mapping[str, object]) -> list[AnsibleHost]:
    return [replace(target, variables={**target.variables, **variables}) for target in targets]


def _play(
    name: str,
    targets: Sequence[AnsibleHost],
    variables: Mapping[str, object],
    on_progress: OnProgress,
    *,
    check: bool,
    again: str,
) -> DeployReport:
    def tell(event: PlayEvent) -> None:
        if event.kind == "progress" and event.result.get("phase"):
            amounts = event.result.get("done_bytes"), event.result.get("total_bytes")
            on_progress(
                DeployProgress(
                    host=event.host, step=event.result["phase"], done_bytes=amounts[0], total_bytes=amounts[1]
                )
            )
        elif event.kind in ("started", "changed"):
            on_progress(DeployProgress(host=event.host, step=event.task, changed=event.kind == "changed"))

    try:
        result = run_playbook(name, _with(targets, variables), check=check, on_event=tell)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing is left running", hint=again, code="interrupted") from None
    return DeployReport(hosts=tuple(_outcome(host) for host in result.hosts), check=check)


def _outcome(result: HostResult) -> HostOutcome:
    failure = failure_of(result)
    return HostOutcome(
        host=result.host,
        status="failed" if failure else "changed" if result.changed else "unchanged",
        changes=result.changed_tasks,
        failed_step=result.failure.task if failure and result.failure else None,
        failure=failure,
    )


_KNOWN_FAILURES = (
    ("missing sudo password", "no-sudo"),
    ("a password is required", "no-sudo"),
    ("not in the sudoers", "no-sudo"),
    ("not allowed to execute", "no-sudo"),
    ("sudo: command not found", "no-sudo"),
    ("no space left on device", "disk-full"),
)
_HINTS = {
    "no-sudo": "give the user sudo without a password, or connect as root: --host root@HOST",
    "disk-full": "make room on the host and apply again",
}


def failure_of(result: HostResult) -> Finding | None:
    """Why a host failed, with the code of the cause, or None."""
    if not result.failed and not result.unreachable:
        return None
    if result.failure is None:
        return Finding(code="host-lost", message=f"{result.host}: Ansible says nothing about it", hint=None)
    failure = result.failure
    lowered = failure.message.lower()
    code = failure.code or next((code for words, code in _KNOWN_FAILURES if words in lowered), None)
    if code is None:
        code = "host-lost" if result.unreachable else "apply-failed"
    what = failure.message if failure.code else f"{failure.task}: {failure.message}"
    if code == "no-sudo":
        what = "the user may not become root with sudo"
    hint = failure.hint or _HINTS.get(code) or (_APPLY_AGAIN if code == "host-lost" else None)
    return Finding(code=code, message=f"{result.host}: {what}", hint=hint)


def _state(
    result: HostResult,
    seen: Mapping[str, Any],
    chosen: Sequence[Candidate],
    variables: Mapping[str, object],
    options: OllamaOptions,
    *,
    allow_cpu: bool,
) -> HostState:
    failure = failure_of(result)
    if failure or not seen:
        finding = failure or Finding(code="host-lost", message=f"{result.host}: no answer")
        return HostState(host=result.host, version=None, listens_on=(), models=(), findings=(finding,))
    findings = service_findings(seen, variables, options)
    cpu_findings: list[Finding] = []
    if seen["version"] is not None:
        for candidate in chosen:
            found, on_cpu = model_findings(seen, candidate)
            findings += found
            cpu_findings += on_cpu
    return HostState(
        host=result.host,
        version=seen["version"],
        listens_on=tuple(seen["addresses"]),
        models=tuple(_loaded(seen, model_name(candidate)) for candidate in chosen),
        findings=tuple(findings if allow_cpu else findings + cpu_findings),
        remarks=tuple(cpu_findings) if allow_cpu else (),
    )


def _loaded(seen: Mapping[str, Any], name: str) -> LoadedModel:
    place = seen["loaded"].get(name) or {}
    return LoadedModel(
        name=name,
        digest=(seen["models"].get(name) or {}).get("digest"),
        size_bytes=place.get("size_bytes"),
        vram_bytes=place.get("vram_bytes"),
        context_tokens=place.get("context_tokens"),
    )


def service_findings(seen: Mapping[str, Any], variables: Mapping[str, Any], options: OllamaOptions) -> list[Finding]:
    """Drift of the service: `seen` is what the module `ollama_state` returned, `variables` what apply would set."""
    if seen["version"] is None:
        message = "Ollama does not answer" + ("" if seen["unit_active"] else ": its service does not run")
        return [Finding(code="not-running", message=message, hint="on the host: journalctl -u ollama -n 50")]
    findings = []
    if seen["version"] != variables["ollama_version"]:
        message = f"Ollama {seen['version']} runs, {variables['ollama_version']} was planned"
        findings.append(Finding(code="wrong-version", message=message, hint="provision apply PLAN --host HOST"))
    if not seen["unit_active"]:
        message = "Ollama answers, but not from the service ollama.service"
        findings.append(Finding(code="foreign-ollama", message=message, hint="on the host: ss -ltnp"))
    if not seen["unit_enabled"]:
        message = "the service does not start at boot"
        findings.append(Finding(code="not-enabled", message=message, hint="on the host: sudo systemctl enable ollama"))
    for name, wanted in variables["ollama_environment"].items():
        found = seen["environment"].get(name)
        if name.startswith("OLLAMA_") and found != wanted:
            message = f"the running service has {name}={found or '(unset)'}, planned is {wanted}"
            findings.append(Finding(code="setting-differs", message=message, hint="provision apply PLAN --host HOST"))
    exposed = [address for address in seen["addresses"] if not _is_loopback(address)]
    if exposed and not options.expose_without_auth:
        message = f"Ollama listens on {', '.join(exposed)}: whoever reaches the host controls it"
        findings.append(Finding(code="exposed", message=message, hint="provision apply PLAN --host HOST"))
    return findings


def model_findings(seen: Mapping[str, Any], candidate: Candidate) -> tuple[list[Finding], list[Finding]]:
    """Drift of one model, and separately what says that it runs on the CPU against the plan."""
    name = model_name(candidate)
    installed = seen["models"].get(name)
    if installed is None:
        return [
            Finding(code="model-missing", message=f"{name} is not installed", hint="provision apply PLAN --host HOST")
        ], []
    findings = []
    recorded = (seen["recorded_models"].get(name) or {}).get("digest")
    if recorded and recorded != installed["digest"]:
        message = f"{name} has digest {installed['digest'][:12]}, apply pulled {recorded[:12]}"
        findings.append(
            Finding(code="model-differs", message=message, hint=f"on the host: ollama rm {name}; then apply")
        )
    place = seen["loaded"].get(name)
    if place is None:
        reason = seen["load_errors"].get(name, "it is not among the loaded models")
        return [
            *findings,
            Finding(
                code="load-failed",
                message=f"{name} cannot be loaded: {reason}",
                hint="on the host: journalctl -u ollama -n 50",
            ),
        ], []
    found_tokens = place["context_tokens"]
    if found_tokens is not None and found_tokens < candidate.context_tokens:
        message = f"{name} runs with a context of {found_tokens}, planned are {candidate.context_tokens}"
        findings.append(Finding(code="context-differs", message=message, hint="provision apply PLAN --host HOST"))
    return findings, _cpu_findings(candidate, name, place["size_bytes"], place["vram_bytes"])


def _cpu_findings(candidate: Candidate, name: str, size_bytes: int, vram_bytes: int) -> list[Finding]:
    planned_layers = candidate.placement.gpu_layers
    whole = planned_layers >= candidate.placement.layers
    hint = "on the host: nvidia-smi; journalctl -u ollama | grep -i -e cuda -e gpu   (or verify with --allow-cpu)"
    if planned_layers and not vram_bytes:
        message = f"{name} runs on the CPU: none of its {size_bytes / 2**30:.2f} GiB is on a card"
        return [Finding(code="runs-on-cpu", message=message, hint=hint)]
    if whole and vram_bytes < size_bytes:
        share = 100 * vram_bytes / size_bytes
        message = f"{name} runs partly on the CPU: {share:.0f} % of its {size_bytes / 2**30:.2f} GiB is on the cards"
        return [Finding(code="runs-on-cpu", message=message, hint=hint)]
    return []


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
