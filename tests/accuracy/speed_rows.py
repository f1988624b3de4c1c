"""Rows of published speed measurements as the product's own records, and the product's prediction for each.

A row names hardware, model and quantization as its author did; this module resolves the names against the catalog
(hardware always, models where it has them, else by `shapes.py`, else by the parameters in the name) and asks
`provision.sizing`. It looks at what a test is (engine, prompt and answer length, depth, concurrency), never at a row's
id, source or any measured column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from provision.catalog import Catalog, load_catalog
from provision.domain.hardware import Accelerator, AcceleratorSpec, Cpu, Machine, MemoryKind, MemoryPool, Origin
from provision.domain.llm import (
    AttentionLayers,
    EngineSpec,
    Experts,
    Layers,
    ModelBuild,
    ModelSpec,
    Precision,
    Quantization,
    StateLayers,
    WeightLayout,
)
from provision.domain.plan import Placement, Workload
from provision.errors import UsageError
from provision.sizing.cached import by_identity
from provision.sizing.demand import REQUEST_S, Demand, seconds
from provision.sizing.efficiency import EfficiencyModel, efficiency_lookup
from provision.sizing.placing import is_resident, place
from provision.sizing.planner import planned_accelerator
from provision.sizing.speed import Setup, prepare
from tests.accuracy.shapes import Shape, shape_of

COLUMNS = ("id", "expected", "low", "high", "ceiling", "reason")

Row = dict[str, str]

GIB = 2**30


class Unpredictable(Exception):
    """Why a row gets no prediction."""


@dataclass(frozen=True)
class Case:
    """A row resolved: what runs where, and what was timed."""

    setup: Setup
    metric: str
    prompt_tokens: float
    output_tokens: float
    depths: tuple[float, ...]
    """Of decode: mean depths whose speeds are averaged."""
    users: int
    with_request: bool
    """The answer's speed was timed with the request around it."""
    partial: bool

    def demands(self) -> tuple[float, list[Demand]]:
        """Tokens, and what producing them takes: tokens per second is the first over the seconds of the second.

        Of an average over several depths the demand at the mean depth.
        """
        setup, users = self.setup, float(self.users)
        depth = sum(self.depths) / len(self.depths)
        if self.metric == "decode":
            tokens = self.output_tokens if self.with_request else 1.0
            steps = _times(setup.step_demands(depth), tokens)
            if self.with_request:
                steps.append(("request", 0, REQUEST_S))
            return tokens, steps
        prompts = setup.prompt_demands(max(1.0, self.prompt_tokens), depth if "prefill" in self.metric else 0.0, users)
        if "prefill" in self.metric:
            if prompts is None:
                raise Unpredictable("the rate of arithmetic of the device is not known")
            return max(1.0, self.prompt_tokens) * users, prompts
        step = _times(setup.step_demands(depth, users), self.output_tokens)
        if self.metric == "aggregate_decode":
            return users * self.output_tokens, step
        return users * self.output_tokens, step + (prompts or [])

    def limit_s(self) -> float:
        """Least seconds for the tokens of `demands`."""
        setup, depth, users = self.setup, min(self.depths), self.users
        prompt = setup.prompt_limit_s(max(1.0, self.prompt_tokens)) or 0.0
        if "prefill" in self.metric:
            return prompt * users
        if self.metric == "decode":
            return setup.limit_s(depth) * (self.output_tokens if self.with_request else 1.0)
        decode = setup.limit_s(depth, users) * self.output_tokens
        return decode if self.metric == "aggregate_decode" else decode + prompt * users

    @property
    def measure(self) -> str:
        return "prefill" if "prefill" in self.metric else "decode" if self.metric == "decode" else "together"


def _times(demands: list[Demand], count: float) -> list[Demand]:
    return [(term, number, value * count) for term, number, value in demands]


def predict(rows: list[Row], catalog: Catalog | None = None, efficiency: EfficiencyModel | None = None) -> list[Row]:
    """A prediction in tokens/s for each row, or an empty one with its reason; by the catalog's factors if no others."""
    catalog = catalog or load_catalog()
    efficiency = efficiency or efficiency_lookup(catalog.efficiency, catalog.intervals)
    return [_predicted(row, catalog, efficiency) for row in rows]


