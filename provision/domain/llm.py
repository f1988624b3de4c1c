"""Models, their builds, engines, and how efficiently engines use hardware: catalog records."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Literal

from provision.domain.record import record


@record
class AttentionLayers:
    """Layers that keep a key and a value per token: full attention, or a sliding window."""

    kind: Literal["attention"] = "attention"
    count: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window_tokens: int | None = None
    state_bytes_per_sequence: int = 0
    """Of a recurrent branch beside the attention, in each of these layers (Falcon-H1)."""


@record
class LatentAttentionLayers:
    """Multi-head latent attention (DeepSeek): one compressed vector per token and layer."""

    kind: Literal["latent"] = "latent"
    count: int
    latent_dim: int
    rope_dim: int
    key_dim: int | None = None
    """Of one head once expanded, rope part included: what engines without a latent path store per token."""
    value_dim: int | None = None
    query_rank: int | None = None
    """Of the query's own compression; None where the query is projected directly."""


@record
class StateLayers:
    """Recurrent layers: a state of fixed size per sequence."""

    kind: Literal["state"] = "state"
    count: int
    state_bytes_per_sequence: int


Layers = AttentionLayers | LatentAttentionLayers | StateLayers


@record
class Experts:
    """The routed feed-forward part of a mixture of experts."""

    count: int
    """Routed experts per layer."""
    used: int
    """Routed experts that one token goes through."""
    feed_forward_size: int
    """Inner width of one routed expert."""
    shared_feed_forward_size: int = 0
    """Inner width of what every token goes through besides, all shared experts together."""
    dense_layers: int = 0
    """Leading layers with an ordinary feed-forward part of `ModelSpec.feed_forward_size`."""


class ModelTask(StrEnum):
    TEXT = "text"
    EMBEDDING = "embedding"


ENCODERS = frozenset(
    {
        "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "modern-bert",
        "gemma-embedding",
    }
)  # fmt: skip
"""Graphs that see all tokens at once, for which llama.cpp makes no cache (llama-model.cpp, create_memory)."""


@record
class ModelSpec:
    id: str
    """The name people type: the Ollama tag where there is one, e.g. `llama3.1:8b`."""
    name: str
    family: str
    architecture: str | None = None
    """llama.cpp's name for the graph (`general.architecture`), e.g. `qwen2` or `deepseek2`."""
    task: ModelTask = ModelTask.TEXT
    aliases: tuple[str, ...] = ()
    parameters: int | None = None
    active_parameters: int | None = None
    """Parameters read for one token; None for dense models (all of them)."""
    hidden_size: int
    feed_forward_size: int | None = None
    attention_heads: int
    vocabulary_size: int
    context_tokens_max: int
    tied_embeddings: bool
    layers: tuple[Layers, ...]
    layer_pattern: tuple[int, ...] = ()
    """One period of the order in which layers take their kind, as indices into `layers`, e.g. (0, 0, 0, 0, 0, 1) for
    five windows and one full attention; empty where there is one kind, or the order is not known."""
    experts: Experts | None = None
    license: str | None = None
    hugging_face_repo: str | None = None
    provenance: dict[str, str]
    notes: str | None = None

    @property
    def layer_count(self) -> int:
        return sum(group.count for group in self.layers)

    @property
    def keeps_cache(self) -> bool:
        """Whether engines keep keys and values: not for encoders. Embedding models may be decoders (Qwen3 Embedding),
        which get a cache though nothing is generated."""
        return self.architecture not in ENCODERS


@record
class Quantization:
    id: str
    container: Literal["gguf", "safetensors"]
    bits_per_weight: float
    """Nominal mean; never used where a file size is known."""
    embedding_bits_per_weight: float
    """Of the input embedding table, which stays on the host in llama.cpp and is read one row per token."""
    output_bits_per_weight: float
    """Of the output matrix where it is not tied to the embedding table; k-quant mixes keep it in a better type."""
    rank: int
    """Order of quality, higher is nearer to the original."""
    provenance: dict[str, str]


class QualityMetric(StrEnum):
    PERPLEXITY_INCREASE_PERCENT = "perplexity_increase_percent"
    """Of text the model reads, against the same model in 16 bits; lower is better."""
    KL_DIVERGENCE = "kl_divergence"
    """Mean, of the next token's distribution from that of the 16-bit model; lower is better."""
    SAME_TOP_TOKEN_PERCENT = "same_top_token_percent"
    """How often the most likely next token is that of the 16-bit model; higher is better."""


@record
class QualityLoss:
    """What one quantization cost one model, as somebody measured it."""

    quantization: str
    metric: QualityMetric
    model: str
    """Catalog id of the model that was measured."""
    importance_matrix: str | None = None
    """The text it was made from, "none", or None where the source does not say."""
    value: float
    stderr: float | None = None
    source: str


class Precision(StrEnum):
    EXACT = "exact"
    """A published file's size, to the byte."""
    COMPUTED = "computed"
    """Tensor list x type sizes, exact for standard quantization mixes; metadata of some MB is left out."""
    ROUNDED = "rounded"


