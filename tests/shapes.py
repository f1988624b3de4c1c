"""Models that exist as shapes only: small ones of every kind that sizing tells apart, for files and predictions."""

from __future__ import annotations

from dataclasses import dataclass

from provision.domain.llm import (
    AttentionLayers,
    Experts,
    LatentAttentionLayers,
    Layers,
    ModelBuild,
    ModelSpec,
    Precision,
    Quantization,
)


@dataclass(frozen=True)
class Shape:
    model: ModelSpec
    quantization: str
    expanded_latent: bool = False

    @property
    def build(self) -> ModelBuild:
        """Its size is left to be computed; the writer's file has it to the byte."""
        from provision.gguf.tensor_list import tensor_types, tensors

        parts = tensors(self.model, expanded_latent=self.expanded_latent)
        kinds = tensor_types(self.model, parts, self.quantization)
        return ModelBuild(
            model=self.model.id,
            quantization=self.quantization,
            weights_bytes=sum(part.bytes_as(kind) for part, kind in zip(parts, kinds, strict=True)),
            precision=Precision.COMPUTED,
            expanded_cache=self.expanded_latent,
            source="test",
        )


def quantization(name: str) -> Quantization:
    """As the catalog has it, with bits that no test of exact bytes may depend on."""
    return Quantization(
        id=name, container="gguf", bits_per_weight=16.0, embedding_bits_per_weight=16.0, output_bits_per_weight=16.0,
        rank=0, provenance={"*": "test"},
    )  # fmt: skip


def model(
    architecture: str,
    *layers: Layers,
    hidden: int,
    heads: int,
    feed_forward: int,
    vocabulary: int = 8192,
    tied: bool = False,
    pattern: tuple[int, ...] = (),
    experts: Experts | None = None,
) -> ModelSpec:
    return ModelSpec(
        id=f"shape-of-{architecture}",
        name=f"Shape of {architecture}",
        family=architecture,
        architecture=architecture,
        hidden_size=hidden,
        feed_forward_size=feed_forward,
        attention_heads=heads,
        vocabulary_size=vocabulary,
        context_tokens_max=131_072,
        tied_embeddings=tied,
        layers=layers,
        layer_pattern=pattern,
        experts=experts,
        provenance={"*": "test"},
    )


def attention(count: int, kv_heads: int, head_dim: int, window: int | None = None) -> AttentionLayers:
    return AttentionLayers(count=count, kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim, window_tokens=window)


def latent(count: int, query_rank: int | None) -> LatentAttentionLayers:
    return LatentAttentionLayers(
        count=count, latent_dim=512, rope_dim=64, key_dim=192, value_dim=128, query_rank=query_rank
    )


_DEEPSEEK_EXPERTS = Experts(count=16, used=4, feed_forward_size=512, shared_feed_forward_size=512, dense_layers=1)

SHAPES = {
    "dense-gqa": Shape(
        model("llama", attention(4, 8, 128), hidden=1024, heads=32, feed_forward=3584, vocabulary=32_000), "Q4_K_M"
    ),
    "dense-tied-bias": Shape(
        model("qwen2", attention(6, 2, 64), hidden=896, heads=14, feed_forward=4864, tied=True), "Q8_0"
    ),
    "dense-head-norms": Shape(model("qwen3", attention(4, 8, 128), hidden=1024, heads=16, feed_forward=3072), "F16"),
    "dense-fused": Shape(model("phi3", attention(4, 10, 128), hidden=1280, heads=10, feed_forward=4480), "Q4_K_M"),
    "dense-one-norm": Shape(
        model("command-r", attention(4, 8, 128), hidden=1024, heads=8, feed_forward=2816, tied=True), "Q6_K"
    ),
    "dense-scaled": Shape(
        model("granite", attention(4, 8, 64), hidden=1024, heads=16, feed_forward=2560, tied=True), "Q5_K_M"
    ),
    "window-every-other": Shape(
        model("gemma2", attention(2, 4, 256, 1024), attention(2, 4, 256), hidden=1024, heads=8, feed_forward=4096,
              tied=True, pattern=(0, 1)), "Q4_0"
    ),
    "window-five-of-six": Shape(
        model("gemma3", attention(10, 1, 256, 512), attention(2, 1, 256), hidden=640, heads=4, feed_forward=2048,
              tied=True, pattern=(0, 0, 0, 0, 0, 1)), "Q8_0"
    ),
    "window-three-of-four": Shape(
        model("cohere2", attention(6, 8, 128, 1024), attention(2, 8, 128), hidden=1024, heads=8, feed_forward=2816,
              tied=True, pattern=(0, 0, 0, 1)), "Q8_0"
    ),
    "experts": Shape(
        model("qwen3moe", attention(4, 4, 128), hidden=1024, heads=32, feed_forward=3072,
              experts=Experts(count=32, used=8, feed_forward_size=256)), "Q4_K_M"
    ),
    "experts-eight": Shape(
        model("llama", attention(4, 8, 128), hidden=1024, heads=8, feed_forward=1792,
              experts=Experts(count=8, used=2, feed_forward_size=1792)), "Q4_K_M"
    ),
    "experts-window-sinks": Shape(
        model("gpt-oss", attention(2, 8, 64, 128), attention(2, 8, 64), hidden=1440, heads=64, feed_forward=1440,
              pattern=(0, 1), experts=Experts(count=8, used=4, feed_forward_size=1440)), "MXFP4"
    ),
    "latent": Shape(
        model("deepseek2", latent(4, 384), hidden=1024, heads=16, feed_forward=2048, experts=_DEEPSEEK_EXPERTS), "Q8_0"
    ),
    "latent-expanded": Shape(
        model("deepseek2", latent(4, 384), hidden=1024, heads=16, feed_forward=2048, experts=_DEEPSEEK_EXPERTS),
        "Q8_0",
        expanded_latent=True,
    ),
}  # fmt: skip
"""By what each is there for. Vocabularies are small where nothing depends on them: a loader reads every token."""
