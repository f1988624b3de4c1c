"""Runs the command line as users do: through `main()`, so that error handling is inside the test."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass

from provision.cli import main

ENVELOPE_KEYS = {"provision_result_version", "command", "status", "exit_code", "data", "warnings", "errors"}
FINDING_KEYS = {"code", "message", "hint"}


@dataclass(frozen=True)
class Run:
    code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """The envelope, checked against the contract."""
        assert self.stdout.count("\n") == 1, "exactly one line on stdout"
        return checked_envelope(json.loads(self.stdout), self.code)


def run_cli(*arguments: str) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    return Run(int(code), out.getvalue(), err.getvalue())


def checked_envelope(document: dict, code: int) -> dict:
    """`document` if it keeps the contract of `--json`."""
    assert set(document) == ENVELOPE_KEYS
    assert document["provision_result_version"] == 1
    assert document["exit_code"] == code
    assert document["status"] in ("success", "partial", "error")
    assert (document["status"] == "success") == (not document["errors"] and document["status"] != "partial")
    for finding in document["warnings"] + document["errors"]:
        assert set(finding) == FINDING_KEYS
        assert finding["message"]
        assert "\n" not in finding["message"]
    return document
