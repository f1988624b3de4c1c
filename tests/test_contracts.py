"""What scripts of other people rely on: envelope, exit codes, help, and what start-up may import."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from provision.cli import root_help
from provision.cli.commands import COMMANDS
from tests.helpers import run_cli

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("arguments", "code", "error_code"),
    [
        (["nonsense"], 2, "usage"),
        (["plan", "--nonsense"], 2, "usage"),
        (["plan", "--context", "0"], 2, "usage"),
        (["plan", "--context", "zero"], 2, "usage"),
        (["plan", "--users", "0", "--gpu", "RTX 4090"], 2, "usage"),
        (["plan", "--users", "many"], 2, "usage"),
        (["plan", "--gpu", "RTX 4091"], 2, "unknown-gpu"),
        (["plan", "--gpu", "RTX 4090", "--model", "lama3.1:8b"], 2, "unknown-model"),
        (["plan", "--tier", "castle"], 2, "unknown-tier"),
        (["plan", "--gpu", "RTX 4090", "--model", "llama3.1:8b", "--quant", "Q9_Z"], 2, "unknown-quantization"),
        (["estimate"], 2, "usage"),
        (["estimate", "missing.gguf", "--gpu", "RTX 4090"], 3, "invalid-file"),
        (["estimate", "--batch", "missing.csv"], 3, "invalid-file"),
        (["plan", "--machine", "missing.json"], 3, "invalid-file"),
        (["apply", "missing.json", "--host", "h", "--yes"], 3, "invalid-file"),
        (["bench", "http://127.0.0.1:9", "--model", "x"], 5, None),
        (
            ["plan", "--gpu", "RTX 4090", "--ram", "8GiB", "--model", "llama3.1:70b", "--quant", "F16"],
            4,
            "does-not-fit",
        ),
    ],
)
def test_every_error_is_one_line_a_code_and_the_envelope(arguments, code, error_code):
    run = run_cli(*arguments, "--json")
    assert run.code == code
    envelope = run.json
    assert envelope["status"] == "error"
    first = envelope["errors"][0]
    if error_code:
        assert first["code"] == error_code
    assert first["hint"], "every error says what to type next"

    plain = run_cli(*arguments)
    assert plain.code == code
    assert f"error: {first['message']}" in plain.stderr
    assert "Traceback" not in plain.stderr


def test_an_unknown_model_names_the_nearest():
    hint = run_cli("plan", "--gpu", "RTX 4090", "--model", "lama3.1:8b", "--json").json["errors"][0]["hint"]
    assert "llama3.1:8b" in hint


def test_a_bug_is_said_to_be_one_and_keeps_the_envelope(monkeypatch):
    monkeypatch.setattr("provision.catalog.load_catalog", lambda *_, **__: 1 / 0)
    run = run_cli("plan", "--gpu", "RTX 4090", "--json")
    assert run.code == 1
    assert run.json["errors"][0]["code"] == "bug"


def test_ctrl_c_is_130_and_keeps_the_envelope(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("provision.catalog.load_catalog", interrupt)
    run = run_cli("plan", "--gpu", "RTX 4090", "--json")
    assert run.code == 130
    assert run.json["errors"][0]["code"] == "interrupted"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    run = run_cli(name, "--help")
    assert run.code == 0
    if name != "catalog":
        assert f"provision {name}" in run.stdout
        assert "xample" in run.stdout
    assert COMMANDS[name] in root_help()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_module_imports_nothing_heavy(name):
    heavy = ("httpx", "rich", "pydantic", "ansible_runner", "psutil", "pynvml", "xllamacpp")
    code = f"import sys, provision.cli.{name}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_root_help_imports_neither_typer_nor_a_command():
    code = (
        "import sys; from provision.cli import main; main(['--help'])\n"
        "sys.exit(any(m in sys.modules for m in ('typer', 'provision.cli.plan', 'dataclasses')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "provision plan --gpu" in done.stdout


def test_a_sizing_command_answers_from_the_cache_without_pydantic_or_http():
    code = (
        "import sys; from provision.cli import main\n"
        "main(['estimate', 'llama3.1:8b', '--gpu', 'RTX 4090', '--ram', '64GiB', '--json'])\n"
        "heavy = ('httpx', 'rich', 'pydantic', 'ansible_runner', 'psutil')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    for _ in range(2):  # the first run may have to fill the cache
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["exit_code"] == 0


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`command` in bash, where $P is provision; fails when a part of a pipe does."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("$P", f"{sys.executable} -m provision")],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=60,
    )


PLAN = '$P plan --gpu "RTX 4090" --ram 64GiB'


@pytest.mark.parametrize("command", ["$P --help", "$P plan --help", PLAN, f"{PLAN} --json"])
def test_a_reader_that_leaves_is_no_error(command):
    done = shell(f"{command} | true")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["$P --help", "$P plan --help", PLAN, f"{PLAN} --json"])
def test_a_full_disk_is_one_line(command):
    done = shell(f"{command} --quiet >/dev/full")
    assert done.returncode == 1
    assert done.stderr == b"error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_as_good_as_dev_null(closed):
    done = shell(f"{PLAN} --json --quiet {closed}")
    assert (done.returncode, done.stderr) == (0, b"")
    done = shell(f"$P plan --machine - --quiet {closed}".replace("<&-", "") + " <&-")
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


def test_output_survives_any_encoding():
    for encoding in ("ascii", "utf-8"):
        done = shell(f"{PLAN} --model $'\\xff\\xfe' --json", PYTHONIOENCODING=encoding)
        assert done.returncode == 2
        assert json.loads(done.stdout.decode("ascii"))["errors"][0]["code"] == "unknown-model"
        plain = shell("$P catalog show llama3.1:8b", PYTHONIOENCODING=encoding)
        assert (plain.returncode, plain.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["plan", "--help"], ["catalog", "show", "-h"]])
def test_help_has_an_envelope(arguments):
    text = run_cli(*arguments, "--json").json["data"]["help"]
    assert text == run_cli(*arguments).stdout
    assert text.startswith("Usage: provision")


def test_the_version_has_an_envelope():
    assert run_cli("--version", "--json").json["data"] == {"version": run_cli("--version").stdout.split()[1]}


def test_a_missing_subcommand_is_one_line():
    run = run_cli("catalog", "--json")
    assert run.code == 2
    assert run.json["errors"][0] == {"code": "usage", "message": "Missing command", "hint": "provision catalog --help"}


@pytest.mark.parametrize(
    "arguments", [[name] for name in COMMANDS] + [["catalog", sub] for sub in ("list", "show", "check")]
)
def test_help_is_one_h_away_and_its_examples_can_be_pasted(arguments):
    text = run_cli(*arguments, "-h").stdout
    assert "--json, --quiet, --verbose and --debug" in text
    if arguments == ["catalog"]:
        return
    examples = re.findall(r"^ +(?:Example: )?(provision .*)$", text.split("Options:")[0], re.MULTILINE)
    assert examples
    for example in examples:
        assert " provision " not in example.replace("&& provision ", ""), example
        assert not example.endswith((",", ">"))
    if arguments in (["completion"], ["bench"]):
        assert examples[0].endswith(("completions/provision", "--users 1,4,8"))


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed_as_they_are(shell_name):
    script = run_cli("completion", shell_name, "--json").json["data"]["script"]
    assert run_cli("completion", shell_name).stdout == script + "\n"


@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        ("provision --", "--json", "--install-completion"),
        ("provision plan --", "--json", "--show-completion"),
        ("provision --json plan --r", "--ram", "--gpu"),
    ],
)
def test_completion_offers_what_exists(words, offered, not_offered):
    done = shell("$P", _PROVISION_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    found = done.stdout.decode().split()
    assert offered in found
    assert not_offered not in found


def test_flags_after_a_double_dash_are_arguments():
    run = run_cli("estimate", "--", "--json")
    assert not run.stdout.startswith("{")
    assert run.code == 2


def test_commands_have_one_file_each():
    for name in COMMANDS:
        module = importlib.import_module(f"provision.cli.{name}")
        assert hasattr(module, "command") or hasattr(module, "app")


def test_no_tracked_file_names_a_machine_path():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    pattern = re.compile("/(work|farm)" + "/[a-z]")
    bad = [f for f in files if (ROOT / f).is_file() and pattern.search((ROOT / f).read_text(errors="replace"))]
    assert bad == []


def test_the_readme_shows_what_the_commands_print():
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "README.md"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, "make docs"