@record
class WeightLayout:
    """Bytes of one file's tensors by where an engine can put them: summed from its tensor list."""

    embedding_bytes: int
    """Input embedding table."""
    output_bytes: int
    """Output matrix and what else follows the last layer; of a tied model only the latter."""
    layer_bytes: tuple[int, ...]
    """Every repeating layer in order, all its tensors."""
    expert_bytes: tuple[int, ...] = ()
    """Of these, the routed experts' matrices; empty for dense models."""


@record
class ModelBuild:
    model: str
    quantization: str
    weights_bytes: int
    precision: Precision
    ollama_tag: str | None = None
    """Tag that pulls exactly this build."""
    ollama_tag_source: str | None = None
    """Where the tag is from, when `source` is not a listing that shows it."""
    artifact: str | None = None
    """File or repository the size belongs to."""
    expanded_cache: bool = False
    """A latent-attention file from before the split matrices (April 2025): llama.cpp then stores whole keys and values
    of every head, not the latent vector."""
    layout: WeightLayout | None = None
    """From the file's own header; None: computed from the shape and the quantization's mix."""
    source: str


@record
class ReleaseArchive:
    architecture: str
    """As the kernel names it: x86_64 or aarch64."""
    file: str
    sha256: str | None = None
    """None: the checksum list beside the release is used."""


@record
class ContextTier:
    """Default context of an engine that chooses it by the total memory of all accelerators together."""

    from_memory_bytes: int
    context_tokens: int


@record
class BatchTier:
    """Tokens per prefill step that an engine takes by itself for longer contexts, where it sees room for them."""

    above_context_tokens: int
    """Of all slots together."""
    batch_tokens: int
    memory_share: float
    """Only when the predicted memory is at most this share of what is free."""
    surcharge_bytes: int
    """What the engine reckons for the step on top of its prediction."""


@record
class ServingTier:
    """What an engine takes for one step by itself, by the memory of one device."""

    from_memory_bytes: int
    step_tokens: int
    """Tokens of all requests in one step; its activations are reserved at start."""
    sequences: int
    """Requests in one step; their logits are reserved at start."""


@record
class PagedCache:
    """Arithmetic of an engine that fills its share of the memory with cache blocks of fixed size (vLLM)."""

    block_tokens: int
    host_block_tokens: int
    """The same where the engine runs on a CPU."""
    tiers: tuple[ServingTier, ...]
    """Largest first; the last one holds for the rest."""
    smallest_tier_names: tuple[str, ...] = ()
    """Words in names of devices that get the smallest tier whatever their memory."""
    host_tier: ServingTier
    steps_in_flight: int
    """Steps whose tokens a sliding window still holds, besides the window."""
    state_blocks: int
    """Blocks that one sequence holds in each group of recurrent layers."""
    scratch_bytes_per_logit: float
    """Of the sampler, for each sequence and word of the vocabulary."""
    graph_bytes: int
    """CUDA graphs at the default capture sizes: for any model, ..."""
    graph_bytes_per_layer: int
    """... for each layer, ..."""
    graph_bytes_per_expert_layer: int
    """... and for each layer with routed experts."""
    parallel_bytes: int
    """What each device holds besides `EngineSpec.device_overhead_bytes` under tensor parallelism."""
    host_bytes: int
    """What the engine's process holds besides the weights where it runs on a CPU."""
    driver_bytes: int
    """Of a dedicated NVIDIA card's memory, kept by the driver: the engine's share is of the rest."""


