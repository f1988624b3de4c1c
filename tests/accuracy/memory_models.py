"""The model and file that a row of a start-up log is about: from its own columns, else from the catalog by name."""

from __future__ import annotations

import re

from provision.catalog import Catalog
from provision.domain.llm import (
    AttentionLayers,
    Experts,
    LatentAttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    ModelTask,
    Precision,
    Quantization,
)
from provision.errors import ProvisionError
from provision.sizing import quantization_mix as mixes
from provision.sizing import weights

Row = dict[str, str]
GIB = 2**30

_COLUMNS = ("n_layer", "n_embd", "n_head", "n_head_kv", "head_dim_k", "head_dim_v", "n_vocab")
_TIED = ("gemma2", "gemma3", "gemma4", "command-r", "cohere2")


def model_of(catalog: Catalog, row: Row) -> tuple[ModelSpec, bool]:
    """The model, and whether all that its weights depend on is known."""
    if all(row.get(name, "").isdigit() for name in _COLUMNS):
        return _from_columns(catalog, row), True
    name = row.get("model", "")
    bare = re.sub(r"[-_. ](UD-|i1-)?(I?Q\d|BF16|F16|MXFP4).*$", "", name, flags=re.IGNORECASE)
    for candidate in (name, name.split(" (")[0], name.replace(" ", "-"), bare, bare.replace(" ", "-")):
        try:
            return catalog.model(candidate), True
        except ProvisionError:
            continue
    raise _unknown(name)


def build_of(catalog: Catalog, row: Row, model: ModelSpec) -> tuple[ModelBuild, Quantization]:
    """The file by its size, or by the catalog's build of that quantization; of size 0 where neither is known."""
    label = row.get("quant", "")
    mix = mixes.mix_of(label) if label else None
    size = round(float(row["file_size_GiB"]) * GIB) if row.get("file_size_GiB") else 0
    quantization = _quantization(mix or label or "unknown")
    if not size and mix:
        try:
            size = catalog.build(model.id, mix).weights_bytes
        except ProvisionError:
            size = weights.computed_bytes(model, quantization)
    elif size and mix and row.get("engine", "").startswith("ik_"):
        # A file far off its label's size is a recipe of the maker, who as a rule keeps the embeddings at 8 bits.
        off = abs(weights.computed_bytes(model, quantization) / size - 1)
        quantization = _quantization("recipe") if off > 0.1 else quantization
    build = ModelBuild(
        model=model.id, quantization=quantization.id, weights_bytes=size, precision=Precision.ROUNDED, source="row"
    )
    return build, quantization


def _quantization(label: str) -> Quantization:
    return Quantization(
        id=label,
        container="gguf",
        bits_per_weight=4.5,
        embedding_bits_per_weight=8.5,
        output_bits_per_weight=8.5,
        rank=0,
        provenance={},
    )


def _from_columns(catalog: Catalog, row: Row) -> ModelSpec:
    layers, hidden, heads, kv_heads, key, value, vocabulary = (int(row[name]) for name in _COLUMNS)
    architecture = row.get("arch") or None
    group: Layers
    known = _same_shape(catalog, hidden, layers, vocabulary)
    window = int(row["n_swa"]) if row.get("n_swa", "").isdigit() else 0
    if architecture == "deepseek2":
        ranks = next((g for g in known.layers if isinstance(g, LatentAttentionLayers)), None) if known else None
        joined = key == 576
        group = LatentAttentionLayers(
            count=layers,
            latent_dim=512,
            rope_dim=64,
            key_dim=192 if joined else key,
            value_dim=128 if joined else value,
            query_rank=ranks.query_rank if ranks else (1536 if hidden >= 5120 else None),
        )
    else:
        group = AttentionLayers(count=layers, kv_heads=kv_heads, key_dim=key, value_dim=value)
    groups: tuple[Layers, ...] = (group,)
    pattern: tuple[int, ...] = ()
    if window and known and len(known.layers) > 1:
        groups, pattern = known.layers, known.layer_pattern
    experts = None
    count = int(row["n_expert"]) if row.get("n_expert", "").isdigit() else 0
    if count:
        experts = known.experts if known and known.experts else _experts(row, architecture, count, hidden, layers)
    return ModelSpec(
        id=row.get("model") or "row",
        name=row.get("model") or "row",
        family="row",
        architecture=architecture,
        task=ModelTask.EMBEDDING if architecture in ("bert", "nomic-bert") else ModelTask.TEXT,
        hidden_size=hidden,
        feed_forward_size=int(row["n_ff"]) if row.get("n_ff", "").isdigit() else None,
        attention_heads=heads,
        vocabulary_size=vocabulary,
        context_tokens_max=0,
        tied_embeddings=known.tied_embeddings if known else architecture in _TIED,
        layers=groups,
        layer_pattern=pattern,
        experts=experts,
        provenance={},
    )


def _same_shape(catalog: Catalog, hidden: int, layers: int, vocabulary: int) -> ModelSpec | None:
    """A model of the catalog with these sizes: it knows what the columns leave out."""
    for model in catalog.models:
        if (model.hidden_size, model.layer_count, model.vocabulary_size) == (hidden, layers, vocabulary):
            return model
    return None


def _experts(row: Row, architecture: str | None, count: int, hidden: int, layers: int) -> Experts:
    """The experts' inner width, which the columns leave out, from the number of parameters: they are nearly all."""
    used = int(row["n_expert_used"]) if row.get("n_expert_used", "").isdigit() else 8
    dense = 0
    if architecture == "deepseek2":
        dense = 3 if layers == 61 and count == 256 else 1
    parameters = float(row["params_B"]) * 1e9 if row.get("params_B") else 0.0
    width = parameters * 0.97 / (3 * hidden * (count + (1 if architecture == "deepseek2" else 0)) * (layers - dense))
    inner = max(64, round(width / 128) * 128)
    shared = inner * (2 if layers == 27 else 1) if architecture == "deepseek2" else 0
    return Experts(count=count, used=used, feed_forward_size=inner, shared_feed_forward_size=shared, dense_layers=dense)


def _unknown(name: str) -> ProvisionError:
    from provision.errors import UsageError

    return UsageError(f"the shape of {name or 'the model'} is not given", hint="fill the architecture columns")
