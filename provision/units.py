"""Base units inside, human units at the edge.

Inside: bytes, bytes/s, FLOP/s, tokens, tokens/s, seconds, watts. `parse_*` reads what people type,
`format_*` prints it.
"GB" is 10^9 and "GiB" is 2^30, always.
"""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip
_TOKEN_UNITS = {"": 1, "k": 1024, "ki": 1024, "m": 1024**2}
_NUMBER = re.compile(r"\s*([0-9]+(?:[._][0-9]+)?)\s*([a-zA-Z]*)\s*")


def _parse(text: str, units: dict[str, int], kind: str, example: str) -> int:
    match = _NUMBER.fullmatch(text)
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"'{text}' is not a {kind}; write it like {example}")
    value = float(match[1].replace("_", ""))
    return round(value * unit)


def parse_bytes(text: str) -> int:
    """Bytes from `24GiB`, `24GB` or a plain number of bytes. Raises ValueError with an example."""
    return _parse(text, _BYTE_UNITS, "size", "24GiB or 24GB")


def parse_tokens(text: str) -> int:
    """Tokens from `8192`, `8k` (8,192: context lengths are counted in powers of two) or `1m`. Raises ValueError."""
    return _parse(text, _TOKEN_UNITS, "number of tokens", "8192 or 8k")


def format_bytes(value: float | None) -> str:
    """`19.85 GiB`; binary units, because memory is sold and reported in them. None is "unknown"."""
    if value is None:
        return "unknown"
    sign, value = ("-", -value) if value < 0 else ("", value)
    for size, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value >= size:
            return f"{sign}{value / size:.2f} {name}"
    return f"{sign}{value:.0f} B"


def format_tokens(value: int | None) -> str:
    """`8k` for whole multiples of 1,024, else the number with separators."""
    if value is None:
        return "unknown"
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else f"{value:,}"


def format_tokens_per_s(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def format_seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min"


def format_bandwidth(value: float | None) -> str:
    """`1,008 GB/s`: vendors give bandwidth in decimal units."""
    return "unknown" if value is None else f"{value / 1e9:,.0f} GB/s"