@record
class EngineSpec:
    """Defaults and memory policy of one engine version: one record, used by sizing, roles and documentation alike."""

    id: str
    version: str
    containers: tuple[str, ...]
    multi_device: Literal["none", "layer_split", "tensor_parallel"]
    partial_offload: bool
    """Whether layers may stay in host memory."""
    default_context_tokens: int | None = None
    """What the engine takes when nobody sets a context; None: `context_tiers`, or the model's training context."""
    context_tiers: tuple[ContextTier, ...] = ()
    """Largest first; the last one holds for the rest. Capped by the training context."""
    fit_context_tokens_min: int | None = None
    """The engine lowers a context that nobody set until the model fits, down to this; None: it never does."""
    default_slots: int = 1
    """Requests served at the same time when nobody sets it; each has a context of its own."""
    serial_architectures: tuple[str, ...] = ()
    """Graphs that this version serves one request at a time, whatever is set."""
    predicted_share: float | None = None
    """The engine predicts memory before it loads: at most this share of one device's free memory puts a model there
    alone, and at most this share of what is free loads it beside others. None: it does neither."""
    spreads: bool = False
    """Splits a model over all devices that it is given, also where fewer would hold it."""
    batch_tiers: tuple[BatchTier, ...] = ()
    """Largest first; below them `batch_tokens`."""
    embedding_batch_tokens: int | None = None
    """Tokens per step of embedding models; None: `batch_tokens`."""
    experts_on_host: bool = False
    """What does not fit of a mixture of experts: experts go to host memory before whole layers do."""
    draft_models: bool = False
    """Whether any small model can be given as a draft."""
    memory_fraction: float | None = None
    """Share of a device's total memory that the engine takes (vLLM)."""
    device_overhead_bytes: int
    """Runtime context per device (CUDA context, libraries)."""
    device_reserve_bytes: int
    """Left free by the engine on each device."""
    reserve_holds_overhead: bool = False
    """Whether the reserve is what the engine sets aside for the runtime's context; else it is kept besides: llama.cpp's
    fit takes its margin from what is free once the context exists."""
    batch_tokens: int
    """Tokens per prefill step (llama.cpp's ubatch); sets the compute buffer."""
    graph: Literal["llama.cpp-2024", "llama.cpp-2025", "llama.cpp", "ik_llama.cpp"] = "llama.cpp"
    """Generation of llama.cpp's compute graph, which sets the compute buffers: until and from mid 2025 (fused gated
    unit), the current one (16-bit mask; dated 2026), or the fork's."""
    flash_attention: bool = True
    """Whether attention runs without storing all scores."""
    logits_of_all_tokens: bool = False
    """Whether a prefill step has room for the logits of all its tokens; servers of 2026 keep those of one token per
    slot."""
    latent_cache_twice: bool = False
    """Whether latent attention keeps its vector as key and again as value: llama.cpp before 2026."""
    unified_cache: bool = True
    """Whether all slots share one cache; else each has its own, and its own sliding windows."""
    kv_cache_types: tuple[str, ...] = ("f16", "q8_0", "q4_0")
    """Types of `Workload.kv_cache_type` that it knows; `f16` stands for 16 bits, F16 or BF16."""
    paged: PagedCache | None = None
    """None: caches are allocated per slot."""
    accelerator_vendors: tuple[str, ...] = ()
    """Whose accelerators it runs on; empty: any."""
    archives: tuple[ReleaseArchive, ...] = ()
    provenance: dict[str, str]

    @property
    def device_kept_bytes(self) -> int:
        """What a model cannot have of each device it uses: the runtime's context and what the engine leaves free."""
        if self.reserve_holds_overhead:
            return max(self.device_overhead_bytes, self.device_reserve_bytes)
        return self.device_overhead_bytes + self.device_reserve_bytes


SpeedTerm = Literal[
    "whole", "memory", "cache", "compute", "layer", "experts", "step", "hop", "sync", "batch", "sequence", "request",
    "prompt_compute", "prompt_attention", "prompt_memory", "prompt_layer", "prompt_sync",
    "prompt_request",
]  # fmt: skip


@record
class Efficiency:
    """Factors of one term of the speed model for one kind of circumstance, fitted on measurements.

    A step's time is a sum of terms, each a physical quantity in seconds (bytes over bandwidth, operations over rate,
    layers, ...) times its factors, one from each table that knows the circumstance (`provision/sizing/efficiency.py`).
    """

    term: SpeedTerm
    scope: str
    """What the keys name: `all`, or one or more of the fields of `Kernel` joined by `+`, e.g. `backend+family`.
    `bandwidth^device_class`: the values are exponents of the bandwidth over 300 GB/s."""
    factors: dict[str, float]
    samples: dict[str, int]
    """Independent cells (device, source, model, build) behind each factor."""
    source: str


@record
class SpeedInterval:
    """Measured over expected at the 10th and the 90th percentile, on rows whose source or device was left out."""

    measure: Literal["decode", "prefill", "together"]
    group: str
    """As `interval_group` of provision/sizing/efficiency.py names it."""
    low_ratio: float
    high_ratio: float
    samples: int
    sources: int
    """Independent pairs of source and device."""
    source: str


@record
class Source:
    id: str
    title: str
    url: str | None = None
    kind: Literal["vendor_spec", "vendor_config", "file_size", "measured", "derived", "community"]
    checked_on: date


@record
class Price:
    """What one card was offered for on one day."""

    hardware: str
    """Catalog id of an accelerator."""
    on: date
    kind: Literal["launch", "street", "used"]
    usd_low: float | None = None
    usd_high: float | None = None
    note: str | None = None
    source: str


@record
class Tier:
    """A class of machine people ask for by name."""

    id: str
    title: str
    users: str
    accelerators: tuple[str, ...]
    """Catalog ids, one per card."""
    alternatives: tuple[tuple[str, ...], ...] = ()
    memory_bytes: int
    memory_platform: str | None = None
    disk_bytes: int | None = None
    cpu: str | None = None
    provenance: dict[str, str]


@record
class Claim:
    """What somebody says runs on a tier, kept as a claim beside what is computed."""

    tier: str | None = None
    """None: said of no hardware in particular."""
    model: str | None = None
    quantization: str | None = None
    claimed_tokens_per_s: float | None = None
    quality_of: tuple[str, ...] = ()
    """Quantizations that a claim about quality is about."""
    text: str
    verdict: str | None = None
    source: str
    verdict_source: str | None = None


@record
class MemoryPlatform:
    """Host memory of a kind of machine: what a planned machine's RAM can stream."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    bandwidth_bytes_per_s: float
    """Theoretical peak: channels x 8 bytes x transfer rate."""
    provenance: dict[str, str]
