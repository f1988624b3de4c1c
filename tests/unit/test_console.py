"""What reaches the terminal: data is data, whatever it holds."""

from __future__ import annotations

import io
import json

import pytest

from provision.domain.finding import Finding
from provision.output.console import Screen, printable
from provision.output.documents import Result, envelope


@pytest.mark.parametrize("data", ["srv[/x]", "[abliterated].gguf", ":smile: [red]x[/red]"])
def test_data_is_no_markup(capsys, data):
    screen = Screen()
    screen.print(data)
    table = screen.table("name")
    table.add_row(data)
    screen.print(table)
    assert capsys.readouterr().out.count(data) == 2


def test_data_cannot_steer_the_terminal(capsys):
    evil = "a\x1b[2Jb\x9bc\rd\u202ee"
    screen = Screen()
    screen.print(evil)
    table = screen.table(evil)
    table.add_row(evil)
    screen.print(table)
    with screen.progress() as progress:
        progress.update(evil)
        progress.line(evil)
    finding = Finding(code="x", message=evil, hint=evil)
    screen.show("plan", Result(warnings=(finding,)))
    shown = capsys.readouterr()
    for text, times in ((shown.out, 3), (shown.err, 4)):
        assert not set(text) & {"\x1b", "\x9b", "\r", "\u202e"}
        assert text.count("a\\x1b[2Jb\\x9bc\\x0dd\\u202ee") == times


def test_printable_keeps_lines_tabs_and_letters():
    assert printable("é 模型\t×\n") == "é 模型\t×\n"


def test_a_narrow_table_folds_and_loses_nothing(capsys, monkeypatch):
    monkeypatch.setattr("provision.output.console._PLAIN_WIDTH", 20)
    screen = Screen()
    table = screen.table("a", "b")
    table.add_row("x" * 30, "y" * 30)
    assert not screen.fits(table)
    screen.print(table)
    out = capsys.readouterr().out
    assert (out.count("x"), out.count("y")) == (30, 30)


def test_the_envelope_is_ascii():
    line = envelope("plan", Result(data={"name": "é\udcff"}))
    assert json.loads(line.encode("ascii"))["data"] == {"name": "é\udcff"}


def test_notes_to_a_closed_pipe_do_not_stop_the_command(monkeypatch):
    class ReaderGone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", ReaderGone())
    Screen().note("hello")
