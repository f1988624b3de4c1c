"""A remark with a code: a warning is a value that knows its own advice."""

from __future__ import annotations

from provision.domain.record import record


@record
class Finding:
    code: str
    """Stable, kebab-case."""
    message: str
    hint: str | None = None