def _predicted(row: Row, catalog: Catalog, efficiency: EfficiencyModel) -> Row:
    try:
        case = case_of(row, catalog, efficiency)
        tokens, demands = case.demands()
    except Unpredictable as reason:
        return dict(zip(COLUMNS, (row["id"], "", "", "", "", str(reason)), strict=True))
    if case.metric == "decode" and len(case.depths) > 1:
        expected = sum(1 / case.setup.step_s(depth) for depth in case.depths) / len(case.depths)
    else:
        expected = tokens / seconds(demands, case.setup.coefficients)
    ceiling = tokens / case.limit_s()
    interval = case.setup.intervals[case.measure]
    expected = min(expected, ceiling)
    low, high = expected * interval.low_ratio, min(expected * interval.high_ratio, ceiling)
    figures = (f"{x:.5g}" for x in (expected, min(low, expected), max(high, expected), max(ceiling, expected)))
    return dict(zip(COLUMNS, (row["id"], *figures, ""), strict=True))


# What was timed

_LOCALSCORE = (
    (1024, 16), (4096, 256), (2048, 256), (2048, 768), (1024, 1024), (1280, 3072), (384, 1152), (64, 1024), (16, 1536),
)  # fmt: skip
"""Prompt and answer lengths of LocalScore's nine tests; its figure is the mean of their speeds."""

_SHORT_CHAT = (40.0, 200.0)
"""Prompt and answer of tests that ask one short question (llmfit's bench, `ollama run --verbose`)."""

_NOT_STATED = 512.0


def case_of(row: Row, catalog: Catalog, efficiency: EfficiencyModel) -> Case:
    """Raises Unpredictable with the reason where hardware, model or size are not known."""
    metric, test = row["metric"], row["test"]
    if is_speculative(row) and "prefill" not in metric:
        raise Unpredictable("speculative decoding: the share of accepted tokens, which decides the speed, is not given")
    users = int(_number(row["concurrency"]) or 1)
    if metric in ("decode", "prefill", "output_e2e"):
        users = 1  # one user's figure; some authors write a server setting here
    prompt, output, depth = (_number(row[name]) for name in ("n_prompt", "n_gen", "depth_tokens"))
    with_request = test == "llmfit-bench"
    chat = with_request or test in ("ollama-eval-rate", "llmfit bench 3 runs")
    if test == "kv_dtype_sweep":  # fills the context, then answers
        prompt, depth = _number(row["n_ctx"]), 0.0
        if not output and metric not in ("decode", "prefill"):
            raise Unpredictable("how long the answer was is not given, and the figure counts the prompt in")
    before = depth if depth is not None else 0.0
    prompt = prompt if prompt else _SHORT_CHAT[0] if chat else _NOT_STATED
    output = output if output else _SHORT_CHAT[1] if chat else 128.0
    if test == "localscore-9-tests-mean":
        depths = tuple(p + g / 2 for p, g in _LOCALSCORE)
        prompt, output = 1331.0, 1017.0
        if metric == "prefill":
            depths = (0.0,)
    elif metric in ("prefill", "aggregate_prefill"):
        # "pp2048 @ d32768" is behind a context; elsewhere the column repeats the prompt.
        depths = (before if "@" in test else 0.0,)
    elif row["n_prompt"] in ("", "0") or "@" in test:
        depths = (before + output / 2 + (prompt if chat else 0.0),)
    else:
        depths = (max(before, prompt) + output / 2,)
    setup, partial = _setup(row, catalog, efficiency, context=max(depths) + output / 2, users=users)
    return Case(setup, metric, prompt, output, depths, users, with_request and metric == "decode", partial)


_DRAFTED = re.compile(r"(?<![a-z])(mtp|spec|dflash|eagle\d?|medusa)(?![a-z])")


