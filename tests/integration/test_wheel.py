"""The wheel alone, in an empty environment and from another folder: catalog and playbooks must be inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import checked_envelope
from tests.lab.ollama_release import OLLAMA_VERSION

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return next(folder.glob("provision_llm-*.whl"))


def _interpreter(version: str) -> str | None:
    """A working Python of that version, or None."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    found = shutil.which(f"python{version}")
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    for candidate in [found, *map(str, pyenv)]:
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return candidate
    return None


@pytest.fixture(scope="module", params=["3.11", "3.12", "3.13"])
def installed(request, wheel, tmp_path_factory):
    """The `provision` of a fresh environment that holds the wheel and its dependencies, and an empty folder."""
    python = _interpreter(request.param)
    if python is None:
        pytest.skip(f"Python {request.param} is not installed here")
    folder = tmp_path_factory.mktemp(f"installed-{request.param}")
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    subprocess.run(
        [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel],
        check=True,
        capture_output=True,
        timeout=600,
    )
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return folder / "venv/bin/provision", elsewhere


def _run(provision: Path, folder: Path, *arguments: str | Path) -> dict:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # not the environment's own
    done = subprocess.run(
        [provision, *arguments, "--json"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    envelope = checked_envelope(json.loads(done.stdout), done.returncode)
    assert not envelope["errors"], envelope["errors"]
    return envelope["data"]


def test_it_plans(installed):
    provision, folder = installed
    data = _run(provision, folder, "plan", "--gpu", "2x RTX 4090", "--ram", "128GiB", "-o", "plan.json")
    assert data["candidates"]
    assert json.loads((folder / "plan.json").read_text())["selected"]
    assert _run(provision, folder, "catalog", "check") is not None


@pytest.mark.lab
def test_it_applies(installed, lab_host, release_mirror, model_registry):
    provision, folder = installed
    host = lab_host("wheel")
    where = ["--host", host.name, "--ssh-config", host.ssh_config]
    chosen = ["--model", "smollm2:135m", "--quant", "Q4_1", "--context", "2k", "-o", "small.json"]
    _run(provision, folder, "plan", *where, *chosen)
    address = host.controller_address
    sources = [
        "--mirror", release_mirror.url(address), "--engine-version", OLLAMA_VERSION, "--allow-old-engine",
        "--registry", model_registry.url(address).removeprefix("http://"), "--insecure-registry",
    ]  # fmt: skip
    (outcome,) = _run(provision, folder, "apply", "small.json", *where, *sources, "--yes")["hosts"]
    assert outcome["status"] == "changed"
    assert host.run("systemctl is-active ollama").stdout.strip() == "active"
