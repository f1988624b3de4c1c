"""From a header's metadata to what every layer keeps: heads, windows, latents, recurrent state."""

from __future__ import annotations

from dataclasses import replace

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, Layers, StateLayers
from provision.errors import InvalidFile
from provision.gguf import architectures
from provision.gguf.header import HINT, Header, Skipped

_MOST_LAYERS = 1024
_MOST = 2**40
_F32_BYTES = 4
NO_GUESS_HINT = "provision estimate MODEL with a model of `provision catalog list models`"


class Metadata:
    """The numbers of one architecture, checked; every lookup that fails is one line."""

    def __init__(self, header: Header) -> None:
        self._header = header
        architecture = header.architecture
        if architecture is None:
            raise InvalidFile(f"{header.label} names no architecture", hint=HINT)
        if architecture not in architectures.KNOWN:
            raise InvalidFile(
                f"{header.label}: the architecture '{architecture}' is not known here, so its cache is not guessed",
                hint=NO_GUESS_HINT,
                code="unknown-architecture",
            )
        self.architecture = architecture
        self.layer_count = self.number("block_count", most=_MOST_LAYERS)

    def number(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """A number that holds for the whole model; of a list, its largest."""
        value = self._header.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, tuple) and value:
            value = max(value)
        return self._checked(key, value, least, most)

    def optional(self, key: str) -> int | None:
        """As `number`; None where the file does not say, or says zero."""
        return self.number(key, 0, least=0) or None

    def by_layer(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """A number, or a list with one for every layer; 0 is allowed."""
        value = self._header.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, tuple):
            return (self._checked(key, value, 0, _MOST),) * self.layer_count
        if len(value) < self.layer_count:
            raise self._unusable(key, f"has {len(value)} values for {self.layer_count} layers")
        return tuple(self._checked(key, item, 0, _MOST) for item in value[: self.layer_count])

    def flags(self, key: str) -> tuple[bool, ...] | None:
        """A list of yes and no, one for every layer; None where the file has no such list."""
        value = self._header.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return None
        if len(value) < self.layer_count:
            raise self._unusable(key, f"has {len(value)} values for {self.layer_count} layers")
        return tuple(bool(item) for item in value[: self.layer_count])

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self._header.metadata

    def _checked(self, key: str, value: object, least: int, most: int) -> int:
        if value is None:
            raise self._unusable(key, "is missing")
        if not isinstance(value, int) or isinstance(value, bool):
            shown = f"a list of {value.length:,}" if isinstance(value, Skipped) else repr(value)
            raise self._unusable(key, f"is {shown}, not a number")
        if not least <= value <= most:
            raise self._unusable(key, f"is {value}")
        return value

    def _unusable(self, key: str, what: str) -> InvalidFile:
        return InvalidFile(
            f"{self._header.label}: cannot size architecture '{self.architecture}': its '{key}' {what}",
            hint=NO_GUESS_HINT,
            code="unknown-architecture",
        )


def layers_of(metadata: Metadata) -> tuple[tuple[Layers, ...], tuple[int, ...]]:
    """Groups of layers that keep the same, in order of appearance, and one period of the order they come in.

    Layers of multi-token prediction at the end are left out: llama.cpp does not load them for plain decoding. A layer
    without attention or recurrence is a state of 0 bytes; one that attends over the cache of an earlier layer has 0
    heads for keys and values.
    """
    kinds = _layer_kinds(metadata)[: main_layer_count(metadata)]
    unique = tuple(dict.fromkeys(kinds))
    groups = tuple(replace(kind, count=kinds.count(kind)) for kind in unique)
    if len(unique) == 1:
        return groups, ()
    order = [unique.index(kind) for kind in kinds]
    return groups, tuple(order[: _period(order)])


def main_layer_count(metadata: Metadata) -> int:
    """Repeating layers without those of multi-token prediction at the end."""
    return max(1, metadata.layer_count - (metadata.optional("nextn_predict_layers") or 0))


def _layer_kinds(metadata: Metadata) -> list[Layers]:
    """What each layer keeps, as a group of one."""
    architecture, count = metadata.architecture, metadata.layer_count
    recurrence = architectures.RECURRENT.get(architecture)
    nothing = StateLayers(count=1, state_bytes_per_sequence=0)
    if recurrence == "all":
        return [_state(metadata)] * count
    attention = _attention_kinds(metadata)
    keeps_heads = [not isinstance(kind, AttentionLayers) or kind.kv_heads > 0 for kind in attention]
    if recurrence is None:
        has_heads = _kv_heads(metadata)
        return [kind if heads else nothing for kind, heads in zip(attention, has_heads, strict=True)]
    state = _state(metadata)
    if recurrence == "both":
        beside = state.state_bytes_per_sequence
        return [
            replace(kind, state_bytes_per_sequence=beside) if isinstance(kind, AttentionLayers) else kind
            for kind in attention
        ]
    if recurrence == "interval":
        recurrent = metadata.flags("attention.recurrent_layers")
        if recurrent is None:
            interval = metadata.number("full_attention_interval", 4)
            last = main_layer_count(metadata)
            recurrent = tuple(i < last and (i + 1) % interval != 0 for i in range(count))
    else:
        recurrent = tuple(not keeps for keeps in keeps_heads)
        if recurrence == "neither":
            feed_forward = metadata.by_layer("feed_forward_length")
            recurrent = tuple(r and not size for r, size in zip(recurrent, feed_forward, strict=True))
    return [
        state if is_recurrent else kind if keeps else nothing
        for is_recurrent, kind, keeps in zip(recurrent, attention, keeps_heads, strict=True)
    ]


