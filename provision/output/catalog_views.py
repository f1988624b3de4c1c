"""How catalog entries look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from provision.domain.llm import Source
from provision.units import format_bandwidth, format_bytes, format_tokens

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.domain.llm import ModelSpec
    from provision.output.console import Screen

_RIGHT = ("weights", "memory", "bandwidth", "claimed tok/s", "bits per weight", "USD", "weights_bytes", "size")


def show_list(screen: Screen, catalog: Catalog, kind: str) -> None:
    """A table of all entries of one kind, one row each."""
    entries = catalog.accelerators if kind == "hardware" else getattr(catalog, kind)
    rows = [_row(catalog, kind, entry) for entry in entries]
    table = screen.table(*rows[0], right=_RIGHT)
    for row in rows:
        table.add_row(*row.values())
    screen.print(table)


def show_entry(screen: Screen, entry: Any, related: Mapping[str, tuple[Any, ...]], sources: tuple[Source, ...]) -> None:
    """Every known value with its source, then what belongs to the entry, then the sources with their dates."""
    provenance = getattr(entry, "provenance", {})
    table = screen.table("", "value", "source")
    for field in fields(entry):
        value = getattr(entry, field.name)
        if field.name == "provenance" or value in (None, ()):
            continue
        source = provenance.get(field.name) or (provenance.get("*", "") if _is_figure(value) else "")
        table.add_row(field.name, _text(field.name, value), source)
    screen.print(table)
    for name, items in related.items():
        _show_related(screen, name, items)
    table = screen.table("source", "checked on", "what")
    for known in sources:
        table.add_row(known.id, str(known.checked_on), f"{known.title} {known.url or ''}".strip())
    screen.print(table)


def _show_related(screen: Screen, name: str, items: tuple[Any, ...]) -> None:
    if not items:
        return
    if name == "builds":
        table = screen.table("build", "weights_bytes", "size", "precision", "ollama tag", "source", right=_RIGHT)
        for build in items:
            size = format_bytes(build.weights_bytes)
            table.add_row(
                build.quantization,
                f"{build.weights_bytes:,}",
                size,
                build.precision,
                build.ollama_tag or "",
                build.source,
            )
        screen.print(table)
    elif name == "prices":
        for price in items:
            screen.print(f"{price.kind} {price.on}: {_usd(price)} USD ({price.source})")
    else:
        for claim in items:
            screen.print(f"Claimed: {claim.text} ({claim.source})")
            if claim.verdict:
                screen.print(f"  {claim.verdict} ({claim.verdict_source})")


def _is_figure(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and not isinstance(value[0], str)
    return not isinstance(value, str | bool)


def _text(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return "; ".join(_text(name, item) for item in value)
    if hasattr(value, "__dataclass_fields__"):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
        return ", ".join(f"{key} {part}" for key, part in parts if part is not None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        plain = f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
        if name.endswith("_bytes"):
            return f"{plain} ({format_bytes(value)})"
        return f"{plain} ({format_bandwidth(value)})" if name.endswith("bandwidth_bytes_per_s") else plain
    return str(value)


def _usd(price: Any) -> str:
    return "-".join(f"{value:,g}" for value in (price.usd_low, price.usd_high) if value is not None)


def _row(catalog: Catalog, kind: str, entry: Any) -> dict[str, str]:
    """One line of a listing: column to text."""
    match kind:
        case "models":
            return _model_row(catalog, entry)
        case "hardware":
            memory = "host's" if entry.memory_kind.value == "unified" else format_bytes(entry.memory_bytes)
            bandwidth = format_bandwidth(entry.memory_bandwidth_bytes_per_s)
            return {"id": entry.id, "type it as": (*entry.aliases, "")[0], "memory": memory, "bandwidth": bandwidth}
        case "engines":
            return {"id": entry.id, "version": entry.version, "reads": ", ".join(entry.containers)}
        case "tiers":
            cards = ", ".join(entry.accelerators)
            return {"id": entry.id, "title": entry.title, "users": entry.users, "cards": cards}
        case "claims":
            rate = f"{entry.claimed_tokens_per_s:g}" if entry.claimed_tokens_per_s else ""
            return {
                "tier": entry.tier or "",
                "claim": entry.text,
                "claimed tok/s": rate,
                "verdict": entry.verdict or "",
            }
        case "quantizations":
            return {"id": entry.id, "file": entry.container, "bits per weight": f"{entry.bits_per_weight:g}"}
        case "platforms" | "interconnects":
            bandwidth = format_bandwidth(entry.bandwidth_bytes_per_s)
            return {"id": entry.id, "name": entry.name, "bandwidth": bandwidth}
        case "prices":
            return {"card": entry.hardware, "on": str(entry.on), "kind": entry.kind, "USD": _usd(entry)}
        case _:
            return {"id": entry.id, "kind": entry.kind, "checked on": str(entry.checked_on), "title": entry.title}


def _model_row(catalog: Catalog, model: ModelSpec) -> dict[str, str]:
    builds = catalog.builds_of(model.id)
    sizes = sorted(build.weights_bytes for build in builds)
    return {
        "id": model.id,
        "name": model.name,
        "context": format_tokens(model.context_tokens_max),
        "weights": f"{format_bytes(sizes[0])} - {format_bytes(sizes[-1])}" if sizes else "unknown",
        "quantizations": ", ".join(build.quantization for build in builds),
    }
