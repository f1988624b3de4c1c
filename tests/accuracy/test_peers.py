"""Our errors are smaller than those of every peer's formula, on the same rows; the table is printed (pytest -s)."""

from __future__ import annotations

import pytest

from tests.accuracy import committed, peers

JUDGED = ("all GPUs", "modern NVIDIA GDDR", "NVIDIA", "AMD", "Apple", "F16", "Q4_K_M", "MoE")


@pytest.fixture(scope="module")
def measured():
    return committed.rows()


def test_decode_speeds_are_nearer_than_every_peers(measured):
    lines = peers.speed_lines(measured[0])
    print("\n" + peers.render(lines, "Decode, one stream"))
    told = {(line.subset, line.tool) for line in lines}
    assert {(subset, peers.OURS) for subset in JUDGED} <= told
    worse = [
        (line.subset, line.tool, line.ours.mdape, line.errors.mdape)
        for line in lines
        if line.subset in JUDGED and line.ours and line.ours.mdape >= line.errors.mdape
    ]
    assert not worse


def test_we_refuse_no_more_rows_than_the_peers(measured):
    """An error that is smaller because the hard rows were refused would be no merit."""
    lines = {(line.subset, line.tool): line for line in peers.speed_lines(measured[0])}
    for (subset, tool), line in lines.items():
        if subset in JUDGED:
            assert lines[subset, peers.OURS].errors.n >= 0.95 * line.errors.n, (subset, tool)


def test_memory_is_nearer_than_every_peers(measured):
    lines = peers.memory_lines(measured[1])
    print("\n" + peers.render(lines, "Memory of whole starts"))
    judged = [line for line in lines if line.subset == "llama.cpp, Ollama"]
    assert any(line.tool == peers.OURS for line in judged)
    assert not [line.tool for line in judged if line.ours and line.ours.mdape >= line.errors.mdape]
