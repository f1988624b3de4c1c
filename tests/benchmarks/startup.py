"""How long a user waits before the first word: whole processes, medians, ratios within one run.

    python tests/benchmarks/startup.py

Compares `provision --help` with the bare interpreter, and `provision plan` with the Rust peer llmfit (development
dependency) on the same question. Prints figures; asserts nothing, because another load on the machine changes them.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
ROUNDS = 15

COMMANDS = {
    "bare interpreter": [sys.executable, "-c", "pass"],
    "provision --help": [SCRIPTS / "provision", "--help"],
    "provision plan --help": [SCRIPTS / "provision", "plan", "--help"],
    "provision plan": [SCRIPTS / "provision", "plan", "--gpu", "RTX 4090", "--ram", "64GiB"],
    "provision plan --json": [SCRIPTS / "provision", "plan", "--gpu", "RTX 4090", "--ram", "64GiB", "--json"],
    "provision detect": [SCRIPTS / "provision", "detect"],
    "llmfit recommend": [SCRIPTS / "llmfit", "--memory", "24G", "--ram", "64G", "recommend", "--json"],
}


def seconds(command: list[str | Path]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def main() -> None:
    present = {name: command for name, command in COMMANDS.items() if shutil.which(str(command[0]))}
    for missing in COMMANDS.keys() - present.keys():
        print(f"{missing}: not installed, left out")
    times: dict[str, list[float]] = {name: [] for name in present}
    for _ in range(ROUNDS):  # interleaved, so that drift of the machine hits all alike
        for name, command in present.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:<24} {median * 1000:7.0f} ms   {median / medians['bare interpreter']:5.1f} x bare interpreter")
    if "llmfit recommend" in medians:
        print(f"provision plan / llmfit recommend = {medians['provision plan'] / medians['llmfit recommend']:.2f}")
    print(f"provision --help / bare interpreter = {medians['provision --help'] / medians['bare interpreter']:.2f}")


if __name__ == "__main__":
    main()
