"""The measurements that are kept in the repository."""

from __future__ import annotations

from pathlib import Path

from tests.accuracy import scoring

ROOT = Path(__file__).resolve().parents[2]


def speed_files() -> list[Path]:
    folder = ROOT / "catalog" / "measurements"
    return sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])


def memory_files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("memory_sample.csv*"))


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Of speed and of memory."""
    speeds = [row for path in speed_files() for row in scoring.read_rows(path)]
    return speeds, [row for path in memory_files() for row in scoring.read_rows(path)]
