"""Gets the lab ready: installs what it needs and builds what is cached. `python -m tests.lab.setup`"""

from __future__ import annotations

import sys

from tests.lab import requirements
from tests.lab.ollama_release import ollama_release
from tests.lab.registry import build_models_folder
from tests.lab.rootfs import cached_root
from tests.lab.vllm_engine import vllm_python


def main() -> int:
    """Prints a line per step. Exit code 0 also where the lab cannot run: its tests then skip with the reason."""

    def report(line: str) -> None:
        print(f"lab: {line}", flush=True)

    if reason := requirements.install(report):
        report(f"not available: {reason}")
        return 0
    cached_root(report=report)
    build_models_folder(ollama_release(report=report), report=report)
    try:
        vllm_python(report=report)
    except (RuntimeError, OSError) as error:
        report(f"no vLLM for the CPU, its tests will be skipped: {error}")
    report("ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
