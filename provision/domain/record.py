"""One decorator for every domain type.

Domain types are frozen stdlib dataclasses that pydantic validates where data comes from outside (catalog files, plan
files, probe output): `TypeAdapter(SomeType)` gives strict validation and JSON schema. Commands that read the cached
catalog never import pydantic, which saves 0.15 s at every start.

A dataclass compiles its own comparison, hash and text, which is half of what making one costs, and there are dozens of
types at every start: all of them share one of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Frozen, slotted, keyword-only; unknown keys and wrong types are refused when pydantic validates it."""
    documentation = cls.__doc__
    cls.__doc__ = documentation or cls.__name__  # else the signature is worked out to stand for it
    decorated: Any = dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)(cls)
    decorated.__doc__ = documentation
    names = tuple(decorated.__dataclass_fields__)
    values = _values(names)

    def equal(self: object, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def text(self: object) -> str:
        parts = (f"{name}={value!r}" for name, value in zip(names, values(self), strict=True))
        return f"{decorated.__qualname__}({', '.join(parts)})"

    decorated.__eq__ = equal
    decorated.__hash__ = lambda self: hash(values(self))
    decorated.__repr__ = text
    decorated.__pydantic_config__ = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }
    return cast(type[T], decorated)


def _values(names: tuple[str, ...]) -> Callable[[object], tuple[Any, ...]]:
    """All fields as a tuple, whatever their number."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple(getattr(self, name) for name in names)
