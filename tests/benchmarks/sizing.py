"""What sizing costs when there is much of it: whole processes, start-up included, ratios within one run.

    python tests/benchmarks/sizing.py [batch] [plan] [growth]

batch   `estimate --batch` with 10,000 varied rows (aim: under 5 s on two cores)
plan    `plan` over the whole catalog, every build on three engines, against the Rust peer `llmfit recommend`
        (development dependency) on the same machine (aim: at most 1.3 times its time)
growth  the same plan, and loading the catalog, with the models and builds doubled and quadrupled by entries in a
        temporary user's folder (aim: the added time doubles when the added entries do)

Prints figures; asserts nothing, because another load on the machine changes them.
"""

from __future__ import annotations

import csv
import itertools
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SCRIPTS = Path(sys.executable).parent
PROVISION = [sys.executable, "-m", "provision"]
ROWS = 10_000
ROUNDS = 7
ENGINES = ("ollama", "llamacpp", "vllm")
MACHINE = ("--gpu", "RTX 4090", "--ram", "64GiB", "--memory-platform", "ddr5-5600-2ch")


def main() -> None:
    parts: dict[str, Callable[[Path], None]] = {"batch": batch, "plan": plan, "growth": growth}
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or parts:
            parts[name](Path(folder))


def batch(folder: Path) -> None:
    """Wall and processor time of one run over 10,000 rows, JSON and table."""
    path = folder / "rows.csv"
    write_rows(path, ROWS)
    for form in ((), ("--json",)):
        command = [*PROVISION, "estimate", "--batch", path, *form]
        runs = [_timed(command) for _ in range(3)]
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        name = "estimate --batch " + " ".join(form)
        print(f"{name:<26} {ROWS:,} rows {wall:6.2f} s wall {cpu:6.2f} s processor   {wall / ROWS * 1e3:.3f} ms a row")


def plan(_: Path) -> None:
    """Medians of interleaved runs, and the ratio to the peer."""
    from provision.catalog import load_catalog

    catalog = load_catalog()
    commands: dict[str, list[Any]] = {
        "provision plan, three engines": [*PROVISION, "plan", *MACHINE, *_all_engines()],
        "provision plan --json": [*PROVISION, "plan", *MACHINE, *_all_engines(), "--json"],
    }
    peer = SCRIPTS / "llmfit"
    if shutil.which(peer):
        commands["llmfit recommend"] = [peer, "--memory", "24G", "--ram", "64G", "recommend", "--json"]
    else:
        print("llmfit recommend: not installed, left out")
    print(f"{len(catalog.models)} models, {len(catalog.builds)} builds")
    medians = _medians(commands)
    for name, seconds in medians.items():
        print(f"{name:<32} {seconds * 1e3:7.0f} ms")
    if "llmfit recommend" in medians:
        for name in commands.keys() - {"llmfit recommend"}:
            print(f"{name} / llmfit recommend = {medians[name] / medians['llmfit recommend']:.2f}")


def growth(folder: Path) -> None:
    """Time of `plan` and of loading the catalog against its size."""
    environments = {}
    for times in (1, 2, 4):
        home = folder / f"catalog-{times}x"
        replicate(home / "provision" / "catalog", times)
        # A cache folder each: the cache keeps one catalog, and they would push each other out.
        environments[times] = os.environ | {
            "XDG_DATA_HOME": str(home),
            "XDG_CACHE_HOME": str(folder / f"cache-{times}x"),
        }
    for name, arguments in {
        "plan": ["plan", *MACHINE, *_all_engines()],
        "load": ["catalog", "list", "engines"],
    }.items():
        medians: dict[int, list[float]] = {times: [] for times in environments}
        for _ in range(ROUNDS + 1):  # the first fills the cache and is left out
            for times, environment in environments.items():
                medians[times].append(_timed([*PROVISION, *arguments], environment)[0])
        one, two, four = (statistics.median(medians[times][1:]) for times in (1, 2, 4))
        print(f"{name}: {one * 1e3:.0f} ms, 2x catalog {two * 1e3:.0f} ms, 4x {four * 1e3:.0f} ms; ", end="")
        print(f"4x / 1x = {four / one:.2f}; added by 3x / added by 1x = {(four - one) / (two - one):.2f} (linear: 3)")


def write_rows(path: Path, count: int) -> None:
    """Rows that differ in everything a row can differ in; the same on every run."""
    from provision.catalog import load_catalog

    catalog = load_catalog()
    builds = [
        (b.model, b.quantization) for b in catalog.builds if catalog.quantization(b.quantization).container == "gguf"
    ]
    limits = {model.id: model.context_tokens_max for model in catalog.models}
    cards = [spec.id for spec in catalog.accelerators]
    platforms = [p.id for p in catalog.platforms]
    unified = {spec.id for spec in catalog.accelerators if spec.memory_kind == "unified"}
    choose = random.Random(20261124)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", "model", "quant", "gpu", "ram", "memory_platform", "context", "users", "kv_cache"))
        for number in range(count):
            model, quantization = choose.choice(builds)
            card = choose.choice(cards)
            count_of_cards = 1 if card in unified else choose.choice((1, 1, 1, 2, 4))
            contexts = [c for c in (2048, 4096, 8192, 10_000, 16_384, 32_768, 131_072) if c <= limits[model]] or [512]
            writer.writerow((
                f"case-{number}", model, quantization, f"{count_of_cards}x {card}",
                f"{choose.choice((32, 64, 96, 128, 256, 512))}GiB", "" if card in unified else choose.choice(platforms),
                choose.choice(contexts), choose.choice((1, 1, 1, 2, 4, 8, 16)),
                choose.choice(("f16", "f16", "q8_0", "q4_0")),
            ))  # fmt: skip


def replicate(folder: Path, times: int) -> None:
    """A user's folder of entries that makes the catalog `times` as large: models and builds under new names."""
    from provision.catalog import load_catalog

    catalog = load_catalog()
    folder.mkdir(parents=True)
    for copy in range(1, times):
        lines: list[str] = []
        for model in catalog.models:
            renamed = replace(model, id=f"copy{copy}-{model.id}", aliases=())
            lines += _toml("model", renamed)
        for build in catalog.builds:
            tag = f"copy{copy}-{build.ollama_tag}" if build.ollama_tag else None
            lines += _toml("build", replace(build, model=f"copy{copy}-{build.model}", ollama_tag=tag))
        (folder / f"copy{copy}.toml").write_text("\n".join(lines) + "\n")


def _toml(table: str, record: Any) -> Iterator[str]:
    """One entry. Nested values are written inline, in JSON's form but for the sign between key and value."""
    import json

    from provision.records import to_plain

    def value(thing: Any) -> str:
        if isinstance(thing, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in thing.items() if v is not None) + "}"
        if isinstance(thing, (list, tuple)):
            return "[" + ", ".join(value(item) for item in thing) + "]"
        return json.dumps(thing, ensure_ascii=False)

    plain = json.loads(json.dumps(record, default=to_plain))
    yield f"[[{table}]]"
    for key, item in plain.items():
        if item is not None:
            yield f"{key} = {value(item)}"


def _all_engines() -> list[str]:
    return list(itertools.chain.from_iterable(("--engine", engine) for engine in ENGINES))


def _medians(commands: dict[str, list[Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):  # interleaved, so that drift of the machine hits all alike
        for name, command in commands.items():
            times[name].append(_timed(command)[0])
    return {name: statistics.median(values) for name, values in times.items()}


def _timed(command: list[Any], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True, check=False
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 4) or "Traceback" in done.stderr:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
