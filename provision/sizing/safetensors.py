"""Bytes of a checkpoint as Hugging Face repositories publish it, from a model's shape and a weight format.

Quantized are the matrices of attention and feed-forward parts (experts included); the embedding table, the output
matrix, norms, biases and the routers of a mixture of experts keep 16 bits. Checked to the byte against the headers or
the index of published checkpoints (tests/unit/test_safetensors.py): BF16, FP8 with a scale per channel, AWQ and W4A16
with groups of 128, MXFP4; NVFP4 to some kB. Left out: the header of each file (some hundred kB) and whatever is not
the text model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from provision.domain.llm import AttentionLayers, Experts, LatentAttentionLayers, Layers, ModelSpec, StateLayers

HALF_BYTES = 2
"""Of a value in BF16 or F16."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a quantized matrix of `rows` outputs and `columns` inputs is stored: its values, and what goes with them."""

    bits_per_weight: float
    """Values together with the scales and zero points of their groups or blocks."""
    bytes_per_column: int = 0
    bytes_per_row: int = 0
    bytes_per_matrix: int = 0
    experts_only: bool = False
    """Attention and dense feed-forward parts keep 16 bits where there are experts."""
    state_layers: bool = False
    """The projections of recurrent layers are quantized too."""
    group_columns: int = 1
    """Inputs that share a scale: a matrix is cut between groups, never within one."""


_GROUP = 128
FORMATS = {
    "BF16": WeightFormat(16),
    "F16": WeightFormat(16),
    # 8 bits and a 16-bit scale per output channel (compressed-tensors, "FP8 dynamic").
    "FP8": WeightFormat(8, bytes_per_row=2, state_layers=True),
    "FP8_STATIC": WeightFormat(8, bytes_per_matrix=4, state_layers=True),
    # A scale per block of 128 x 128: 32 bits (DeepSeek) or 16 (Qwen), 0.02 % of the whole either way.
    "FP8_BLOCK": WeightFormat(8 + 32 / _GROUP**2, state_layers=True, group_columns=_GROUP),
    "INT8": WeightFormat(8, bytes_per_row=2),
    # Groups of 128 with a 16-bit scale and a packed 4-bit zero point.
    "AWQ": WeightFormat(4 + (16 + 4) / _GROUP, group_columns=_GROUP),
    # The same, the order of the input channels (32 bits each), and the bias that AutoGPTQ writes for every matrix.
    "GPTQ_INT4": WeightFormat(4 + (16 + 4) / _GROUP, bytes_per_column=4, bytes_per_row=2, group_columns=_GROUP),
    "GPTQ_INT8": WeightFormat(8 + (16 + 8) / _GROUP, bytes_per_column=4, bytes_per_row=2, group_columns=_GROUP),
    # compressed-tensors, symmetric: no zero points; the order of the input channels and the shape (two 64-bit numbers).
    "W4A16": WeightFormat(4 + 16 / _GROUP, bytes_per_column=4, bytes_per_matrix=16, group_columns=_GROUP),
    # Blocks of 16 with an 8-bit scale; two 32-bit scalars per matrix.
    "NVFP4": WeightFormat(4 + 8 / 16, bytes_per_matrix=8, state_layers=True, group_columns=16),
    # Blocks of 32 with an 8-bit scale.
    "MXFP4": WeightFormat(4 + 8 / 32, experts_only=True),  # padded to whole groups where it is cut
}
"""By quantization id of the catalog, upper case, `-` as `_`."""
_ALIASES = {
    "FP8_DYNAMIC": "FP8",
    "FP8_PER_CHANNEL": "FP8",
    "W8A8_FP8": "FP8",
    "AWQ_INT4": "AWQ",
    "GPTQ": "GPTQ_INT4",
    "W8A8": "INT8",
    "W8A8_INT8": "INT8",
    "INT4": "W4A16",
    "FP16": "F16",
}


