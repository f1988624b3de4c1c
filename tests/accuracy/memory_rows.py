"""Rows of published start-up logs, one per device of one start, as the product's own records, and its bill for each.

All rows of one log are the devices of one start: which there are decides how layers are split. What a log's settings do
not say (a `--tensor-split` by hand, which tensors an override moved) is not guessed: where a buffer depends on it, the
row gets a reason. Measured columns, the row's id and its source are not looked at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace

from provision.catalog import Catalog, load_catalog
from provision.domain.hardware import Accelerator, Machine, MemoryPool, Origin
from provision.domain.llm import EngineSpec, LatentAttentionLayers, ModelBuild, ModelSpec, Quantization
from provision.domain.plan import DeviceMemory, Placement, Workload
from provision.errors import ProvisionError
from provision.sizing import compute_buffer, kv_cache, memory, weights
from tests.accuracy import memory_models

BUFFERS = ("model_buffer_MiB", "kv_buffer_MiB", "rs_buffer_MiB", "compute_buffer_MiB", "output_buffer_MiB")
COLUMNS = ("id", *BUFFERS, "total_MiB", "kv_total_MiB", "reason")

MIB = 2**20
Row = dict[str, str]

_ENCODERS = ("bert", "nomic-bert")


class Unpredictable(Exception):
    """Why a log gets no prediction."""


@dataclass(frozen=True)
class Case:
    """One start: what ran, where, with which settings."""

    model: ModelSpec
    build: ModelBuild
    quantization: Quantization
    engine: EngineSpec
    workload: Workload
    accelerators: tuple[str, ...]
    """The log's names, in its order: CUDA0, CUDA1, ..."""
    capacities: tuple[int, ...]
    placement: Placement
    overridden: bool
    """Some tensors were moved by hand."""
    split_known: bool
    weights_known: bool
    rows_split: bool
    """Each matrix is split over all devices, by rows."""
    latent_of_the_fork: bool
    hosts: tuple[str, ...]
    """The log's names of buffers in host memory."""


