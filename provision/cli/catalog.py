"""`provision catalog`: what provision knows, and from where."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provision.cli import CONTEXT_SETTINGS, GLOBAL_OPTIONS_NOTE, catalog_entries
from provision.errors import ExitCode, UsageError
from provision.output.documents import Result

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.output.console import Screen

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT_SETTINGS,
    epilog=GLOBAL_OPTIONS_NOTE,
)


class Kind(StrEnum):
    MODELS = "models"
    HARDWARE = "hardware"
    ENGINES = "engines"
    TIERS = "tiers"
    CLAIMS = "claims"
    QUANTIZATIONS = "quantizations"
    PLATFORMS = "platforms"
    INTERCONNECTS = "interconnects"
    PRICES = "prices"
    SOURCES = "sources"


@app.command("list", epilog=GLOBAL_OPTIONS_NOTE)
def list_entries(kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.MODELS) -> Result:
    """List models, hardware, engines, tiers, claims, quantizations, platforms, links, prices or sources.

    Example: provision catalog list hardware
    """
    from provision.catalog import load_catalog

    catalog = load_catalog()
    entries = getattr(catalog, "accelerators" if kind is Kind.HARDWARE else kind.value)

    def show(screen: Screen) -> None:
        from provision.output.catalog_views import show_list

        show_list(screen, catalog, kind.value)

    return Result(data={"kind": kind.value, "catalog_revision": catalog.revision, kind.value: entries}, show=show)


@app.command("show", epilog=GLOBAL_OPTIONS_NOTE)
def show_one(name: Annotated[str, typer.Argument(help="A model, card, tier, engine or quantization.")]) -> Result:
    """Show one entry: a model with its builds, a card with its prices, a tier with what is claimed for it.

    \b
    Examples:
      provision catalog show qwen2.5-coder:32b
      provision catalog show "RTX 4090"
    """
    from provision.catalog import load_catalog

    catalog = load_catalog()
    kind, entry = _find(catalog, name)
    related: dict[str, tuple[Any, ...]] = {}
    if kind == "model":
        related["builds"] = catalog.builds_of(entry.id)
    elif kind == "hardware":
        related["prices"] = tuple(price for price in catalog.prices if price.hardware == entry.id)
    elif kind == "tier":
        related["claims"] = tuple(claim for claim in catalog.claims if claim.tier == entry.id)
    used = set(getattr(entry, "provenance", {}).values())
    for item in (item for items in related.values() for item in items):
        used |= {item.source, getattr(item, "verdict_source", None), getattr(item, "ollama_tag_source", None)} - {None}
    sources = tuple(catalog.source(source) for source in sorted(used))

    def show(screen: Screen) -> None:
        from provision.output.catalog_views import show_entry

        show_entry(screen, entry, related, sources)

    return Result(data={"kind": kind, "entry": entry, **related, "sources": sources}, show=show)


@app.command("check", epilog=GLOBAL_OPTIONS_NOTE)
def check() -> Result:
    """Check every rule over our files and yours; exits 3 when an entry is broken.

    Your own entries: ~/.local/share/provision/catalog/*.toml, in the format of catalog/README.md.

    Example: provision catalog check
    """
    from provision.catalog_rules import check_catalog

    report = check_catalog()

    def show(screen: Screen) -> None:
        if not report.errors:
            screen.print("the catalog is sound")

    return Result(
        data={"errors": len(report.errors), "warnings": len(report.warnings)},
        errors=report.errors,
        warnings=report.warnings,
        exit_code=ExitCode.INVALID_FILE if report.errors else ExitCode.DONE,
        show=show,
    )


app.command("add", epilog=GLOBAL_OPTIONS_NOTE)(catalog_entries.add)
app.command("remove", epilog=GLOBAL_OPTIONS_NOTE)(catalog_entries.remove)


def _find(catalog: Catalog, name: str) -> tuple[str, Any]:
    """The entry that `name` means, whatever its kind; the hints of all kinds when it means none."""
    hints = []
    for kind, lookup in (
        ("model", catalog.model),
        ("hardware", catalog.accelerator),
        ("tier", catalog.tier),
        ("engine", catalog.engine),
        ("quantization", catalog.quantization),
        ("platform", catalog.platform),
    ):
        try:
            return kind, lookup(name)
        except UsageError as error:
            if error.code.startswith("ambiguous"):
                raise
            if error.hint and error.hint.startswith("use "):
                hints.append(error.hint.removeprefix("use ").split(" (all: ")[0])
    near = f"use {' or '.join(hints[:1])}" if hints else "provision catalog list hardware"
    raise UsageError(f"the catalog has nothing called '{name}'", hint=near, code="unknown-entry")
