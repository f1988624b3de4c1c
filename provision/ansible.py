"""Runs one of the project's playbooks through ansible-runner, without the surprises of its defaults.

What is done differently, and why (each was reproduced): the interpreter's own scripts folder leads PATH, because runner
looks ansible-playbook up by name; host keys are checked, because runner turns that off; every run has a fresh private
folder that is removed afterwards, because runner writes variables and environment to disk and old files there win over
arguments; the environment is a short list of names; the event handler only queues, because an exception in it orphans
Ansible; the statistics are kept from the event, because runner loses them; at the end every process of the run is
ended, because a cancelled runner ends only one process group.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from provision.errors import ApplyFailed
from provision.resources import data_dir

if TYPE_CHECKING:
    import psutil

_INHERITED = ("HOME", "USER", "LOGNAME", "PATH", "SSH_AUTH_SOCK", "TZ")
"""The only variables of ours that Ansible, and so runner's files, get to see."""

_CANCEL_POLL_S = 0.5
_LOCALE = "C.UTF-8"


@dataclass(frozen=True, slots=True)
class AnsibleHost:
    """One host of the inventory; `variables` may hold connection settings (`ansible_port` ...)."""

    name: str
    variables: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PlayEvent:
    """Something that happened on a host. `progress` comes from a task that is repeated until it is finished."""

    kind: Literal["started", "ok", "changed", "skipped", "failed", "unreachable", "progress"]
    host: str
    task: str
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """The first task that failed on a host. `code` and `hint` where one of our modules gave them."""

    task: str
    message: str
    code: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class HostResult:
    """Counts of tasks. A host that Ansible says nothing about counts as unreachable."""

    host: str
    ok: int
    changed: int
    failed: int
    unreachable: bool
    changed_tasks: tuple[str, ...]
    failure: TaskFailure | None
    results: Mapping[str, Mapping[str, Any]]
    """Task name to its last result."""


@dataclass(frozen=True, slots=True)
class PlayResult:
    hosts: tuple[HostResult, ...]


def run_playbook(
    name: str,
    hosts: Sequence[AnsibleHost],
    *,
    check: bool = False,
    on_event: Callable[[PlayEvent], None] = lambda event: None,
) -> PlayResult:
    """Run `playbooks/<name>.yml` on all hosts at once; failed hosts are in the result, not an exception.

    SIGINT and SIGTERM end the run: nothing of it is left running here, long work on the hosts ends by itself within ten
    seconds (playbooks/module_utils/leased_job.py), and KeyboardInterrupt is raised. Raises ApplyFailed when Ansible
    itself could not run.
    """
    from ansible_runner import interface

    # Unix sockets have short paths: the system's temporary folder, whatever TMPDIR says.
    private = Path(tempfile.mkdtemp(prefix="provision-", dir="/tmp"))
    follower = _Follower(on_event)
    interrupted = False
    try:
        with _signals() as signalled, _clean_environment():
            runner = interface.run(  # type: ignore[no-untyped-call]
                private_data_dir=str(private),
                project_dir=str(data_dir("playbooks")),
                playbook=f"{name}.yml",
                inventory=_inventory(hosts),
                envvars=_environment(private),
                cmdline="--check" if check else None,
                settings={"pexpect_timeout": _CANCEL_POLL_S},
                quiet=True,
                event_handler=follower.take,
                cancel_callback=signalled.is_set,
            )
            interrupted = signalled.is_set()
    finally:
        _close_connections(private / "cp")
        _end(_processes_of(private))
        follower.stop()
        shutil.rmtree(private, ignore_errors=True)
    if interrupted:
        raise KeyboardInterrupt
    if follower.stats is None:
        raise ApplyFailed(
            f"ansible-playbook could not run: {follower.complaint() or f'exit code {runner.rc}'}",
            hint="run it again with --debug",
            code="ansible-failed",
        )
    return PlayResult(tuple(follower.host_result(host.name) for host in hosts))


