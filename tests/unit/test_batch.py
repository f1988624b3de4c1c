"""`estimate --batch` answers each row as `estimate` answers it alone, however often parts of it come again."""

from __future__ import annotations

import os

import pytest

from provision.cli import batch
from tests.helpers import run_cli

HEADER = "id,model,quant,gpu,ram,memory_platform,context,users,kv_cache\n"
ROWS = [
    ("a", "llama3.1:8b", "Q4_K_M", "RTX 4090", "64GiB", "ddr5-5600-2ch", "8k", "1", "f16"),
    ("b", "qwen2.5-coder:32b", "Q4_K_M", "RTX 4070 Ti Super", "32GiB", "ddr5-5600-2ch", "4096", "2", "q8_0"),
    ("c", "llama3.1:8b", "", "2x RTX 4090", "64GiB", "", "", "", ""),
    ("d", "llama3.1:8b", "Q4_K_M", "RTX 4090", "64GiB", "ddr4-3200-2ch", "8k", "1", "f16"),
    ("e", "llama3.1:8b", "Q4_K_M", "", "64GiB", "ddr4-3200-2ch", "8k", "1", "f16"),
]
OPTIONS = (
    None,
    None,
    "--quant",
    "--gpu",
    "--ram",
    "--memory-platform",
    "--context",
    "--users",
    "--kv-cache",
)


def _batch(tmp_path, rows, *flags):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "".join(",".join(row) + "\n" for row in rows))
    return run_cli("estimate", "--batch", path, *flags)


def test_every_row_is_answered_as_it_is_alone(tmp_path):
    cases = _batch(tmp_path, ROWS, "--json").json["data"]["cases"]
    for row, case in zip(ROWS, cases, strict=True):
        pairs = [(option, cell) for option, cell in zip(OPTIONS, row, strict=True) if option and cell]
        alone = run_cli("estimate", row[1], *[word for pair in pairs for word in pair], "--json")
        (expected,) = alone.json["data"]["cases"]
        # How far one case can be stretched takes dozens of placements: it is looked for where one case is asked for.
        assert case == {**expected, "id": row[0], "context_tokens_max": None, "users_max": None}


def test_rows_that_come_again_give_the_same_answer_under_their_own_id(tmp_path):
    twice = ROWS + [("again-" + row[0], *row[1:]) for row in ROWS]
    cases = _batch(tmp_path, twice, "--json").json["data"]["cases"]
    assert [case["id"] for case in cases] == [row[0] for row in twice]
    for first, second in zip(cases[: len(ROWS)], cases[len(ROWS) :], strict=True):
        assert {**first, "id": ""} == {**second, "id": ""}


def test_a_refusal_that_comes_again_names_its_own_line(tmp_path):
    bad = ("x", "llama3.1:9b", "", "RTX 4090", "", "", "", "", "")
    unified = ("y", "llama3.1:8b", "", "Apple M4 Max 40-core", "64GiB", "ddr5-5600-2ch", "", "", "")
    document = _batch(tmp_path, [bad, ROWS[0], bad, unified, unified], "--json").json
    messages = [error["message"] for error in document["errors"]]
    assert [message.split(": ")[0] for message in messages] == [f"rows.csv:{line}" for line in (2, 4, 5, 6)]
    assert [error["code"] for error in document["errors"][:2]] == ["unknown-model"] * 2
    assert [case["id"] for case in document["data"]["cases"]] == ["a"]


def test_thousands_of_rows_are_printed_one_a_line_whatever_the_width(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = [(f"case-{number}", *ROWS[number % 2][1:]) for number in range(300)] + [("\x1b[31mred", *ROWS[0][1:])]
    run = _batch(tmp_path, rows)
    lines = run.stdout.splitlines()
    assert len(lines) == len(rows) + 2
    assert lines[2].startswith("case-0 ")
    assert "llama3.1:8b" in lines[2]
    assert lines[-1].startswith("\\x1b[31mred")


def test_shared_out_over_processes_nothing_changes(tmp_path, monkeypatch):
    bad = ("x", "llama3.1:9b", "", "RTX 4090", "", "", "", "", "")
    rows = [ROWS[0], bad, *ROWS[1:], bad, ROWS[2]]
    alone = _batch(tmp_path, rows, "--json").json
    monkeypatch.setattr(batch, "_cores", lambda: 3)
    monkeypatch.setattr(batch, "_ROWS_PER_PROCESS", 1)
    assert _batch(tmp_path, rows, "--json").json == alone


def test_a_share_whose_process_fails_is_answered_all_the_same(monkeypatch):
    monkeypatch.setattr(batch, "_cores", lambda: 2)
    monkeypatch.setattr(batch, "_ROWS_PER_PROCESS", 1)
    here = os.getpid()

    def work(rows):
        if os.getpid() != here:
            os._exit(9)
        return [line for line, _ in rows]

    assert batch._shared_out([(line, []) for line in range(5)], work) == [0, 1, 2, 3, 4]


def test_an_error_in_a_share_is_raised_here(monkeypatch):
    monkeypatch.setattr(batch, "_cores", lambda: 2)
    monkeypatch.setattr(batch, "_ROWS_PER_PROCESS", 1)

    def work(rows):
        if any(line == 3 for line, _ in rows):
            raise ArithmeticError("line 3")
        return list(rows)

    with pytest.raises(ArithmeticError, match="line 3"):
        batch._shared_out([(line, []) for line in range(5)], work)


def test_a_file_without_rows_is_invalid(tmp_path):
    document = _batch(tmp_path, [], "--json").json
    assert (document["exit_code"], document["data"]) == (3, None)
    assert "has no rows" in document["errors"][0]["message"]
