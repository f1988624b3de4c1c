"""The ledger: what a host was like before its first change, and what was put on it. `remove` works from it alone."""

from __future__ import annotations

import json
import os
import tempfile

FOLDER = "/var/lib/provision"
LEDGER = FOLDER + "/ollama.json"
BACKUPS = FOLDER + "/backup"
VERSION = 1


def read():
    """The ledger, or None on a host that was never touched."""
    try:
        with open(LEDGER) as handle:
            return json.load(handle)
    except FileNotFoundError:
        return None


def empty():
    names = ("paths", "users", "groups", "packages", "models", "choices")
    return {"ledger_version": VERSION, "models_path": None, "base_url": None, **{name: {} for name in names}}


def write(ledger):
    """Atomic: an interrupted run leaves the old ledger or the new one."""
    os.makedirs(FOLDER, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=FOLDER)
    with os.fdopen(handle, "w") as stream:
        json.dump(ledger, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, LEDGER)