class _Follower:
    """Turns runner's events into ours on a thread of its own, and remembers what the result needs."""

    def __init__(self, on_event: Callable[[PlayEvent], None]) -> None:
        self._on_event = on_event
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.stats: dict[str, Any] | None = None
        self._words: list[str] = []
        self._changed: dict[str, list[str]] = {}
        self._results: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._failures: dict[str, TaskFailure] = {}

    def take(self, event: dict[str, Any]) -> bool:
        """Runner's event handler. False: runner need not keep the event in a file."""
        if self._thread is None:
            # Only now: the fork of Ansible must not happen beside other threads.
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._queue.put(event)
        return False

    def stop(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=10)

    def complaint(self) -> str | None:
        """What Ansible printed last about an error, for a run without statistics."""
        text = " ".join(" ".join(self._words).split())
        found = re.search(r"(?:ERROR!|\[ERROR\]:|ERROR:)\s*(.+)", text)
        return (found[1] if found else text)[-400:] or None

    def host_result(self, host: str) -> HostResult:
        stats = self.stats or {}

        def count(kind: str) -> int:
            return int((stats.get(kind) or {}).get(host, 0))

        failure = self._failures.get(host)
        known = any(host in (stats.get(kind) or {}) for kind in ("ok", "failures", "dark", "skipped", "processed"))
        return HostResult(
            host=host,
            ok=count("ok"),
            changed=count("changed"),
            failed=count("failures"),
            unreachable=bool(count("dark")) or not known,
            changed_tasks=tuple(self._changed.get(host, ())),
            failure=failure,
            results=self._results.get(host, {}),
        )

    def _work(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                self._follow(event)
            except Exception as error:
                # A broken display must not stop the run; its words come out where an error is told.
                self._words.append(f"[follower: {type(error).__name__}: {error}]")

    def _follow(self, event: dict[str, Any]) -> None:
        kind, data = event.get("event"), event.get("event_data") or {}
        if kind == "playbook_on_stats":
            self.stats = data
            return
        if kind in ("error", "verbose", "warning"):
            self._words = [*self._words[-40:], event.get("stdout") or ""]
        seen = _KINDS.get(str(kind))
        if seen is None or "host" not in data:
            return
        host, task, result = data["host"], data.get("task") or "", data.get("res") or {}
        if seen == "ok" and result.get("changed"):
            seen = "changed"
        if seen in ("failed", "unreachable") and not data.get("ignore_errors"):
            self._failures.setdefault(host, _failure(task, result))
        if seen in ("ok", "changed", "failed"):
            self._results.setdefault(host, {})[task] = result
        if seen == "changed":
            self._changed.setdefault(host, []).append(task)
        self._on_event(PlayEvent(seen, host, task, result))


_KINDS: dict[str, Literal["started", "ok", "changed", "skipped", "failed", "unreachable", "progress"]] = {
    "runner_on_start": "started",
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_retry": "progress",
}


def _failure(task: str, result: Mapping[str, Any]) -> TaskFailure:
    # A loop fails with a summary; the item that failed has the words.
    items = result.get("results") or ()
    result = next((item for item in items if isinstance(item, dict) and item.get("failed")), result)
    message = " ".join(str(result.get("msg") or result.get("module_stderr") or "no message").split())
    return TaskFailure(task, message[:600], result.get("code"), result.get("hint"))


def _inventory(hosts: Sequence[AnsibleHost]) -> dict[str, object]:
    return {"all": {"hosts": {host.name: dict(host.variables) for host in hosts}}}


def _environment(private: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    scripts = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{scripts}:{kept.get('PATH', os.defpath)}",
        "LC_ALL": _LOCALE,
        "ANSIBLE_CONFIG": str(data_dir("playbooks") / "ansible.cfg"),
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_HOME": str(private / "home"),
        "ANSIBLE_LOCAL_TEMP": str(private / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(private / "cp"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
    }


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Runner copies os.environ into the run and into its files: for the time of the run it is the short list."""
    saved = dict(os.environ)
    try:
        for name in saved:
            if name not in _INHERITED:
                del os.environ[name]
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM. Off the main thread Python allows no handlers: the event then stays clear."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    saved = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def _processes_of(private: Path) -> list[psutil.Process]:
    """Everything that a run has left: its environment gives it away, even where it has daemonised."""
    import psutil

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get("ANSIBLE_HOME") == str(private / "home")
        except (psutil.Error, OSError):
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


def _end(processes: Sequence[psutil.Process]) -> None:
    import psutil

    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=3)


def _close_connections(folder: Path) -> None:
    """End the shared ssh connections, which would wait a minute for the next task."""
    if not folder.is_dir():
        return
    for control_socket in folder.iterdir():
        subprocess.run(
            ["ssh", "-o", f"ControlPath={control_socket}", "-O", "exit", "any"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
