"""Reads the beginning of something large in blocks: a file, or an address that answers HTTP ranges.

A reader takes growing blocks from a source and keeps only the current one, so that memory does not depend on what the
data claims to be. Every length that comes from the data is checked before anything is read or allocated for it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from struct import Struct, error
from typing import Protocol

from provision.errors import InvalidFile

HEADER_LIMIT_BYTES = 64 * 2**20
"""Headers end long before: vocabularies of 262,144 tokens with their merges take about 20 MB."""

_FIRST_BLOCK_BYTES = 256 * 1024
_LARGEST_BLOCK_BYTES = 4 * 2**20
_LARGEST_ITEM_BYTES = 2**20
_LENGTH = Struct("<Q")
_CUT = "it ends inside the header"


def one_line(text: str) -> str:
    """`text` with what cannot be printed spelt out: data goes into messages, which are one line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RangeSource(Protocol):
    """Something that gives any part of itself."""

    @property
    def label(self) -> str:
        """What to call it in messages."""

    @property
    def size(self) -> int | None:
        """Bytes in all; None while not known (an address before the first answer, or one that does not say)."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only at the end."""


class LocalFile:
    """A regular file as a source. Raises InvalidFile with one line for what cannot be read."""

    def __init__(self, path: Path, hint: str) -> None:
        self._hint = hint
        self.label = one_line(str(path))
        try:
            # A pipe would be waited for; the check is on what was opened, not on what the name meant before.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as problem:
            raise self._unreadable(problem) from problem
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InvalidFile(f"{self.label} is not a regular file", hint=hint)
        self.size: int | None = status.st_size

    def read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as problem:
            raise self._unreadable(problem) from problem

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unreadable(self, problem: OSError) -> InvalidFile:
        return InvalidFile(f"cannot read {self.label}: {problem.strerror}", hint="check the path")


class RangeReader:
    """Forward reading over a source. Memory: one block of at most 4 MiB, whatever the data says.

    `problem(reason)` makes the error that is raised when the data ends, is too long, or claims what cannot be.
    """

    def __init__(self, source: RangeSource, kind: str, hint: str, limit_bytes: int = HEADER_LIMIT_BYTES) -> None:
        self._source = source
        self._kind = kind
        self._hint = hint
        self._limit = limit_bytes
        self._block = b""
        self._start = 0
        """Offset of the block in the source."""
        self._at = 0
        """Position within the block; beyond its end after a skip."""
        self._next_size = _FIRST_BLOCK_BYTES

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def size(self) -> int | None:
        return self._source.size

    def problem(self, reason: str) -> InvalidFile:
        return InvalidFile(f"{self._source.label} is not a readable {self._kind} file: {reason}", hint=self._hint)

    def take(self, count: int) -> bytes:
        """The next `count` bytes, at most 1 MiB of them."""
        if count > _LARGEST_ITEM_BYTES:
            raise self.problem(f"it claims an item of {count:,} bytes")
        if self._at + count > len(self._block):
            self._refill(count)
        data = self._block[self._at : self._at + count]
        self._at += count
        return data

    def unpack(self, layout: Struct) -> int | float | bool:
        value: int | float | bool = layout.unpack(self.take(layout.size))[0]
        return value

    def skip(self, count: int) -> None:
        """Pass over `count` bytes; what lies in none of the blocks that are read anyway is never fetched."""
        self._check_reach(count)
        self._at += count

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings, each led by its length of 8 bytes."""
        self._check_reach(count * _LENGTH.size)
        unpack_from = _LENGTH.unpack_from
        while count:
            block, at = self._block, self._at
            try:
                while count:
                    at += 8 + unpack_from(block, at)[0]
                    count -= 1
            except (error, OverflowError):  # the next length is not wholly in the block, or nowhere at all
                pass
            self._at = at
            self._check_reach(0)
            if count:
                self._refill(_LENGTH.size)

    def _check_reach(self, count: int) -> None:
        target = self.position + count
        if self.size is not None and target > self.size:
            raise self.problem(f"a length of {count:,} bytes exceeds the file" if count else _CUT)
        if target > self._limit:
            raise self.problem(f"its header is longer than {self._limit // 2**20} MiB")

    def _refill(self, count: int) -> None:
        """Have at least `count` bytes at the position."""
        position = self.position
        if position + count > self._limit:
            raise self.problem(f"its header is longer than {self._limit // 2**20} MiB")
        if self.size is not None and position + count > self.size:
            raise self.problem(_CUT)
        kept = self._block[self._at :]
        start = position + len(kept)
        wanted = max(self._next_size, count - len(kept))
        if self.size is not None:
            wanted = min(wanted, self.size - start)
        self._next_size = min(2 * self._next_size, _LARGEST_BLOCK_BYTES)
        self._block = kept + self._source.read(start, wanted)
        self._start, self._at = position, 0
        if len(self._block) < count:
            raise self.problem(_CUT)
