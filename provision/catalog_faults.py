"""What is wrong with one catalog entry, in words: the key, the reason, and what to type instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from provision.domain.hardware import AcceleratorSpec
from provision.domain.llm import (
    AttentionLayers,
    Experts,
    LatentAttentionLayers,
    MemoryPlatform,
    ModelBuild,
    ModelSpec,
    Quantization,
    StateLayers,
    Tier,
    WeightLayout,
)

_LAYERS: dict[str, type] = {"attention": AttentionLayers, "latent": LatentAttentionLayers, "state": StateLayers}
_NESTED: dict[tuple[str, ...], type] = {("experts",): Experts, ("layout",): WeightLayout}
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's names, by way of validation
_NUMBERS = ("int_type", "float_type", "int_parsing", "float_parsing")

_AT_LEAST_ONE: dict[type, tuple[str, ...]] = {
    AcceleratorSpec: ("memory_bytes", "memory_bandwidth_bytes_per_s"),
    AttentionLayers: ("count",),
    Experts: ("count", "used", "feed_forward_size"),
    LatentAttentionLayers: ("count", "latent_dim"),
    MemoryPlatform: ("bandwidth_bytes_per_s",),
    ModelBuild: ("weights_bytes",),
    ModelSpec: ("hidden_size", "vocabulary_size", "context_tokens_max"),
    Quantization: ("bits_per_weight", "embedding_bits_per_weight", "output_bits_per_weight"),
    StateLayers: ("count",),
    Tier: ("memory_bytes",),
}
"""Numbers that mean nothing at zero; no number of these records means anything below."""
_LARGEST = 2**62
_MOST_LAYERS = 4096


class Fault(NamedTuple):
    key: str
    """Empty: the entry as a whole."""
    reason: str
    fix: str


def faults_of(details: Iterable[Mapping[str, Any]], item: object, record: type, table: str) -> Iterator[Fault]:
    """What pydantic found in `item`, which is to become a `record`; missing keys last.

    `layers` may be of several kinds, and pydantic tells what each of them would lack: only the kind that is given
    counts here.
    """
    told: set[Fault] = set()
    for detail in sorted(details, key=lambda detail: detail["type"] == "missing"):
        fault = _fault(detail, item, record, table)
        if fault is not None and fault not in told:
            told.add(fault)
            yield fault


def _fault(detail: Mapping[str, Any], item: object, record: type, table: str) -> Fault | None:
    place = [str(part) for part in detail["loc"]]
    if not place:
        return Fault("", _reason(detail), f"write it as a table, [[{table}]]")
    owner: type = record
    if record is ModelSpec and place[0] == "layers" and len(place) > 2:
        kind = _kind_of(item, place[1])
        if kind not in _LAYERS:
            known = ", ".join(_LAYERS)
            return Fault(
                f"layers.{place[1]}.kind", f"none of {known}, but {kind!r}", f"write {_near(str(kind), _LAYERS)}"
            )
        owner = _LAYERS[kind]
        if place[2] != owner.__name__:
            return None
        del place[2]
    elif len(place) > 1:
        owner = _NESTED.get((place[0],), record)
    key = ".".join(place)
    return Fault(key, _reason(detail), _fix(detail, key, place[-1], [field.name for field in fields(owner)]))


def _kind_of(item: object, index: str) -> object:
    layers = item.get("layers") if isinstance(item, dict) else None
    group = layers[int(index)] if isinstance(layers, list) and index.isdigit() and int(index) < len(layers) else None
    return group.get("kind", "attention") if isinstance(group, dict) else "attention"


def _reason(detail: Mapping[str, Any]) -> str:
    reasons = dict.fromkeys(_UNKNOWN_KEY, "unknown key") | {"missing": "missing"}
    return reasons.get(detail["type"]) or f"{str(detail['msg']).lower()}, not {_short(detail['input'])}"


def _fix(detail: Mapping[str, Any], key: str, name: str, known: list[str]) -> str:
    if detail["type"] == "missing":
        return f"add {key}"
    if detail["type"] in _UNKNOWN_KEY:
        near = _near(name, known)
        return f"write {near}" if near else f"remove {key}"
    if detail["type"] in _NUMBERS and isinstance(detail["input"], str):
        return f"write {key} as a number without quotes"
    return f"correct {key}"


def _near(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    names = list(known)
    return next(iter(get_close_matches(name, names, n=1)), names[0] if names == list(_LAYERS) else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def impossible(record: object) -> Fault | None:
    """A value of the right type that no such thing can have: sizing would fail on it, or answer with nonsense."""
    if isinstance(record, ModelSpec):
        return _impossible_model(record) or _impossible_number(record, "")
    return _impossible_number(record, "")


def unlike(build: ModelBuild, model: ModelSpec) -> Fault | None:
    """A layout that is of another model than the build's."""
    if build.layout is None:
        return None
    count = model.layer_count
    for name in ("layer_bytes", "expert_bytes"):
        found = len(getattr(build.layout, name))
        if found != count and (found or name == "layer_bytes"):
            return Fault(f"layout.{name}", f"has {found} entries for the {count} layers of {model.id}", "remove layout")
    return None


def _impossible_model(model: ModelSpec) -> Fault | None:
    if not model.layers:
        return Fault("layers", "is empty", "add a group to layers")
    if model.layer_count > _MOST_LAYERS:
        return Fault("layers", f"are {model.layer_count:,} in all", "correct layers.0.count")
    if any(not 0 <= index < len(model.layers) for index in model.layer_pattern):
        return Fault(
            "layer_pattern", f"names a group that is not among the {len(model.layers)}", "remove layer_pattern"
        )
    if model.experts and model.experts.used > model.experts.count:
        return Fault("experts.used", f"is {model.experts.used}, of {model.experts.count}", "correct experts.used")
    return None


def _impossible_number(record: object, prefix: str) -> Fault | None:
    """The first number, also of what is inside, that is below zero, absurdly large, or zero where that is nothing."""
    if type(record) not in _AT_LEAST_ONE and not isinstance(record, WeightLayout):
        return None
    least = _AT_LEAST_ONE.get(type(record), ())
    for field in fields(record):  # type: ignore[arg-type]  # all of them are dataclasses
        value, key = getattr(record, field.name), f"{prefix}{field.name}"
        for index, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if is_dataclass(item):
                inner = _impossible_number(item, f"{key}.{index}." if isinstance(value, tuple) else f"{key}.")
                if inner is not None:
                    return inner
            elif isinstance(item, int | float) and not isinstance(item, bool):
                limit = 1 if field.name in least and isinstance(item, int) else 0
                if item < limit or item > _LARGEST or (field.name in least and item <= 0):
                    return Fault(key, f"is {item:,}", f"correct {key}")
    return None
