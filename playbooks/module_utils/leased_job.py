"""Long work on a host that dies with the run that asked for it.

A module that is cancelled on the controller goes on running on the host: nothing tells it. So long work (downloads,
unpacking) is done by a holder process under a lease. Each call of the module renews the lease, waits a moment and
returns how far the work is; Ansible repeats the call (`until:`), which is also where live progress comes from. When
nobody renews the lease, the holder and its children are gone within LEASE_S seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import threading
import time

LEASE_S = 8.0
WINDOW_S = 1.5
RUN_FOLDER = "/run/provision"


class JobFailed(Exception):
    """The work cannot be done; `code` and `hint` go to the user."""

    def __init__(self, code, message, hint=None):
        super().__init__(message)
        self.code = code
        self.hint = hint


def step(key, work):
    """Start `work(report)` or join the one that runs, for at most WINDOW_S seconds.

    `work` gets a function to report `phase, done_bytes, total_bytes` with and returns a dict of results. The answer
    has `finished`; when it is true either `results` or `error` (code, msg, hint).
    """
    folder = os.path.join(RUN_FOLDER, key)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _touch(os.path.join(folder, "lease"))
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        # The lock belongs to the open file: it is held until the holder, who inherits it, is gone.
        if not _read_status(folder).get("finished"):
            _fork_holder(folder, lock, work)
    os.close(lock)
    deadline = time.monotonic() + WINDOW_S
    status = _read_status(folder)
    while time.monotonic() < deadline and not status.get("finished"):
        time.sleep(0.1)
        status = _read_status(folder)
    if status.get("finished"):
        shutil.rmtree(folder, ignore_errors=True)
        _remove_if_empty(RUN_FOLDER)
    return dict({"finished": False, "phase": "starting", "done_bytes": None, "total_bytes": None}, **status)


def _fork_holder(folder, lock, work):
    _remove(os.path.join(folder, "status"))
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    threading.Thread(target=_end_without_lease, args=(folder,), daemon=True).start()
    try:
        status = {"finished": True, "results": work(_Reporter(folder))}
    except JobFailed as error:
        status = {"finished": True, "error": {"code": error.code, "msg": str(error), "hint": error.hint}}
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        status = {"finished": True, "error": {"code": "apply-failed", "msg": text, "hint": None}}
    _write_status(folder, status)
    os._exit(0)


class _Reporter:
    def __init__(self, folder):
        self._folder = folder
        self._last_s = 0.0
        self._last_phase = None

    def __call__(self, phase, done_bytes=None, total_bytes=None):
        now = time.monotonic()
        if phase != self._last_phase or now - self._last_s > 0.25:
            self._last_s, self._last_phase = now, phase
            status = {"finished": False, "phase": phase, "done_bytes": done_bytes, "total_bytes": total_bytes}
            _write_status(self._folder, status)


def _end_without_lease(folder):
    lease = os.path.join(folder, "lease")
    while True:
        time.sleep(0.5)
        try:
            age_s = time.time() - os.stat(lease).st_mtime
        except OSError:
            age_s = LEASE_S + 1
        if age_s > LEASE_S:
            shutil.rmtree(folder, ignore_errors=True)
            _remove_if_empty(RUN_FOLDER)
            os.killpg(0, signal.SIGKILL)


def _touch(path):
    with open(path, "a"):
        os.utime(path)


def _read_status(folder):
    try:
        with open(os.path.join(folder, "status")) as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return {}


def _write_status(folder, status):
    path = os.path.join(folder, "status")
    try:
        with open(path + ".new", "w") as handle:
            json.dump(status, handle)
        os.replace(path + ".new", path)
    except OSError:
        # The lease has run out and the folder with it: the end is near.
        pass


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_if_empty(path):
    with contextlib.suppress(OSError):
        os.rmdir(path)
