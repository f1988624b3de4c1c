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


def held_out() -> dict[str, dict[str, tuple[float, float, float]]]:
    """Expected, low and high by row id, from fits that had not seen the row's `source`, or its `device`."""
    path = Path(__file__).parent / "held_out.csv.gz"
    rows = scoring.read_rows(path) if path.exists() else []
    return {
        group: {
            row["id"]: (float(row[f"{group}_expected"]), float(row[f"{group}_low"]), float(row[f"{group}_high"]))
            for row in rows
        }
        for group in ("source", "device")
    }
