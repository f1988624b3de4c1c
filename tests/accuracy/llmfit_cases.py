"""Ten published measurements on which the installed llmfit is run beside our own estimate.

llmfit takes no named card from its command line: a stand-in `nvidia-smi` first on PATH tells it one. Its measurement of
this machine's memory, which would change its answers from run to run, is replaced by a fixed figure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_LLAMA_3_8B = ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3.1:8b")
_LLAMA_3_70B = ("meta-llama/Llama-3.1-70B-Instruct", "llama3.1:70b")
_QWEN_32B = ("Qwen/Qwen2.5-Coder-32B-Instruct", "qwen2.5-coder:32b")
_TABLE = "https://github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference at aa72e0e, median over 512 to 4,096 tokens"
_WEEKLY = "https://localvram.com, Ollama, first run of its series"


@dataclass(frozen=True, slots=True)
class Case:
    driver_name: str
    memory_mib: int
    card: str
    models: tuple[str, str]
    """llmfit's name of it and ours; Llama 3 and 3.1 have the same shape and size."""
    quantization: str
    measured: float
    source: str = _TABLE


CASES = (
    Case("NVIDIA GeForce RTX 4090", 24564, "RTX 4090", _LLAMA_3_8B, "Q4_K_M", 123.6),
    Case("NVIDIA GeForce RTX 4090", 24564, "RTX 4090", _LLAMA_3_8B, "F16", 53.5),
    Case("NVIDIA GeForce RTX 3090", 24576, "RTX 3090", _LLAMA_3_8B, "Q4_K_M", 104.5),
    Case("NVIDIA GeForce RTX 3090", 24576, "RTX 3090", _LLAMA_3_8B, "F16", 45.65),
    Case("NVIDIA GeForce RTX 3090", 24576, "RTX 3090", _QWEN_32B, "Q4_K_M", 33.1, _WEEKLY),
    Case("NVIDIA RTX A6000", 49140, "RTX A6000", _LLAMA_3_8B, "Q4_K_M", 98.5),
    Case("NVIDIA RTX A6000", 49140, "RTX A6000", _LLAMA_3_70B, "Q4_K_M", 14.34),
    Case("NVIDIA GeForce RTX 3080", 10240, "RTX 3080 10GB", _LLAMA_3_8B, "Q4_K_M", 102.5),
    Case("NVIDIA GeForce RTX 4070 Ti", 12282, "RTX 4070 Ti", _LLAMA_3_8B, "Q4_K_M", 80.4),
    Case("NVIDIA RTX 4000 Ada Generation", 20475, "RTX 4000 Ada", _LLAMA_3_8B, "Q4_K_M", 57.3),
)


class Unavailable(Exception):
    """Why llmfit cannot be run here."""


def llmfit_tokens_per_s(case: Case, folder: Path) -> float:
    """What the installed llmfit estimates. Raises Unavailable."""
    program = shutil.which(str(Path(sys.executable).parent / "llmfit")) or shutil.which("llmfit")
    if program is None:
        raise Unavailable("llmfit is not installed (development dependency)")
    stand_in = folder / "nvidia-smi"
    line = f"{case.memory_mib}, {case.driver_name}"
    stand_in.write_text(
        "#!/bin/sh\ncase \"$*\" in\n"
        f"*addressing_mode,memory.total,name*) echo 'HMM, {line}' ;;\n"
        f"*memory.total,name*) echo '{line}' ;;\n"
        "*) exit 1 ;;\nesac\n"
    )  # fmt: skip
    stand_in.chmod(0o755)
    command = [
        program, "--ram", "64G", "--cpu-cores", "16", "plan", case.models[0], "--context", "8192",
        "--quant", case.quantization, "--json",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "LLMFIT_DDR_BANDWIDTH": "70",
        "HOME": str(folder),
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        return float(json.loads(done.stdout)["current"]["estimated_tps"])
    except OSError as error:
        raise Unavailable(f"llmfit does not start: {error}") from error
    except (ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"llmfit does not answer: {type(error).__name__} {error}; {done.stderr[-300:]}") from error
