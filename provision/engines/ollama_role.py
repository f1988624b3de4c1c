"""What the roles `preflight`, `ollama` and `models` are told: every decision is made here, none in the roles.

The keys are exactly the options of the roles' argument_specs.yml; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re

from provision.domain.plan import Candidate, Plan
from provision.domain.record import record
from provision.errors import NothingFits, UsageError

DEFAULT_MIRROR = "https://github.com/ollama/ollama/releases/download"
DEFAULT_MODELS_PATH = "/usr/share/ollama/.ollama/models"
DEFAULT_LISTEN = "127.0.0.1:11434"
OLDEST_SAFE_VERSION = (0, 17, 1)
"""CVE-2026-7482 (unauthenticated memory leak) is fixed from here on."""

RECORDED = ("version", "listen", "expose_without_auth", "models_path", "keep_alive")
"""Options that the ledger on the host keeps, so that verify expects what apply was told."""


@record
class OllamaOptions:
    """How a plan is carried out, beyond what it says."""

    version: str
    """Of the release to install; the service must report it."""
    allow_old_version: bool = False
    mirror: str = DEFAULT_MIRROR
    registry: str | None = None
    """`host[:port]` instead of Ollama's own registry."""
    insecure_registry: bool = False
    listen: str = DEFAULT_LISTEN
    expose_without_auth: bool = False
    models_path: str = DEFAULT_MODELS_PATH
    keep_alive: str = "-1"
    """Loaded models stay: the plan has room for all of them together."""


def planned_models(plan: Plan) -> tuple[Candidate, ...]:
    """The candidates that the plan selected for Ollama. Raises NothingFits when there is none."""
    by_id = {candidate.id: candidate for candidate in plan.candidates}
    chosen = tuple(by_id[one] for one in plan.selected if one in by_id and by_id[one].engine == "ollama")
    without_tag = [one.id for one in chosen if one.ollama_tag is None]
    if without_tag:
        raise NothingFits(
            f"{without_tag[0]} is not published for Ollama", hint="plan it with another --quant", code="no-ollama-tag"
        )
    if not chosen:
        raise NothingFits(
            "the plan selects no model for Ollama", hint="provision plan --model MODEL -o plan.json", code="empty-plan"
        )
    return chosen


def role_vars(plan: Plan, options: OllamaOptions) -> dict[str, object]:
    """Variables of the three roles for one host.

    Raises UsageError for an engine with a known hole or an unprotected address, NothingFits for an empty plan.
    """
    chosen = planned_models(plan)
    _refuse_old(options)
    base_url, port = endpoint(options)
    settings = _settings(plan, chosen, options)
    return {
        "preflight_models_path": options.models_path,
        "preflight_needed_bytes": {model_name(one): one.weights_bytes for one in chosen},
        "preflight_port": port,
        "ollama_version": options.version,
        "ollama_mirror": options.mirror,
        "ollama_components": _components(plan),
        "ollama_sha256": {},
        "ollama_models_path": options.models_path,
        "ollama_base_url": base_url,
        "ollama_port": port,
        "ollama_choices": {name: getattr(options, name) for name in RECORDED},
        "ollama_environment": settings,
        "models_wanted": [
            {"name": model_name(one), "source": pull_source(model_name(one), options.registry)} for one in chosen
        ],
        "models_insecure_registry": options.insecure_registry,
        "models_base_url": base_url,
        "models_path": options.models_path,
    }


def model_name(candidate: Candidate) -> str:
    """The name in Ollama, always with its tag."""
    name = candidate.ollama_tag or candidate.model
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def pull_source(name: str, registry: str | None) -> str:
    """What to pull for a model: its own name, or that in another registry, where `library/` must be written out."""
    if registry is None:
        return name
    return f"{registry}/{name if '/' in name else f'library/{name}'}"


def endpoint(options: OllamaOptions) -> tuple[str, int]:
    """The URL at which the host reaches its own service, and the port.

    Raises UsageError for an address that cannot be read, or that others could reach without any authentication.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+)(?::(\d{1,5}))?", options.listen)
    port = int(match[2] or 11434) if match else 0
    if match is None or not 0 < port < 65536:
        raise UsageError(f"--listen: '{options.listen}' is not an address", hint="--listen 127.0.0.1:11434")
    host = "127.0.0.1" if match[1] == "localhost" else match[1].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise UsageError(
            f"--listen: '{host}' is a name; the service needs an address", hint="--listen 127.0.0.1:11434"
        ) from None
    if not address.is_loopback and not options.expose_without_auth:
        raise UsageError(
            f"--listen {options.listen} would give everybody who reaches the host full control of Ollama, "
            "which has no authentication of its own",
            hint="keep 127.0.0.1 and use ssh -L 11434:127.0.0.1:11434, or add --expose-without-auth",
            code="exposed",
        )
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(address), str(address))
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}", port


def _settings(plan: Plan, chosen: tuple[Candidate, ...], options: OllamaOptions) -> dict[str, str]:
    _, port = endpoint(options)
    host = options.listen if options.listen.endswith(f":{port}") else f"{options.listen}:{port}"
    settings = {
        "OLLAMA_HOST": host,
        "OLLAMA_MODELS": options.models_path,
        # Never left to the server: its own default depends on the memory of the cards, up to 256k.
        "OLLAMA_CONTEXT_LENGTH": str(max(one.context_tokens for one in chosen)),
        "OLLAMA_NUM_PARALLEL": str(max(one.users for one in chosen)),
        "OLLAMA_MAX_LOADED_MODELS": str(len(chosen)),
        "OLLAMA_KEEP_ALIVE": options.keep_alive,
    }
    if plan.workload.kv_cache_type != "f16":
        # Quantised caches work with flash attention only.
        settings |= {"OLLAMA_KV_CACHE_TYPE": plan.workload.kv_cache_type, "OLLAMA_FLASH_ATTENTION": "1"}
    text = "\n".join(f"{name}={value}" for name, value in sorted(settings.items()))
    # Shows in the running process whether it was started with exactly these settings.
    return settings | {"PROVISION_SETTINGS_ID": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _components(plan: Plan) -> list[str]:
    """The base archive carries CUDA and Vulkan; AMD cards need another one on top."""
    amd = any(card.vendor == "amd" for card in plan.machine.accelerators)
    return ["", "-rocm"] if amd else [""]


def _refuse_old(options: OllamaOptions) -> None:
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", options.version)
    if match is None or not re.fullmatch(r"[0-9A-Za-z.+-]+", options.version):
        raise UsageError(f"--engine-version: '{options.version}' is not a version", hint="--engine-version 0.32.15")
    if tuple(map(int, match.groups())) < OLDEST_SAFE_VERSION and not options.allow_old_version:
        raise UsageError(
            f"Ollama {options.version} leaks memory to anyone who reaches it (CVE-2026-7482, fixed in 0.17.1)",
            hint="leave out --engine-version, or add --allow-old-engine if you must",
            code="unsafe-version",
        )
