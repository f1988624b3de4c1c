"""The measurements that are kept in the repository."""

from __future__ import annotations

from pathlib import Path

from tests.accuracy import scoring

ROOT = Path(__file__).resolve().parents[2]


def speed_files() -> list[Path]:
    folder = Path(__file__).parent / "measurements"
    return sorted(folder.glob("speed*.csv*"))


def memory_files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("memory_sample.csv*"))


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Of speed and of memory."""
    speeds = [row for path in speed_files() for row in scoring.read_rows(path)]
    return speeds, [row for path in memory_files() for row in scoring.read_rows(path)]


def fit_report() -> str:
    """What `make fit` found on sources and devices left out of it, without its heading."""
    text = (ROOT / "catalog" / "efficiency-report.md").read_text("utf-8")
    return text.split("\n\n", 2)[2]
