"""Remember what was computed for catalog records, which live as long as the catalog but cannot be hashed (their
provenance is a dictionary) and would be slow to: by identity, holding on to the records so that none is reused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Generic, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_LIMIT = 8192


class Remembering(Protocol, Generic[P, R_co]):
    """A function with a memory."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def remember(self, result: object, *args: object) -> None:
        """Take `result` for what the function gives for `args`: it was worked out by an earlier process."""


def by_identity(function: Callable[P, R]) -> Remembering[P, R]:
    """Cache a pure function of frozen records and plain values; forgets everything when the table is full."""
    table: dict[tuple[object, ...], tuple[tuple[object, ...], R]] = {}

    def remember(result: R, *args: object) -> None:
        table[tuple(map(_key, args))] = (args, result)

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

    cached.remember = remember  # type: ignore[attr-defined]
    return cast(Remembering[P, R], cached)


def _key(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else id(value)