def predict(rows: list[Row]) -> list[Row]:
    """One line a row: buffers in MiB, or a reason."""
    catalog = load_catalog()
    logs: dict[str, list[Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        logs[row.get("log_id") or f"row {index}"].append(row)
    answers: dict[int, Row] = {}
    for devices in logs.values():
        try:
            case = _case(catalog, devices)
            bill = _bill(case)
            for row in devices:
                answers[id(row)] = _answer(case, bill, row)
        except (Unpredictable, ProvisionError) as reason:
            for row in devices:
                answers[id(row)] = {"id": row["id"], "reason": str(reason)}
    return [answers[id(row)] for row in rows]


def _case(catalog: Catalog, devices: list[Row]) -> Case:
    row = devices[0]
    if not row.get("device") or (row.get("peak_kind", "") and not row.get("n_ctx")):
        raise Unpredictable("no device is named")
    model, weights_known = memory_models.model_of(catalog, row)
    tokens = _number(row, "n_ctx")
    if tokens is None:
        raise Unpredictable("the context is not given")
    engine = _engine(catalog, row, model)
    slots = int(_number(row, "n_seq_max") or 1)
    key, value = _cache_types(row)
    # A log's context is that of all slots together.
    workload = Workload(
        context_tokens=max(1, int(tokens) // slots),
        users=slots,
        kv_cache_type=key,  # type: ignore[arg-type]
        value_cache_type=value,
    )
    build, quantization = memory_models.build_of(catalog, row, model)
    build = replace(build, expanded_cache=_is_expanded(row))
    names = tuple(sorted({r["device"] for r in devices if _is_accelerator(r)}, key=_order))
    count = max(len(names), int(_number(row, "n_gpus") or 0))
    capacities, alike = _capacities(catalog, devices, names)
    total = int(_number(row, "total_layers") or 0)
    offloaded = _number(row, "offloaded_layers") if row.get("offloaded_layers", "").isdigit() else None
    if not names or (offloaded == 0):
        split: tuple[int, ...] = (0,) * len(names)
        output_on_host = True
    else:
        places = model.layer_count + 1
        on_devices = places if offloaded is None or not total else min(places, int(offloaded))
        everything = on_devices >= places
        old = engine.graph != "llama.cpp"
        output_on_host = not everything and old
        layers = on_devices if output_on_host else on_devices - 1
        split = tuple(memory.default_split(layers, capacities, output=not output_on_host))
    placement = Placement(gpu_layers=sum(split), layers=model.layer_count, split=split, output_on_host=output_on_host)
    return Case(
        model=model,
        build=build,
        quantization=quantization,
        engine=engine,
        workload=workload,
        accelerators=names,
        capacities=capacities,
        placement=placement,
        overridden=row.get("tensor_override", "").startswith("yes"),
        split_known=len(names) <= 1 or (alike and len(names) == count),
        weights_known=weights_known and build.weights_bytes > 0,
        hosts=tuple(r["device"] for r in devices if not _is_accelerator(r)),
        rows_split=any(r["device"].endswith("_Split") for r in devices),
        latent_of_the_fork=engine.graph == "ik_llama.cpp"
        and not build.expanded_cache
        and any(isinstance(group, LatentAttentionLayers) for group in model.layers),
    )


def _bill(case: Case) -> dict[str, DeviceMemory]:
    machine = Machine(
        name="log",
        origin=Origin.DECLARED,
        memory=MemoryPool(total_bytes=None),
        accelerators=tuple(
            Accelerator(index=i, vendor="nvidia", name=name, memory=MemoryPool(total_bytes=capacity))
            for i, (name, capacity) in enumerate(zip(case.accelerators, case.capacities, strict=True))
        ),
    )
    estimate = memory.itemise(
        machine, case.model, case.build, case.quantization, case.engine, case.workload, case.placement
    )
    return {d.device: d for d in estimate.devices}


def _answer(case: Case, bill: dict[str, DeviceMemory], row: Row) -> Row:
    name = row["device"]
    host = not _is_accelerator(row)
    found = bill.get("host" if host else f"gpu{case.accelerators.index(name)}")
    cache, state = kv_cache.bytes_by_group(case.model, case.build, case.workload, case.engine)
    counts = [group.count for group in case.model.layers]
    answer: Row = {"id": row["id"], "kv_total_MiB": _mib(sum(c * b for c, b in zip(counts, cache, strict=True)))}
    reasons = []
    holds_weights, holds_cache, holds_graph = _roles(case, name) if host else (True, True, True)
    if name not in ("CPU", "CPU_Mapped") and host and "Host" not in name:
        split = name.endswith("_Split")
        return answer | {"reason": "rows are split over devices" if split else f"what {name} repacks is not given"}
    output = compute_buffer.output_bytes(case.model, case.workload.users)
    if found is None:
        answer |= {"kv_buffer_MiB": "", "reason": "no layer is on this device"}
        found_weights = found_kv = found_state = found_compute = 0
    else:
        found_weights, found_kv, found_state = found.weights_bytes, found.kv_cache_bytes, found.state_bytes
        found_compute = found.compute_bytes - (output if host else 0)
    if not case.weights_known:
        reasons.append("the size of the file is not given")
    elif case.overridden:
        reasons.append("which tensors the override moved is not given")
    elif case.rows_split and not host:
        reasons.append("rows are split over devices, in shares that are not given")
    elif not host and len(case.accelerators) > 1 and any(_overfull(bill, n) for n in range(len(case.accelerators))):
        reasons.append("split as llama.cpp does by itself it would not have started")
    elif not case.split_known and not host:
        reasons.append("how layers were split over unlike devices is not given")
    elif found is not None and holds_weights:
        answer["model_buffer_MiB"] = _mib(found_weights)
    if found is not None and holds_cache and (found_kv or not host):
        answer["kv_buffer_MiB"] = _mib(found_kv)
    if any(state) and holds_cache:
        answer["rs_buffer_MiB"] = _mib(found_state)
    if case.latent_of_the_fork:
        reasons.append("the fork's latent attention is not modelled: its compute buffer is not known")
    elif holds_graph:
        answer["compute_buffer_MiB"] = _mib(_compute(case, name, found_compute, host))
    if host and holds_graph:
        answer["output_buffer_MiB"] = _mib(output)
    if "model_buffer_MiB" in answer:
        answer["total_MiB"] = _mib(found_weights + found_kv + found_state + found_compute + (output if host else 0))
    if host and not (holds_weights or holds_cache or holds_graph):
        reasons.append("what this name stands for is counted in another of the host's buffers")
    answer["reason"] = "; ".join(filter(None, [answer.get("reason", ""), *reasons]))
    return answer


def _roles(case: Case, name: str) -> tuple[bool, bool, bool]:
    """Which of weights, cache and graph a host buffer holds: a mapped file has weights only, pinned memory the graph's
    inputs and outputs; what has no buffer of its own is in the plain one."""

    def first(*wanted: str) -> bool:
        present = [h for want in wanted for h in case.hosts if h == want or (want == "_Host" and want in h)]
        return not present or name == present[0]

    plain = "CPU" if "CPU" in case.hosts else "_Host"
    return first("CPU_Mapped", plain), first(plain, "CPU_Mapped"), first("_Host", plain, "CPU_Mapped")


def _compute(case: Case, name: str, plain: int, host: bool) -> int:
    """With tensors moved to the host by an override, the first device copies them in for a prefill step, and nothing is
    pipelined; a device without layers does only that."""
    resident = any(case.placement.split)
    if not case.overridden and (host or resident):
        return plain
    graph = compute_buffer.shape_for(case.model, case.engine, case.workload, expanded=case.build.expanded_cache)
    if host:
        return compute_buffer.host_bytes(graph) if case.accelerators else plain
    index = case.accelerators.index(name)
    last = max((i for i, n in enumerate(case.placement.split) if n), default=0)
    layout = weights.layout(case.model, case.build, case.quantization)
    copied = 0
    if case.engine.graph != "ik_llama.cpp" and index == 0 and layout.expert_bytes:
        copied = round(max(layout.expert_bytes) * weights.largest_expert_share(case.model, case.quantization))
    if not resident:
        matrix = 0 if copied else round(max(layout.layer_bytes) * weights.LARGEST_DENSE_SHARE)
        return compute_buffer.helper_bytes(graph, copied_expert_bytes=copied, copied_layer_bytes=matrix)
    return compute_buffer.device_bytes(graph, with_output=index == last, first=index == 0, copied_expert_bytes=copied)


def _overfull(bill: dict[str, DeviceMemory], index: int) -> bool:
    row = bill.get(f"gpu{index}")
    return row is not None and row.headroom_bytes is not None and row.headroom_bytes + row.overhead_bytes < 0


def _engine(catalog: Catalog, row: Row, model: ModelSpec) -> EngineSpec:
    """The engine as its build has it. Builds count up by day: 2,900 is May 2024, 5,450 is May 2025 (windows of their
    own), 8,000 is February 2026; without a build the date decides."""
    name = row.get("engine", "")
    build = re.match(r"\d{4,5}", row.get("build", ""))
    number = int(build[0]) if build else None
    date = row.get("date", "")
    date = f"{date}-06" if len(date) == 4 else date
    if name.startswith("ik_"):
        graph = "ik_llama.cpp"
    elif number is not None:
        graph = "llama.cpp-2024" if number < 5450 else "llama.cpp-2025" if number < 8000 else "llama.cpp"
    else:
        graph = "llama.cpp-2024" if date < "2025-05-20" else "llama.cpp-2025" if date < "2026" else "llama.cpp"
    base = catalog.engine("ollama" if name.startswith("ollama") else "llamacpp")
    flash = row.get("flash_attn", "")
    on = flash.startswith(("1", "on", "True", "enabled")) or (flash == "" and graph == "llama.cpp")
    step = _number(row, "n_ubatch") or 512
    return replace(
        base,
        graph=graph,  # type: ignore[arg-type]
        batch_tokens=int(step),
        flash_attention=on,
        logits_of_all_tokens=graph != "llama.cpp",
        latent_cache_twice=graph != "llama.cpp" if graph != "ik_llama.cpp" else row.get("mla_attn") == "1" and not on,
        unified_cache=True,
    )


def _cache_types(row: Row) -> tuple[str, str | None]:
    key = row.get("kv_type_k", "").removeprefix("mla:") or "f16"
    value = row.get("kv_type_v", "").removeprefix("mla:") or None
    for kind in (key, value or key):
        if kind not in kv_cache.KV_BYTES_PER_VALUE:
            raise Unpredictable(f"cache type {kind} is not known")
    return key, value


def _is_expanded(row: Row) -> bool:
    """The fork keeps whole keys and values unless it was told to use the latent path; llama.cpp by the file."""
    return not row.get("kv_type_k", "").startswith("mla:") and row.get("head_dim_k", "") != "576"


def _capacities(catalog: Catalog, devices: list[Row], names: tuple[str, ...]) -> tuple[tuple[int, ...], bool]:
    """Memory of each accelerator by its name, and whether all are alike; one size for all where a name is unknown."""
    found: dict[str, int | None] = {}
    labels = set()
    for row in devices:
        if row["device"] in names:
            label = row.get("device_name", "")
            labels.add(label)
            try:
                spec = catalog.accelerator(label)
                found[row["device"]] = spec.reported_memory_bytes or spec.memory_bytes
            except ProvisionError:
                found[row["device"]] = None
    sizes = [found.get(name) for name in names]
    if any(size is None for size in sizes):
        return (24 * 2**30,) * len(names), len(labels) <= 1
    return tuple(size or 0 for size in sizes), len(set(sizes)) <= 1


def _is_accelerator(row: Row) -> bool:
    """By the buffers' name in a log; a row that is no log names the card itself."""
    device = row["device"]
    return bool(re.fullmatch(r"(CUDA|Vulkan|ROCm|Metal|SYCL|HTP)\d*", device)) or not row.get("log_id")


def _order(device: str) -> tuple[str, int]:
    digits = re.search(r"\d+$", device)
    return device.rstrip("0123456789"), int(digits[0]) if digits else 0


def _number(row: Row, column: str) -> float | None:
    try:
        return float(row.get(column, "")) if row.get(column) else None
    except ValueError:
        return None


def _mib(size: float) -> str:
    return f"{size / MIB:.2f}"