def _attention_kinds(metadata: Metadata) -> list[AttentionLayers | LatentAttentionLayers]:
    hidden, heads = metadata.number("embedding_length"), metadata.number("attention.head_count")
    kv_heads = _kv_heads(metadata)
    latent = _latent(metadata)
    if latent is not None:
        empty = AttentionLayers(count=1, kv_heads=0, key_dim=0, value_dim=0)
        return [latent if heads else empty for heads in kv_heads]
    key_dim = metadata.number("attention.key_length", hidden // heads or None)
    value_dim = metadata.number("attention.value_length", key_dim)
    window_key_dim = metadata.number("attention.key_length_swa", key_dim)
    window_value_dim = metadata.number("attention.value_length_swa", value_dim)
    tokens, windowed = _windows(metadata)
    own_cache = _own_cache(metadata)
    return [
        AttentionLayers(
            count=1,
            kv_heads=kv if index < own_cache else 0,
            key_dim=window_key_dim if in_window else key_dim,
            value_dim=window_value_dim if in_window else value_dim,
            window_tokens=tokens if in_window else None,
        )
        for index, (kv, in_window) in enumerate(zip(kv_heads, windowed, strict=True))
    ]


def _kv_heads(metadata: Metadata) -> tuple[int, ...]:
    """By layer; without a number of their own as many as there are heads."""
    key = "attention.head_count_kv" if metadata.has("attention.head_count_kv") else "attention.head_count"
    return metadata.by_layer(key)


def _windows(metadata: Metadata) -> tuple[int | None, tuple[bool, ...]]:
    """Size of the sliding window, and which layers see no more than that."""
    none = (False,) * metadata.layer_count
    architecture = metadata.architecture
    if architecture in architectures.PATTERN_IN_FILE:
        flags = metadata.flags("attention.sliding_window_pattern")
        if flags is None:
            period = metadata.number("attention.sliding_window_pattern")
            flags = tuple(index % period < period - 1 for index in range(metadata.layer_count))
        return metadata.number("attention.sliding_window"), flags
    window = architectures.WINDOWS.get(architecture)
    if window is None or window.only_of_layers not in (None, main_layer_count(metadata)):
        return None, none
    tokens = metadata.number("attention.sliding_window", window.default_tokens or 0, least=0)
    if not tokens:
        return None, none
    flags = metadata.flags("attention.sliding_window_pattern")
    if flags is None:
        period = metadata.number("attention.sliding_window_pattern", window.period)
        full = 0 if window.full_first else period - 1
        flags = tuple(index % period != full for index in range(metadata.layer_count))
    return window.fixed_tokens or tokens, flags


def _own_cache(metadata: Metadata) -> int:
    """Layers from the first on with a cache of their own."""
    first = architectures.FIRST_WITH_CACHE.get(metadata.architecture)
    shared = metadata.number("attention.shared_kv_layers", 0, least=0, most=metadata.layer_count)
    return metadata.layer_count - shared if first is None else first


def has_split_latent(metadata: Metadata) -> bool:
    """Whether the file has the matrices split (April 2025 and later), so that llama.cpp keeps the latent vector."""
    return metadata.has("attention.key_length_mla") and metadata.has("attention.value_length_mla")


def _latent(metadata: Metadata) -> LatentAttentionLayers | None:
    """None for other architectures, and for models of these that are without a latent vector."""
    if metadata.architecture not in architectures.LATENT | {"kimi-linear"}:
        return None
    latent = metadata.optional("attention.kv_lora_rank")
    if latent is None:
        return None
    rope = metadata.number("rope.dimension_count", 0, least=0)
    if has_split_latent(metadata):  # llama.cpp keeps keys of `key_length`: latent + rope part
        rope = max(0, metadata.number("attention.key_length", latent + rope) - latent)
    suffix = "_mla" if has_split_latent(metadata) else ""
    return LatentAttentionLayers(
        count=1,
        latent_dim=latent,
        rope_dim=rope,
        key_dim=metadata.number(f"attention.key_length{suffix}"),
        value_dim=metadata.number(f"attention.value_length{suffix}"),
        query_rank=metadata.optional("attention.q_lora_rank"),
    )


def _state(metadata: Metadata) -> StateLayers:
    """Bytes of one layer and sequence, all in f32: the last columns of the convolution, and the state itself.

    Source: `n_embd_r` and `n_embd_s` of llama-hparams.cpp.
    """
    hidden = metadata.number("embedding_length")
    head_size = metadata.optional("wkv.head_size")
    short = metadata.optional("shortconv.l_cache")
    if head_size is not None:
        shifted, state = metadata.number("token_shift_count", 2) * hidden, hidden * head_size
    elif short is not None:
        shifted, state = hidden * (short - 1), 0
    elif metadata.architecture == "kimi-linear":
        head = metadata.number("kda.head_dim")
        inner = metadata.number("attention.head_count") * head
        shifted, state = 3 * (metadata.number("ssm.conv_kernel") - 1) * inner, head * inner
    else:
        inner, size = metadata.number("ssm.inner_size"), metadata.number("ssm.state_size")
        groups = metadata.number("ssm.group_count", 0, least=0)
        shifted = (metadata.number("ssm.conv_kernel") - 1) * (inner + 2 * groups * size)
        state = size * inner
    return StateLayers(count=1, state_bytes_per_sequence=_F32_BYTES * (shifted + state))


def _period(order: list[int]) -> int:
    """Length of the shortest beginning that, repeated, gives the whole list (its last round may be cut)."""
    return next(p for p in range(1, len(order) + 1) if all(order[i] == order[i - p] for i in range(p, len(order))))