def is_speculative(row: Row) -> bool:
    """Said to be, or a file that carries its own draft heads, or is named after a drafting method: such rows stand far
    above what the memory allows, whatever the column says."""
    return row["spec_decode"] == "yes" or bool(
        _DRAFTED.search(f"{row['model']} {row['quant']} {row['hf_repo']}".lower())
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# What runs where

_ENGINES = {"llama.cpp": "llamacpp", "": "llamacpp", "ollama (or llama.cpp)": "ollama", "mlx-lm": "mlx"}

_HARDWARE = {
    "dgx-spark": "nvidia-gb10",
    "A100 80 GB": "nvidia-a100-sxm-80",
    "H100 80 GB": "nvidia-h100-sxm",
    "H100": "nvidia-h100-sxm",
    "Apple M4 Max": "apple-m4-max-40c",
    "Apple M4 M4 Max": "apple-m4-max-40c",
}

_HOSTS: tuple[tuple[str, float], ...] = (
    ("epyc 9", 460.8e9), ("epyc", 204.8e9), ("threadripper pro", 204.8e9), ("threadripper 7", 166e9),
    ("xeon gold", 128e9), ("xeon(r) platinum", 307.2e9), ("e5-26", 76.8e9), ("10900x", 102e9), ("ampereone", 332.8e9),
    ("snapdragon 888", 51.2e9), ("n150", 38.4e9), ("pi 5", 17.1e9), ("pi cm5", 17.1e9), ("orion o6", 96e9),
    ("ms-r1", 96e9), ("ryzen ai max", 256e9), ("10600k", 42.7e9), ("m4 max", 546e9), ("7840hs", 89.6e9),
    ("8745h", 89.6e9), ("ultra 7 155h", 89.6e9), ("ultra 7 258v", 136.5e9), ("ryzen ai 5 340", 89.6e9),
    ("ryzen ai 7 350", 89.6e9), ("13900", 89.6e9), ("14900", 89.6e9), ("285k", 102.4e9), ("265k", 102.4e9),
    ("7900x", 83.2e9), ("9950x", 89.6e9), ("7950x", 83.2e9), ("7600x", 83.2e9), ("1270p", 76.8e9), ("3700x", 51.2e9),
    ("5600x", 51.2e9), ("5950x", 51.2e9), ("3600", 51.2e9),
)  # fmt: skip
"""Peak bandwidth of the memory that a CPU is sold with: channels x 8 bytes x transfer rate."""

_DEFAULT_HOST_BYTES_PER_S = 89.6e9
"""Two channels of DDR5-5600, where nothing is said about the host."""


def _setup(
    row: Row, catalog: Catalog, efficiency: EfficiencyModel, *, context: float, users: int
) -> tuple[Setup, bool]:
    model = model_of(row["model"], row["hf_repo"], row["params_total"], row["params_active"], row["is_moe"], catalog)
    quantization = quantization_of(row["quant"], row["model"], row["engine"])
    build = _build(model, quantization, row["weight_bytes"])
    on_cpu = row["backend"].lower() == "cpu" and not row["hw_id"]  # where a card is named, some write what feeds it
    cpu_only = row["offload"] == "cpu_only" or on_cpu or row["hw_id"].startswith("cpu-")
    spec = None if cpu_only else _accelerator(row["hw_id"] or row["hardware_as_reported"], catalog)
    devices = int(_number(row["n_devices"]) or 1)
    engine = _ENGINES.get(row["engine"], row["engine"])
    host = _host_bandwidth(row, known=not cpu_only or bool(row["cpu"]))
    processor = row["cpu"] or (row["hw_id"] if cpu_only else "")
    machine = _machine(spec, devices, host, row["hardware_as_reported"], processor)
    layers = model.layer_count
    if spec is None:
        placement = Placement(gpu_layers=0, layers=layers)
    elif _parallel(row["split_mode"]) > 1 and engine in _OWN_MEMORY:
        count = _parallel(row["split_mode"])
        placement = Placement(gpu_layers=layers, layers=layers, tensor_parallel=count, split=(layers,) * count)
    else:
        placement = _placement(row, catalog, machine, (model, build, quantization), engine, context, users)
        if engine in _OWN_MEMORY and not is_resident(placement):
            if not quantization.id.startswith(("Q", "IQ")):
                raise Unpredictable(f"the model does not fit in the device's memory, and {engine} uses no other")
            engine = "llamacpp"  # a GGUF that spills is not served by vLLM, whatever the row says
    partial = spec is not None and not is_resident(placement)
    setup = prepare(
        machine, model, build, quantization, engine, placement, efficiency, _cache_type(row["kv_type"]),
        backend=_backend(row, spec) if engine != "llamacpp" or row["engine"] != "vllm" else None,
        attention=_attention(row), era=_era(row["date"]),
        batch_tokens=int(_number(row["n_ubatch"]) or 0) or (2048 if engine in ("vllm", "sglang") else 512),
    )  # fmt: skip
    if setup is None:
        raise Unpredictable("the bandwidth of the device is not known, or nothing of its class was measured")
    return setup, partial


_OWN_MEMORY = ("vllm", "exllamav3", "sglang")
"""Engines that keep all layers on accelerators."""


@by_identity
def _accelerator(name: str, catalog: Catalog) -> AcceleratorSpec:
    tried = [_HARDWARE.get(name, name), re.sub(r"[(+].*", "", name), re.sub(r"\d+-core.*", "", name)]
    for text in tried:
        try:
            return catalog.accelerator(text.strip())
        except UsageError:
            continue
    raise Unpredictable(f"the catalog does not know '{name}' as one device")


def _machine(
    spec: AcceleratorSpec | None, devices: int, host_bytes_per_s: float | None, reported: str, processor: str
) -> Machine:
    bandwidth = host_bytes_per_s
    cards: tuple[Accelerator, ...] = ()
    if spec is not None:
        if spec.memory_bandwidth_bytes_per_s is None:
            raise Unpredictable(f"the memory bandwidth of {spec.name} is not known")
        cards = tuple(planned_accelerator(_binned(spec, reported), index) for index in range(devices))
        if spec.memory_kind is MemoryKind.UNIFIED:
            bandwidth = spec.memory_bandwidth_bytes_per_s
    return Machine(
        name="row", origin=Origin.DECLARED, cpu=Cpu(model=processor or None, architecture=None),
        memory=MemoryPool(total_bytes=None, bandwidth_bytes_per_s=bandwidth),
        accelerators=cards,
    )  # fmt: skip


def _binned(spec: AcceleratorSpec, reported: str) -> AcceleratorSpec:
    """Apple sells a chip with fewer GPU cores than the catalog's entry: its arithmetic shrinks with them."""
    cores = re.search(r"(\d+).?core GPU", reported, re.IGNORECASE)
    full = re.search(r"of (\d+) GPU cores", spec.notes or "")
    if not cores or not full or not spec.fp32_flops_per_s:
        return spec
    rate = spec.fp32_flops_per_s * min(1.0, int(cores[1]) / int(full[1]))
    return replace(spec, fp32_flops_per_s=rate, fp16_flops_per_s=rate)


def _host_bandwidth(row: Row, *, known: bool) -> float | None:
    text = f"{row['cpu']} {row['hw_id']} {row['hardware_as_reported']}".lower()
    if given := re.search(r"~(\d+) gb/s", text):
        return float(given[1]) * 1e9
    text = text.replace("cpu-", "").replace("-", " ") + text
    for part, bandwidth in _HOSTS:
        if part in text:
            return bandwidth
    return _DEFAULT_HOST_BYTES_PER_S if known else None


def _parallel(split: str) -> int:
    found = re.match(r"TP(\d+)", split)
    return int(found[1]) if found else 1


def _placement(
    row: Row,
    catalog: Catalog,
    machine: Machine,
    build: tuple[ModelSpec, ModelBuild, Quantization],
    engine: str,
    context: float,
    users: int,
) -> Placement:
    """As the row says where it does; else as the product would place it, in memory as large as the row's cards have.

    The context is the row's; where it does not tell one, what the test needs.
    """
    layers, cards = build[0].layer_count, len(machine.accelerators)
    given = row["n_gpu_layers"]
    even = tuple(layers // cards + (i < layers % cards) for i in range(cards))
    resident = Placement(gpu_layers=layers, layers=layers, split=even)
    if moe := re.search(r"n-cpu-moe (\d+)", given):
        return replace(resident, expert_layers_on_host=min(layers, int(moe[1])))
    count = _number(given)
    if row["offload"] == "partial" and count is not None and 0 <= count <= layers:
        split = tuple(int(count) // cards + (i < count % cards) for i in range(cards))
        return Placement(gpu_layers=int(count), layers=layers, split=split)
    dedicated = all(card.memory_kind is MemoryKind.DEDICATED for card in machine.accelerators)
    if row["offload"] == "full" or not dedicated or not machine.pool_of(machine.accelerators[0]).total_bytes:
        return resident
    stated = _number(row["n_ctx"]) or 0.0
    workload = Workload(
        context_tokens=int(max(context, stated, 512.0)), users=users,
        kv_cache_type=_cache_type(row["kv_type"]),  # type: ignore[arg-type]
    )  # fmt: skip
    placed = place(machine, build, _engine(catalog, engine, _era(row["date"]), bool(given)), workload)
    return resident if placed.resident else placed.placement


@by_identity
def _engine(catalog: Catalog, engine: str, era: str, by_hand: bool) -> EngineSpec:
    """The record that says how the engine places: of others than Ollama llama.cpp's. Who sets the layers by hand, and
    vLLM's kind, use what llama.cpp would keep free."""
    if engine == "ollama":
        return catalog.engine("ollama" if era == "current" else "ollama@0.24.0")
    spec = catalog.engine("llamacpp")
    by_hand = by_hand or engine in ("llamafile", *_OWN_MEMORY)
    return replace(spec, device_reserve_bytes=0) if by_hand else spec


def _cache_type(name: str) -> str:
    name = name.lower()
    return "q8_0" if name.startswith(("q8", "fp8", "int8")) else "q4_0" if name.startswith(("q4", "turbo")) else "f16"


_BACKENDS = (
    ("amdvlk", "amdvlk"), ("vulkan", "vulkan"), ("hipblaslt", "rocm-hipblaslt"), ("rocm", "rocm"), ("hip", "rocm"),
    ("cuda", "cuda"), ("metal", "metal"),
)  # fmt: skip


def _backend(row: Row, spec: AcceleratorSpec | None) -> str | None:
    name = row["backend"].lower()
    if row["engine"] in ("vllm", "sglang", "exllamav3", "hipfire", "mlx", "mlx-lm"):
        return row["engine"].removesuffix("-lm")
    if row["model"].endswith("-mlx"):
        return "mlx"
    for part, backend in _BACKENDS:
        if part in name:
            return backend
    if spec is not None and spec.vendor == "amd" and row["engine"] in ("llama.cpp", ""):
        return "vulkan"  # what its ready-made builds for AMD use
    return None


def _attention(row: Row) -> str:
    if row["flash_attn"] in ("1", "True") or "+fa" in row["backend"]:
        return "flash"
    if row["flash_attn"] in ("0", "False"):
        return "plain"
    if row["engine"] in ("vllm", "sglang", "exllamav3", "mlx", "mlx-lm"):
        return "flash"
    return "flash" if row["date"][:7] >= "2025-09" and row["date"][:2] == "20" and ".." not in row["date"] else "plain"


def _era(date: str) -> str:
    """Of the engine's build, as far as the date of the run tells it: speed has changed much from year to year."""
    year = date[:4]
    if ".." in date or "snapshot" in date or not year.isdigit():
        return "mixed"
    return "2024" if year <= "2024" else year if year == "2025" else "current"


# Which model


@by_identity
def model_of(name: str, repo: str, parameters: str, active: str, moe: str, catalog: Catalog | None = None) -> ModelSpec:
    """Of the catalog where it has it under a name in the row; else a stand-in of that shape and size.

    Raises Unpredictable where neither name nor columns tell the size.
    """
    folded = _folded(name)
    total, used = _number(parameters), _number(active)
    catalog = catalog or load_catalog()
    known = _in_catalog(folded, catalog) or _in_catalog(_folded(repo), catalog)
    if known is not None and known.parameters and not (total and abs(total / known.parameters - 1) > 0.25):
        return known
    shape = shape_of(folded) or shape_of(repo.lower().split("/")[-1])
    if shape is None:
        shape = _typical(folded + " " + repo.lower(), total, used, moe)
    elif total and shape.active is None and abs(total / 1e9 / shape.parameters - 1) < 0.2:
        shape = shape._replace(parameters=total / 1e9)
    return _stand_in(folded, shape, mixture=shape.active is not None and not re.search(r"e[24]b", folded))


def _folded(name: str) -> str:
    text = re.sub(r"(?<=\d)_(?=\d)", ".", name.lower().split("/")[-1])
    return re.sub(r"[ _]+", "-", text)


def _in_catalog(name: str, catalog: Catalog) -> ModelSpec | None:
    """By family and size in the name: of mixtures, whose experts a stand-in would have to guess."""
    for pattern, model in _patterns(catalog):
        if pattern.search(name):
            return model
    return None


@by_identity
def _patterns(catalog: Catalog) -> list[tuple[re.Pattern[str], ModelSpec]]:
    """`gemma4:26b` as `gemma-4-26b-a4b-it` and the like; longer names first."""
    found = []
    for model in sorted(catalog.models, key=lambda m: -len(m.id)):
        family, _, size = model.id.partition(":")
        if model.experts is None:
            continue
        pattern = "[-.]?".join(map(re.escape, re.findall(r"[a-z]+|[\d.]+", family))) + r"(?![\d.]|-?next)"
        if size:
            pattern += r"[-:]?(?:[a-z]+-)*?" + re.escape(size)
        pattern = r"(?<![a-z0-9])(?<!distill-)" + pattern + r"(?![a-z0-9.])"
        found.append((re.compile(pattern), model))
    return found


def _typical(name: str, total: float | None, used: float | None, moe: str) -> Shape:
    """The usual shape of models of that size: layers and width grow with a power of it."""
    size = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", name)
    active = re.search(r"(?<![a-z])a(\d+(?:\.\d+)?)([bm])(?![a-z])", name)
    unit = {"b": 1.0, "m": 1e-3}
    if total:
        parameters = total / 1e9
    elif size:
        parameters = float(size[1]) * unit[size[2]]
    else:
        raise Unpredictable("the size of the model is not known")
    routed = used / 1e9 if used else float(active[1]) * unit[active[2]] if active else None
    if routed is not None and routed >= parameters:
        routed = None
    if routed is None and moe == "yes":
        raise Unpredictable("a mixture of experts whose active parameters are not known")
    width = 2048 if parameters > 3 else 1024
    if routed is not None:
        layers = max(24, round(14 * parameters**0.33))
        return Shape(parameters, routed, layers, 2048, width, layers, 128_000, 0)
    layers = min(80, max(16, round(17 * parameters**0.36)))
    hidden = max(256, round(1700 * parameters**0.42 / 128) * 128)
    return Shape(parameters, None, layers, hidden, width, layers, 128_000, int(parameters < 4))


def _stand_in(name: str, shape: Shape, *, mixture: bool) -> ModelSpec:
    groups: list[Layers] = [
        AttentionLayers(
            count=shape.full_layers,
            kv_heads=1,
            key_dim=shape.kv_width // 2,
            value_dim=shape.kv_width - shape.kv_width // 2,
        )
    ]
    if shape.full_layers < shape.layers:
        rest = shape.layers - shape.full_layers
        if re.search("gemma|gpt-oss|trinity|laguna", name):
            window = 128 if "gpt-oss" in name else 1024
            groups.append(
                AttentionLayers(
                    count=rest,
                    kv_heads=1,
                    key_dim=shape.kv_width // 2,
                    value_dim=shape.kv_width - shape.kv_width // 2,
                    window_tokens=window,
                )
            )
        else:
            groups.append(StateLayers(count=rest, state_bytes_per_sequence=shape.hidden * 128 * 4))
    return ModelSpec(
        id=name, name=name, family="measured", parameters=round(shape.parameters * 1e9),
        active_parameters=round(shape.active * 1e9) if shape.active else None, hidden_size=shape.hidden,
        feed_forward_size=shape.hidden * 3, attention_heads=max(1, shape.hidden // 128),
        vocabulary_size=shape.vocabulary, context_tokens_max=131_072, tied_embeddings=bool(shape.tied),
        layers=tuple(groups), experts=_experts(shape) if mixture else None,
        provenance={},
    )  # fmt: skip


def _experts(shape: Shape) -> Experts:
    """One in 32 is used where less than a tenth of all parameters is active, else one in 16: what is usual."""
    sparse = (shape.active or 0.0) < 0.1 * shape.parameters
    return Experts(count=256 if sparse else 128, used=8, feed_forward_size=1024)


_BITS = (
    ("iq1", 1.75), ("iq2_xxs", 2.2), ("iq2_xs", 2.4), ("iq2", 2.7), ("iq3_xxs", 3.1), ("iq3", 3.6), ("iq4_nl", 4.6),
    ("iq4", 4.4), ("q2_k", 3.0), ("q3_k_s", 3.6), ("q3_k_m", 4.0), ("q3_k_l", 4.3), ("q3_k_xl", 3.9), ("q3", 3.9),
    ("q4_k_s", 4.67), ("q4_k_xl", 4.95), ("q4_k_l", 5.1), ("q4_k", 4.89), ("q4_0", 4.6), ("q4_1", 5.0), ("q4", 4.89),
    ("q5_k_s", 5.57), ("q5", 5.7), ("q6_k_xl", 7.0), ("q6", 6.57), ("q8_k_xl", 10.0), ("q8", 8.5), ("mxfp4", 4.5),
    ("mxfp8", 8.3), ("nvfp4", 5.2), ("nv-fp4", 5.2), ("mq4", 4.5), ("awq", 5.0), ("gptq", 5.0), ("int4", 5.0),
    ("autoround", 5.0), ("w4a16", 5.0), ("fp8", 8.5), ("int8", 8.5), ("w8a8", 8.5), ("mixed4", 5.0), ("2bit", 3.0),
    ("3bit", 3.6), ("4bit", 4.6), ("5bit", 5.6), ("6bit", 6.6), ("8bit", 8.6), ("bf16", 16.0), ("fp16", 16.0),
    ("f16", 16.0), ("f32", 32.0),
)  # fmt: skip
"""Bits per parameter of whole files, for rows that do not state a size."""


@cache
def quantization_of(name: str, model: str, engine: str) -> Quantization:
    """By name, else as the model's name says, else what the engine pulls by default. Raises Unpredictable."""
    text = name.lower()
    lowered = model.lower()
    if text in ("", "ollama default tag"):
        text = next((part for part, _ in _BITS if part in lowered), "")
        if not text:
            if "gpt-oss" in lowered:
                text = "mxfp4"
            elif lowered.endswith("-mlx"):
                text = "4bit"
            elif "ollama" in engine or ".gguf" in lowered or name:
                text = "q4_k_m"
            else:
                raise Unpredictable("the quantization, and with it the size of the model, is not known")
    if exact := re.search(r"exl3-(\d+(?:\.\d+)?)bpw", text):
        return _quantization("EXL3", float(exact[1]) + 0.3)
    for part, bits in _BITS:
        if part in text:
            if "gpt-oss" in lowered:
                return _quantization("MXFP4", 4.6)
            if part.endswith("bit"):
                return _quantization(f"MLX-{part}", bits)
            alias = {"autoround": "INT4", "mixed4": "INT4", "nv-fp4": "NVFP4", "mq4": "Q4_0", "mxfp8": "FP8"}
            return _quantization(alias.get(part, part).upper(), bits)
    raise Unpredictable(f"the quantization '{name}' is not known")


def _quantization(identifier: str, bits: float) -> Quantization:
    kept = (
        16.0 if identifier in ("AWQ", "GPTQ", "INT4", "W4A16", "NVFP4", "FP8", "INT8", "W8A8", "BF16", "EXL3") else bits
    )
    return Quantization(
        id=identifier, container="gguf", bits_per_weight=bits, embedding_bits_per_weight=min(kept, 16.0),
        output_bits_per_weight=min(kept, 16.0), rank=0, provenance={},
    )  # fmt: skip


_builds: dict[tuple[int, int, str], tuple[ModelSpec, Quantization, ModelBuild]] = {}


def _build(model: ModelSpec, quantization: Quantization, stated: str) -> ModelBuild:
    """With the stated size, else parameters x bits; its bytes by place from the shape."""
    key = (id(model), id(quantization), stated)
    if key in _builds:
        return _builds[key][2]
    parameters = model.parameters or 0
    size = _number(stated) or parameters * quantization.bits_per_weight / 8
    table = model.vocabulary_size * model.hidden_size / 8
    embedding = min(table * quantization.embedding_bits_per_weight, size / 3)
    output = 0.0 if model.tied_embeddings else min(table * quantization.output_bits_per_weight, size / 3)
    repeating = size - embedding - output
    per_layer = round(repeating / model.layer_count)
    experts = 0.0
    if model.experts and model.active_parameters:
        routed = model.experts
        idle = 1 - model.active_parameters / parameters
        share = idle / (1 - routed.used / routed.count)
        if model.family != "measured":  # of the catalog: three matrices an expert
            one = 3 * model.hidden_size * routed.feed_forward_size
            share = (model.layer_count - routed.dense_layers) * routed.count * one / parameters
        experts = min(0.98 * repeating, share * size)
    build = ModelBuild(
        model=model.id, quantization=quantization.id, weights_bytes=round(size),
        precision=Precision.EXACT if _number(stated) else Precision.ROUNDED,
        layout=WeightLayout(
            embedding_bytes=round(embedding), output_bytes=round(output), layer_bytes=(per_layer,) * model.layer_count,
            expert_bytes=(round(experts / model.layer_count),) * model.layer_count if experts else (),
        ),
        source="row",
    )  # fmt: skip
    _builds[key] = (model, quantization, build)
    return build
