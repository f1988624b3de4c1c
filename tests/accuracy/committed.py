"""The measurements that are kept in the repository."""

from __future__ import annotations

from pathlib import Path

from tests.accuracy import scoring

ROOT = Path(__file__).resolve().parents[2]


def speed_files() -> list[Path]:
    folder = ROOT / "catalog" / "measurements"
    return sorted(folder.glob("speed*.csv*"))


def memory_files() -> list[Path]:
    return sorted(Path(__file__).parent.glob("memory_sample.csv*"))


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Of speed and of memory."""
    speeds = [row for path in speed_files() for row in scoring.read_rows(path)]
    return speeds, [row for path in memory_files() for row in scoring.read_rows(path)]


def held_out() -> dict[str, tuple[float, float, float]]:
    """Expected, low and high by row id, from fits that had not seen the row's device or source; empty where the fit has
    kept none."""
    found = {}
    for path in sorted((ROOT / "catalog" / "measurements").glob("held_out.csv*")):
        for row in scoring.read_rows(path):
            found[row["id"]] = (float(row["expected"]), float(row["low"]), float(row["high"]))
    return found
