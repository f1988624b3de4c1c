"""The result of a command, and the JSON envelope that carries it.

The envelope is a contract: "provision_result_version", "command", "status", "exit_code", "data", "warnings", "errors".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provision.domain.finding import Finding
from provision.errors import ExitCode, ProvisionError
from provision.records import to_plain

if TYPE_CHECKING:
    from provision.output.console import Screen

RESULT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command found out. `data` is any tree of domain records and plain values."""

    data: object = None
    warnings: tuple[Finding, ...] = ()
    errors: tuple[Finding, ...] = ()
    exit_code: int = ExitCode.DONE
    partial: bool = False
    """Part of what was asked for succeeded: some hosts, some models."""
    show: Callable[[Screen], None] | None = None
    """Prints the human form; called only without --json."""

    @property
    def status(self) -> str:
        if self.partial:
            return "partial"
        return "error" if self.errors else "success"

    @classmethod
    def of_error(cls, error: ProvisionError, data: object = None) -> Result:
        finding = Finding(code=error.code, message=error.message, hint=error.hint)
        return cls(data=data, errors=(finding,), exit_code=error.exit_code)


def envelope(command: str, result: Result) -> str:
    """The one JSON document of `--json`, one line, newline at the end; ASCII, which every encoding of stdout holds."""
    document = {
        "provision_result_version": RESULT_VERSION,
        "command": command,
        "status": result.status,
        "exit_code": int(result.exit_code),
        "data": result.data,
        "warnings": result.warnings,
        "errors": result.errors,
    }
    return json.dumps(document, default=to_plain, ensure_ascii=True, allow_nan=False) + "\n"