@dataclass(frozen=True, slots=True)
class Matrices:
    """Some matrices together: their values and the sums of what formats count besides."""

    weights: int = 0
    rows: int = 0
    columns: int = 0
    count: int = 0

    def __add__(self, other: Matrices) -> Matrices:
        return Matrices(
            self.weights + other.weights, self.rows + other.rows, self.columns + other.columns, self.count + other.count
        )

    def times(self, number: int) -> Matrices:
        return Matrices(self.weights * number, self.rows * number, self.columns * number, self.count * number)

    def bytes(self, stored: WeightFormat) -> float:
        return (
            self.weights * stored.bits_per_weight / 8
            + self.rows * stored.bytes_per_row
            + self.columns * stored.bytes_per_column
            + self.count * stored.bytes_per_matrix
        )


@dataclass(frozen=True, slots=True)
class WeightShapes:
    """A model's matrices by how tensor parallelism treats them, and what is never quantized."""

    split: Matrices
    """Attention and dense feed-forward matrices cut by heads or by inner width."""
    key_value: Matrices
    """Key and value projections: cut by key-value heads, and copied when there are fewer heads than devices."""
    copied: Matrices
    """Compressing projections of latent attention: whole on every device."""
    experts: Matrices
    """Routed experts, cut by inner width."""
    state: Matrices
    """Projections of recurrent layers, as far as the parameter count tells: cut by heads."""
    latent_up: int
    """Values of the latent expansion (part of `split`), which vLLM keeps a second time in 16 bits when quantized."""
    table: int
    """Values of the embedding table, and as many of the output matrix unless tied."""
    tied: bool
    rest: int
    """Norms, biases, routers: 16 bits, whole on every device."""

    @property
    def half_weights(self) -> int:
        """Values that every format keeps in 16 bits."""
        return self.table * (1 if self.tied else 2) + self.rest


def weight_format(quantization: str) -> WeightFormat | None:
    """The format behind a catalog's quantization id, or None where it is not one of safetensors."""
    name = quantization.upper().replace("-", "_").replace(" ", "_")
    return FORMATS.get(_ALIASES.get(name, name))


def safetensors_bytes(model: ModelSpec, quantization: str) -> int:
    """Bytes of all tensors of `model` published as `quantization` (an id of `FORMATS`).

    Raises ValueError for a format that is not known here.
    """
    stored = weight_format(quantization)
    if stored is None:
        raise ValueError(f"{quantization} is not a safetensors format: {', '.join(FORMATS)}")
    shapes = weight_shapes(model)
    half = FORMATS["BF16"]
    if stored.bits_per_weight == 16:
        everything = shapes.split + shapes.key_value + shapes.copied + shapes.experts + shapes.state
        return (everything.weights + shapes.half_weights) * HALF_BYTES
    dense = half if stored.experts_only and shapes.experts.weights else stored
    state = stored if stored.state_layers else half
    attention = shapes.split + shapes.key_value + shapes.copied
    quantized = attention.bytes(dense) + shapes.experts.bytes(stored) + shapes.state.bytes(state)
    return round(quantized) + shapes.half_weights * HALF_BYTES


def weight_shapes(model: ModelSpec) -> WeightShapes:
    """Every matrix of `model` from its shape. What its published parameter count has besides is `rest`, or, in models
    with recurrent layers, whose shapes records do not hold, `state`.

    A feed-forward part has three matrices (gate, up, down) unless the parameter count has no room for them. Of a
    mixture of experts whose make-up is not known, or does not go into the count, all but attention and tables is
    experts.
    """
    key = _Shape(
        model.hidden_size,
        model.feed_forward_size,
        model.attention_heads,
        model.vocabulary_size,
        model.tied_embeddings,
        model.layers,
        model.experts,
        model.parameters,
        model.active_parameters,
    )
    return _weight_shapes(key)


class _Shape(NamedTuple):
    """What of a model decides about its matrices; hashable, which a record with its provenance is not."""

    hidden: int
    feed_forward: int | None
    heads: int
    vocabulary: int
    tied: bool
    layers: tuple[Layers, ...]
    experts: Experts | None
    parameters: int | None
    active_parameters: int | None


