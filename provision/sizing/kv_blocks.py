"""vLLM's pool of KV cache blocks: how many there are, what a request takes of them, how long a request can be.

All requests draw blocks from one pool. A block holds a fixed number of tokens for one group of layers; layers of the
same kind form groups of equal size, and every group's block takes the same bytes, so that any block can serve any
group. Models with several kinds of layers pay for that in padding. From vllm/v1/core/kv_cache_utils.py
(get_kv_cache_groups, unify_kv_cache_spec_page_size, get_max_concurrency_for_kv_cache_config, get_kv_cache_configs),
kv_cache_interface.py (max_memory_usage_bytes of each kind) and platforms/interface.py (_align_hybrid_block_size),
version 0.32.

Left out: layouts that pack pages of different sizes into one block, draft models, encoders, context parallelism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from provision.domain.llm import AttentionLayers, LatentAttentionLayers, Layers


class CacheShape(NamedTuple):
    """What decides about blocks."""

    layers: tuple[Layers, ...]
    bytes_per_value: float
    block_tokens: int
    state_blocks: int
    in_flight_tokens: int
    """Tokens that are scheduled but not settled: a sliding window keeps them besides its own."""
    tensor_parallel: int


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share block tables: `tables` of them, each over the same number of layers."""

    kind: Literal["full", "window", "state"]
    tables: int
    block_tokens: int
    limit_tokens: int | None = None
    """Of a window: itself, less one, and what is in flight. Of state: blocks of one request."""

    def blocks(self, context_tokens: int) -> int:
        """Blocks that one request of `context_tokens` holds at most, over all tables."""
        if self.kind == "state":
            return self.tables * (self.limit_tokens or 1)
        if self.kind == "full" or self.limit_tokens is None:
            return self.tables * -(-context_tokens // self.block_tokens)
        # One more: a window need not begin where a block does.
        return self.tables * (-(-min(self.limit_tokens, context_tokens) // self.block_tokens) + 1)


@dataclass(frozen=True, slots=True)
class BlockPool:
    """The pool of one device; under tensor parallelism all devices have the same number of blocks."""

    bytes_per_block: int
    block_tokens: int
    groups: tuple[Group, ...]

    def blocks(self, context_tokens: int) -> int:
        """Of one request."""
        return sum(group.blocks(context_tokens) for group in self.groups)

    def state_blocks(self) -> int:
        """Of one request, for recurrent state."""
        return sum(group.blocks(1) for group in self.groups if group.kind == "state")

    def count(self, available_bytes: int) -> int:
        """Blocks in `available_bytes`. One of them is never handed out (the null block)."""
        return max(0, available_bytes // self.bytes_per_block)

    def capacity_tokens(self, blocks: int, context_tokens: int) -> int:
        """What the engine prints as "KV cache size"."""
        return int(blocks / self.blocks(context_tokens) * context_tokens)

    def context_tokens_max(self, blocks: int, limit_tokens: int) -> int:
        """Longest request that the engine starts with, at most `limit_tokens`; 0 where not even one token goes."""
        usable = blocks - 1
        full = [group for group in self.groups if group.kind == "full"]
        if len(full) == 1:
            # Once every window is full, only this group grows.
            windows = [group.limit_tokens or 0 for group in self.groups if group.kind == "window"]
            steady = self.blocks(max(windows, default=1)) - full[0].blocks(max(windows, default=1))
            longest = (usable - steady) // full[0].tables * full[0].block_tokens
            if longest >= max(windows, default=0):
                return max(0, min(limit_tokens, longest))
        low, high = 0, limit_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks(middle) <= usable else (low, middle - 1)
        return low


@lru_cache(maxsize=4096)
def block_pool(shape: CacheShape) -> BlockPool | None:
    """The pool of a model, or None where it keeps no cache at all."""
    per_token = [_bytes_per_token(group, shape) for group in shape.layers]
    attention = [(g, b) for g, b in zip(shape.layers, per_token, strict=True) if b]
    # Layers that only multiply are written as state of no bytes.
    states = [(group.count, size) for group in shape.layers if (size := _state_bytes(group, shape))]
    if not attention and not states:
        return None
    block_tokens = shape.block_tokens
    if attention and states:
        # The block grows until a page of attention holds a whole state.
        state_bytes = max(size for _, size in states)
        step = block_tokens * max(b for _, b in attention)
        block_tokens *= max(1, -(-state_bytes // step))
    pages = [block_tokens * b for _, b in attention]
    kinds = {_window(g) for g, _ in attention}
    if not states and len(kinds) == 1:
        # One kind: a single table over all layers, whatever their widths.
        total = sum(g.count * page for (g, _), page in zip(attention, pages, strict=True))
        return BlockPool(total, block_tokens, (_group(attention[0][0], 1, block_tokens, shape),))
    page = max(pages) if pages else max(size for _, size in states)
    # Layers alike in width and window share tables; a narrower layer takes more tokens to a page where that divides.
    alike: dict[tuple[int | None, int], list[Layers]] = {}
    for (group, _), own in zip(attention, pages, strict=True):
        tokens = block_tokens * (page // own) if page % own == 0 else block_tokens
        alike.setdefault((_window(group), tokens), []).append(group)
    counts = [sum(g.count for g in groups) for groups in alike.values()]
    if states:
        counts.append(sum(count for count, _ in states))
    size = _group_size(counts)
    tables = [
        _group(groups[0], -(-count // size), tokens, shape)
        for ((_, tokens), groups), count in zip(alike.items(), counts, strict=False)
    ]
    if states:
        tables.append(Group("state", -(-counts[-1] // size), block_tokens, shape.state_blocks))
    return BlockPool(size * page, block_tokens, tuple(tables))


def _bytes_per_token(group: Layers, shape: CacheShape) -> int:
    """Of one layer on one device. Latent vectors are not cut by heads; heads fewer than devices are copied; layers that
    read the cache of others have no heads of their own.
    """
    if isinstance(group, AttentionLayers):
        heads = max(min(1, group.kv_heads), group.kv_heads // shape.tensor_parallel)
        return round(heads * (group.key_dim + group.value_dim) * shape.bytes_per_value)
    if isinstance(group, LatentAttentionLayers):
        return round((group.latent_dim + group.rope_dim) * shape.bytes_per_value)
    return 0


def _state_bytes(group: Layers, shape: CacheShape) -> int:
    if isinstance(group, LatentAttentionLayers):
        return 0
    return -(-group.state_bytes_per_sequence // shape.tensor_parallel)


def _window(group: Layers) -> int | None:
    return group.window_tokens if isinstance(group, AttentionLayers) else None


def _group(group: Layers, tables: int, block_tokens: int, shape: CacheShape) -> Group:
    window = _window(group)
    if window is None:
        return Group("full", tables, block_tokens)
    return Group("window", tables, block_tokens, window - 1 + shape.in_flight_tokens)


def _group_size(counts: Sequence[int]) -> int:
    """Layers to a table: the fewest of any kind, unless all kinds are about as many; the rest is padding."""
    least, most = min(counts), max(counts)
    return most if most < least * 1.5 else least
