"""Remember what was computed for catalog records, which live as long as the catalog but cannot be hashed (their
provenance is a dictionary) and would be slow to: by identity, holding on to the records so that none is reused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LIMIT = 8192


def by_identity(function: Callable[P, R]) -> Callable[P, R]:
    """Cache a pure function of frozen records and plain values; forgets everything when the table is full."""
    table: dict[tuple[object, ...], tuple[tuple[object, ...], R]] = {}

    @wraps(function)
    def cached(*args: P.args, **kwargs: P.kwargs) -> R:
        values = (*args, *kwargs.values())
        key = (*map(_key, values), *kwargs)
        found = table.get(key)
        if found is not None:
            return found[1]
        result = function(*args, **kwargs)
        if len(table) >= _LIMIT:
            table.clear()
        table[key] = (values, result)
        return result

    return cached


def _key(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else id(value)