@lru_cache(maxsize=4096)
def _weight_shapes(model: _Shape) -> WeightShapes:
    shapes = _counted(model, feed_forward_matrices=3)
    if model.parameters is not None and _weights(shapes) > model.parameters:
        shapes = _counted(model, feed_forward_matrices=2)
    if model.parameters is not None and _weights(shapes) > model.parameters and model.experts is not None:
        # Not every layer has experts: how many do is not recorded, so what the count leaves is theirs.
        shapes = _counted(model._replace(experts=None, feed_forward=None), feed_forward_matrices=3)
    return shapes


def _weights(shapes: WeightShapes) -> int:
    matrices = shapes.split + shapes.key_value + shapes.copied + shapes.experts + shapes.state
    return matrices.weights + shapes.half_weights


def _counted(model: _Shape, feed_forward_matrices: int) -> WeightShapes:
    hidden, heads = model.hidden, model.heads
    layer_count = sum(group.count for group in model.layers)
    split, key_value, copied, latent_up = Matrices(), Matrices(), Matrices(), 0
    for group in model.layers:
        if isinstance(group, AttentionLayers):
            query = _matrix(heads * group.key_dim, hidden) + _matrix(hidden, heads * group.value_dim)
            pair = _matrix(group.kv_heads * group.key_dim, hidden) + _matrix(group.kv_heads * group.value_dim, hidden)
            split += query.times(group.count)
            key_value += pair.times(group.count if group.kv_heads else 0)
        elif isinstance(group, LatentAttentionLayers) and group.key_dim and group.value_dim:
            rank = group.query_rank
            up = heads * (group.key_dim - group.rope_dim + group.value_dim)
            query = _matrix(heads * group.key_dim, rank or hidden) + _matrix(hidden, heads * group.value_dim)
            split += (query + _matrix(up, group.latent_dim)).times(group.count)
            down = _matrix(group.latent_dim + group.rope_dim, hidden)
            copied += (down + (_matrix(rank, hidden) if rank else Matrices())).times(group.count)
            latent_up += up * group.latent_dim * group.count
    table = model.vocabulary * hidden
    tied = model.tied
    rest = (2 * layer_count + 1) * hidden
    experts = Matrices()
    known = (split + key_value + copied).weights + table * (1 if tied else 2) + rest
    mixture = model.experts
    if mixture is not None:
        sparse_layers = layer_count - mixture.dense_layers
        experts = _feed_forward(hidden, mixture.feed_forward_size, feed_forward_matrices)
        experts = experts.times(mixture.count * sparse_layers)
        if mixture.shared_feed_forward_size:
            shared = _feed_forward(hidden, mixture.shared_feed_forward_size, feed_forward_matrices)
            split += shared.times(sparse_layers)
        if mixture.dense_layers and model.feed_forward:
            dense = _feed_forward(hidden, model.feed_forward, feed_forward_matrices)
            split += dense.times(mixture.dense_layers)
        rest += hidden * mixture.count * sparse_layers
    elif model.active_parameters is not None and model.parameters is not None:
        experts = Matrices(weights=max(0, model.parameters - known))
    elif model.feed_forward:
        split += _feed_forward(hidden, model.feed_forward, feed_forward_matrices).times(layer_count)
    shapes = WeightShapes(split, key_value, copied, experts, Matrices(), latent_up, table, tied, rest)
    unexplained = (model.parameters or 0) - _weights(shapes)
    if unexplained <= 0:
        return shapes
    if any(isinstance(group, StateLayers) for group in model.layers):
        state, more = Matrices(weights=unexplained), 0
    else:
        state, more = Matrices(), unexplained
    return WeightShapes(split, key_value, copied, experts, state, latent_up, table, tied, rest + more)


def _matrix(rows: int, columns: int) -> Matrices:
    return Matrices(rows * columns, rows, columns, 1)


def _feed_forward(hidden: int, inner: int, matrices: int) -> Matrices:
    """Gate and up, or up alone, and down."""
    return _matrix(inner, hidden).times(matrices - 1) + _matrix(hidden, inner)
