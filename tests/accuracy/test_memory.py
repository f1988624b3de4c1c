"""Memory against published start-up logs: one log of each of some sources, drawn by chance, not by fit."""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accuracy import memory_rows, scoring

HERE = Path(__file__).parent
ROWS = scoring.read_rows(HERE / "memory_sample.csv")
MEASURED = (*memory_rows.BUFFERS, "kv_total_MiB", "peak_MiB")
EMPTIED = [{**row, **dict.fromkeys(MEASURED, "")} for row in ROWS]
SHAPE = ("n_layer", "n_embd", "n_head", "n_head_kv", "head_dim_k", "head_dim_v", "n_ctx", "kv_type_k")


@pytest.fixture(scope="module")
def predicted():
    return {row["id"]: row for row in memory_rows.predict(EMPTIED)}


def errors(predicted, column, rows):
    """Of the rows that have both figures, largest first."""
    pairs = [(float(row[column]), predicted[row["id"]].get(column)) for row in rows if float(row[column] or 0)]
    return sorted((abs(float(p) / m - 1) for m, p in pairs if p), reverse=True)


def one_or_alike(row):
    """Which layers a device has follows from the row: one accelerator, none, or several alike."""
    of_log = {r["device_name"] for r in ROWS if r["log_id"] == row["log_id"] and r["device"].startswith(("CUDA", "Vu"))}
    return row["n_gpus"] in ("0", "1") or len(of_log - {"host"}) == 1


def test_every_row_has_a_figure_or_a_reason(predicted):
    assert len(predicted) == len(ROWS)
    for row in predicted.values():
        assert any(row.get(column) for column in memory_rows.BUFFERS) or row["reason"]


def test_kv_caches_are_exact(predicted):
    rows = [row for row in ROWS if all(row[name] for name in SHAPE) and one_or_alike(row) and row["kv_buffer_MiB"]]
    off = [
        row["id"]
        for row in rows
        if abs(float(predicted[row["id"]].get("kv_buffer_MiB") or 0) - float(row["kv_buffer_MiB"]))
        > max(0.005 * float(row["kv_buffer_MiB"]), 0.006)
    ]
    assert len(rows) >= 30
    assert len(off) <= 0.01 * len(rows), off


def test_model_buffers_are_within_one_per_cent(predicted):
    off = errors(predicted, "model_buffer_MiB", ROWS)
    assert len(off) >= 20
    assert statistics.median(off) <= 0.01
    assert off[len(off) // 10] <= 0.03


def test_compute_buffers_of_llama_cpp_are_within_five_per_cent(predicted):
    rows = [r for r in ROWS if r["engine"].startswith("llama.cpp") and r["device"].startswith(("CUDA", "Metal", "CPU"))]
    off = errors(predicted, "compute_buffer_MiB", rows)
    assert len(off) >= 15
    assert statistics.median(off) <= 0.05
    assert off[len(off) // 10] <= 0.15


def test_measured_columns_ids_and_sources_change_nothing(predicted):
    renamed = [{**row, "id": f"x{row['id']}", "source": "", "notes": ""} for row in ROWS]
    for row, answer in zip(ROWS, memory_rows.predict(renamed), strict=True):
        assert {**answer, "id": row["id"]} == predicted[row["id"]]


def test_a_start_that_failed_is_not_said_to_fit():
    # A public log: 20,252 MiB free, and the cache and the graph did not fit after 18,508 MiB of weights.
    row = dict.fromkeys(ROWS[0], "") | {
        "id": "1", "log_id": "1", "engine": "llama.cpp (RamaLama)", "date": "2026-04-20", "model": "Qwen2.5-32B",
        "arch": "qwen2", "quant": "Q4_K_M", "file_size_GiB": "18.48", "n_ctx": "32768", "n_seq_max": "4",
        "n_ubatch": "512", "offloaded_layers": "65", "total_layers": "65", "n_gpus": "1", "device": "ROCm0",
    }  # fmt: skip
    (answer,) = memory_rows.predict([row])
    assert float(answer["model_buffer_MiB"]) == pytest.approx(18508.35, rel=1e-4)
    assert float(answer["total_MiB"]) > 20_252


def test_it_runs_as_a_command(tmp_path):
    source, target = tmp_path / "rows.csv", tmp_path / "out.csv"
    with source.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(EMPTIED[:3])
    done = subprocess.run(
        [sys.executable, HERE / "predict.py", "memory", source, target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in scoring.read_rows(target)] == [row["id"] for row in ROWS[:3]]
    assert subprocess.run([sys.executable, HERE / "predict.py", "memory", tmp_path / "no.csv", target]).returncode == 3
