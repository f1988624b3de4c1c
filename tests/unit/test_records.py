"""Result files: what `-o` may replace, and what it must leave alone."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from provision.errors import InvalidFile, UsageError
from provision.records import write_json


def test_a_link_is_followed_and_kept(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("there/plan.json")  # dangling at first
    for value in (1, 2):
        write_json(link, value)
        assert link.is_symlink()
        assert json.loads((tmp_path / "there" / "plan.json").read_text()) == value
    assert os.listdir(tmp_path / "there") == ["plan.json"]


def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    if os.geteuid() == 0:
        node = tmp_path / "node"
        try:
            os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            node.write_text("")
        except PermissionError:
            pytest.skip("no device nodes here")
        write_json(node, {"a": 1})
        assert stat.S_ISCHR(node.stat().st_mode)


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(10)
    assert json.loads(read[0]) == {"a": 1}
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InvalidFile, match="Is a directory"):
        write_json(folder, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidFile, match="No space left"):
        write_json(tmp_path / "plan.json", 1)
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == []


def test_dash_is_refused_and_says_how_to_get_standard_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        write_json(Path("-"), 1)
    assert "--json" in refused.value.hint
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_not_utf8_can_be_written(tmp_path):
    name = os.fsdecode(b"\xff.gguf")
    write_json(tmp_path / "plan.json", {"name": name})
    assert json.loads((tmp_path / "plan.json").read_bytes()) == {"name": name}
