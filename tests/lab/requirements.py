"""What the lab needs from the machine it runs on, and how to get it on Debian or Ubuntu."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable

PACKAGES = (
    "systemd-container",
    "mmdebstrap",
    "debian-archive-keyring",
    "openssh-client",
    "iproute2",
    "zstd",
    "gcc",
    "g++",
    "libc6-dev",
    "e2fsprogs",
    "util-linux",
)
"""Debian package names; Ubuntu has the same ones."""

HOST_PROGRAMS = ("systemd-nspawn", "mmdebstrap", "ssh", "ssh-keygen", "ip", "nsenter", "mount", "losetup", "mkfs.ext4")
BUILD_PROGRAMS = ("gcc", "g++", "zstd", "tar")

_HINT = "run `python -m tests.lab.setup` as root on Debian or Ubuntu"


def missing() -> str | None:
    """The reason why lab hosts cannot run here, or None when they can. Changes nothing that lasts."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the lab needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if os.geteuid() != 0:
        return "the lab needs root: it boots hosts in network namespaces"
    if absent := _absent(HOST_PROGRAMS):
        return f"the lab needs {', '.join(absent)}: {_HINT}"
    return _namespaces_refused()


def missing_build_tools() -> str | None:
    """The reason why the lab cannot compile its stand-ins or pack the Ollama release, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the lab needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if absent := _absent(BUILD_PROGRAMS):
        return f"the lab needs {', '.join(absent)}: {_HINT}"
    return None


def install(report: Callable[[str], None]) -> str | None:
    """Install what is absent with apt-get; returns the reason why the lab still cannot run, or None."""
    absent = _absent(HOST_PROGRAMS + BUILD_PROGRAMS)
    if absent and os.geteuid() == 0 and shutil.which("apt-get"):
        report(f"installing {' '.join(PACKAGES)} (absent: {' '.join(absent)})")
        _apt_get("update", "-q")
        _apt_get("install", "-q", "-y", "--no-install-recommends", *PACKAGES)
        _namespaces_refused.cache_clear()
    return missing() or missing_build_tools()


def _absent(programs: tuple[str, ...]) -> list[str]:
    return [program for program in programs if shutil.which(program) is None]


@functools.cache
def _namespaces_refused() -> str | None:
    """Containers often have root without the right to make namespaces or to mount: only trying tells."""
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", "mount -t tmpfs none /mnt && ip link set lo up"],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode != 0:
        return f"the lab needs the right to make namespaces and mounts, which is refused here: {trial.stderr.strip()}"
    return None


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"apt-get {arguments[0]} failed: {done.stderr.strip()}")
