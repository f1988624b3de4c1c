"""`provision catalog add` and `remove`: entries of the user's own, from the headers of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.errors import UsageError
from provision.output.documents import Result

if TYPE_CHECKING:
    from provision.catalog import Catalog
    from provision.catalog_add import Addition, Written
    from provision.hub.found import Found
    from provision.output.console import Progress, Screen


def add(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(metavar="FILE.gguf | hf:OWNER/REPO[:QUANT or FILE] | ollama:TAG")],
    name: Annotated[str | None, typer.Option("--name", help="What to call it. Default: as it is called there.")] = None,
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", envvar="HF_ENDPOINT", help="The Hugging Face hub, or a mirror.")
    ] = "https://huggingface.co",
    registry: Annotated[
        str,
        typer.Option("--registry", metavar="HOST[:PORT]", envvar="PROVISION_REGISTRY", help="Where Ollama models lie."),
    ] = "https://registry.ollama.ai",
    insecure: Annotated[
        bool,
        typer.Option("--insecure-registry", envvar="PROVISION_INSECURE_REGISTRY", help="It speaks plain http."),
    ] = False,
    every_header: Annotated[
        bool, typer.Option("--every-header", help="Read the header of each quantization, not of one: some MB each.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the entry; write nothing.")] = False,
) -> Result:
    """Add a model to your own catalog from its header: exact sizes and shape, without its weights.

    Reads some MB. Your entries replace ours of the same name; what was there is kept beside as .bak. A token for
    gated repositories is taken from HF_TOKEN, and sent to the hub alone.

    \b
    Examples:
      provision catalog add ./model-Q4_K_M.gguf
      provision catalog add hf:bartowski/Qwen2.5-Coder-7B-Instruct-GGUF
      provision catalog add hf:Qwen/Qwen3-8B-AWQ --name qwen3-8b-awq
      provision catalog add ollama:qwen3:8b --dry-run
    """
    from provision import catalog_add
    from provision.catalog import load_catalog

    screen: Screen = ctx.obj
    catalog = load_catalog()
    if name is not None:
        catalog_add.checked_name(name)
    with screen.progress() as progress:
        found, bytes_read = _find(what, catalog, progress, endpoint, _address(registry, insecure), every_header)
    addition = catalog_add.prepare(catalog, found, name)
    written = () if dry_run else catalog_add.write(addition)
    return Result(
        data={
            "name": addition.model.id,
            "model": addition.model,
            "builds": addition.builds,
            "quantizations": addition.quantizations,
            "source": addition.source,
            "overrides": addition.overrides,
            "written": [{"path": str(w.path), "backup": w.backup and str(w.backup)} for w in written],
            "bytes_read": bytes_read,
        },
        warnings=addition.findings,
        show=lambda screen: _show(screen, addition, written),
    )


def remove(name: Annotated[str, typer.Argument(help="A model that you have added.")]) -> Result:
    """Take a model that you have added out of your catalog again; ours of that name, if any, is back.

    Its file is kept beside as .bak.

    Example: provision catalog remove qwen3:8b
    """
    from provision import catalog_add
    from provision.catalog import load_catalog

    removed = catalog_add.remove(name)
    try:
        ours: str | None = load_catalog().model(name).id
    except UsageError:
        ours = None

    def show(screen: Screen) -> None:
        for item in removed:
            screen.print(f"{item.path} is taken out, and kept as {item.backup.name if item.backup else 'nothing'}")
        if ours:
            screen.print(f"'{name}' means our {ours} again")

    files = [{"path": str(item.path), "backup": item.backup and str(item.backup)} for item in removed]
    return Result(data={"name": name, "removed": files, "now_means": ours}, show=show)


def _find(
    what: str, catalog: Catalog, progress: Progress, endpoint: str, registry: str, every_header: bool
) -> tuple[Found, int]:
    """What the reference stands for, and how many bytes were read over the network."""
    import os

    from provision.hub import found
    from provision.hub.http import Remote, endpoint_of

    kind, _, reference = what.partition(":")
    if kind == "hf" and reference:
        address = endpoint_of(endpoint, "a Hugging Face hub")
        with Remote(address, token=os.environ.get("HF_TOKEN") or None, report=progress.line) as remote:
            result = found.from_hugging_face(
                remote,
                reference,
                is_known=lambda label: _has_gguf_mix(catalog, label),
                every_header=every_header,
                progress=lambda done, total: progress.update(f"headers of {reference}", done, total),
            )
            return result, remote.bytes_read
    if kind == "ollama" and reference:
        with Remote(endpoint_of(registry, "an Ollama registry"), report=progress.line) as remote:
            progress.update(f"header of {reference}")
            return found.from_ollama(remote, reference), remote.bytes_read
    if kind in ("http", "https"):
        raise UsageError(
            f"'{what[:80]}' is an address; name the repository, and its hub where it is not the usual one",
            hint=f"hf:OWNER/REPO --endpoint {kind}://HOST",
        )
    if kind in ("hf", "ollama"):
        example = "hf:Qwen/Qwen2.5-Coder-32B-Instruct-GGUF" if kind == "hf" else "ollama:qwen2.5-coder:32b"
        raise UsageError(f"'{what}' names no model", hint=f"provision catalog add {example}")
    path = Path(what)
    if path.suffix.lower() == ".gguf" or path.exists():
        return found.from_gguf(path), 0
    raise UsageError(
        f"'{what[:80]}' is neither a .gguf file nor a reference",
        hint=f"hf:{what}" if what.count("/") == 1 else f"ollama:{what}",
    )


def _has_gguf_mix(catalog: Catalog, label: str) -> bool:
    known = {quantization.id.casefold(): quantization for quantization in catalog.quantizations}
    mix = known.get(label.casefold())
    return mix is not None and mix.container == "gguf"


def _address(registry: str, insecure: bool) -> str:
    return f"http://{registry}" if insecure and "://" not in registry else registry


def _show(screen: Screen, addition: Addition, written: tuple[Written, ...]) -> None:
    from provision.gguf import describe
    from provision.units import format_bytes

    if not written:
        for path, text in addition.files:
            screen.raw(f"# {path}\n{text}\n")
        return
    model = addition.model
    size = f", {model.parameters / 1e9:.2f}e9 parameters" if model.parameters else ""
    active = f" ({model.active_parameters / 1e9:.2f}e9 for one token)" if model.active_parameters else ""
    screen.print(f"{model.id}: {model.architecture}{size}{active}; layers: {describe(model.layers)}")
    table = screen.table("build", "weights_bytes", "size", "ollama tag", right=("weights_bytes", "size"))
    for build in addition.builds:
        tag = build.ollama_tag or ""
        table.add_row(build.quantization, f"{build.weights_bytes:,}", format_bytes(build.weights_bytes), tag)
    screen.print(table)
    for label in addition.overrides:
        screen.print(f"replaces {label}")
    for item in written:
        screen.print(f"written: {item.path}" + (f" (before: {item.backup.name})" if item.backup else ""))
    screen.note(f"next: provision plan --model {model.id}{_engine(addition)}")


def _engine(addition: Addition) -> str:
    """The option that names an engine which can have one of the builds."""
    if any(build.ollama_tag for build in addition.builds):
        return ""
    return " --engine llamacpp" if any(f.code == "no-tag" for f in addition.findings) else " --engine vllm"
