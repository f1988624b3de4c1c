"""What can go wrong, as the user is told it.

    ProvisionError            1   a bug, unless a subclass says otherwise
    ├── UsageError            2   options that contradict or cannot be read
    ├── InvalidFile           3   catalog, plan, inventory or other input file
    ├── NothingFits           4   no build fits the hardware
    ├── Unreachable           5   machine or host not reachable or not readable
    ├── ApplyFailed           6   apply failed on at least one host
    ├── BelowThreshold        7   below a threshold, or drift found
    └── Interrupted         130   Ctrl-C

Low-level code raises these `from` the cause; only `provision.cli` catches them.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    BUG = 1
    USAGE = 2
    INVALID_FILE = 3
    NOTHING_FITS = 4
    UNREACHABLE = 5
    APPLY_FAILED = 6
    BELOW_THRESHOLD = 7
    INTERRUPTED = 130


class ProvisionError(Exception):
    """A failure with one clear line and, where there is one, a hint that can be typed.

    `code` is stable and machine-readable (kebab-case); `message` says what was asked and what was found, with numbers.
    """

    exit_code = ExitCode.BUG
    default_code = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code


class UsageError(ProvisionError):
    exit_code = ExitCode.USAGE
    default_code = "usage"


class InvalidFile(ProvisionError):
    exit_code = ExitCode.INVALID_FILE
    default_code = "invalid-file"


class NothingFits(ProvisionError):
    exit_code = ExitCode.NOTHING_FITS
    default_code = "nothing-fits"


class Unreachable(ProvisionError):
    exit_code = ExitCode.UNREACHABLE
    default_code = "unreachable"


class ApplyFailed(ProvisionError):
    exit_code = ExitCode.APPLY_FAILED
    default_code = "apply-failed"


class BelowThreshold(ProvisionError):
    exit_code = ExitCode.BELOW_THRESHOLD
    default_code = "below-threshold"


class Interrupted(ProvisionError):
    exit_code = ExitCode.INTERRUPTED
    default_code = "interrupted"
