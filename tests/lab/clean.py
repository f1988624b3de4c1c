"""Removes lab hosts whose test run is gone: `python -m tests.lab.clean`; `--all` takes living runs' hosts too.

Everything a host uses on this machine carries its lab id (the process id of the test run and a number), and its folder
under `BASE` says which process that was, so a run that was killed leaves nothing that cannot be found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab.network import close_link, names_of, namespace_process_ids
from tests.lab.rootfs import remove_copy

BASE = Path("/var/tmp/provision-lab")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def remove_leftovers(everything: bool = False) -> list[str]:
    """Remove hosts whose owner is dead (or all of them) and return their lab ids."""
    removed = []
    for folder in sorted(BASE.glob("*-*")):
        if everything or not _owner_lives(folder):
            remove_host(folder.name)
            removed.append(folder.name)
    return removed


def remove_host(lab_id: str) -> None:
    """Kill a host's processes and delete its mounts, network and folder; whatever is already gone is fine."""
    kill_processes(lab_id)
    folder = BASE / lab_id
    for loop in folder.glob("*.loop"):
        subprocess.run(["losetup", "--detach", loop.read_text()], capture_output=True, check=False)
    close_link(lab_id)
    for cgroup in cgroup_folders(lab_id):
        _remove_cgroup(cgroup)
    remove_copy(folder)


def kill_processes(lab_id: str) -> None:
    """Kill everything in a host and wait until it is gone. The kernel ends the rest with the host's process 1."""
    deadline = time.monotonic() + 10
    while alive := _process_ids(lab_id):
        for process_id in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes of lab host {lab_id} do not die: {alive}")
        time.sleep(0.02)


def cgroup_folders(lab_id: str) -> list[Path]:
    """Where a host's cgroups are when this machine is not run by systemd, which would place them itself.

    Each host needs its own: two systemds in one cgroup would take each other's services for their own.
    """
    hierarchies = (_CGROUP_ROOT / "systemd", _CGROUP_ROOT / "unified", _CGROUP_ROOT)
    return [folder / names_of(lab_id)[0] for folder in hierarchies if (folder / "cgroup.procs").exists()]


def write_owner(folder: Path) -> None:
    """Note that the running process owns a host's folder."""
    (folder / "owner").write_text(f"{os.getpid()} {_start_time(os.getpid())}")


def _owner_lives(folder: Path) -> bool:
    try:
        process_id, start_time = (folder / "owner").read_text().split()
    except (FileNotFoundError, ValueError):
        # Killed before it could write the file, or about to: the folder's name says whose it is.
        return _start_time(int(folder.name.split("-")[0])) is not None
    return _start_time(int(process_id)) == start_time


def _start_time(process_id: int) -> str | None:
    """The kernel's start time of a process: together with the id it names a process beyond doubt."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _process_ids(lab_id: str) -> list[int]:
    found = set(namespace_process_ids(names_of(lab_id)[0]))
    for cgroup in cgroup_folders(lab_id):
        for procs in cgroup.rglob("cgroup.procs"):
            try:
                found.update(int(line) for line in procs.read_text().split())
            except (FileNotFoundError, OSError):
                continue
    found.discard(0)
    return sorted(found)


def _remove_cgroup(cgroup: Path) -> None:
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            # Busy for a moment after the last process; an empty cgroup costs nothing and the next cleaning gets it.
            continue


if __name__ == "__main__":
    for name in remove_leftovers(everything="--all" in sys.argv[1:]):
        print(f"removed lab host {name}")
