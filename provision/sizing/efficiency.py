"""What engines reach of a machine's limits: the catalog's fitted factors, looked up by circumstance.

The time of a step is a sum of terms; each is a physical quantity in seconds (`provision/sizing/demand.py`) times the
product of the factors that apply. Factors come from tables by term and scope (catalog/efficiency.toml, written by
`make fit`): one for all, one by class of device, by generation, by family of quantization, by engine, by device, ...
A circumstance that no table knows counts as 1, so that a card never measured gets what its class and generation reach.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from provision.domain.llm import Efficiency, ModelSpec, SpeedInterval, SpeedTerm

REFERENCE_BANDWIDTH_BYTES_PER_S = 300e9
"""Of the factors by bandwidth: about the middle of what was measured, on a logarithmic scale."""

HOST_CLASS = "cpu"

_RUNTIMES = {"ollama": "llamacpp", "llamafile": "llamacpp", "lmstudio": "llamacpp", "lucebox": "llamacpp"}

_FAMILIES = {
    "F16": "f16", "FP16": "f16", "F32": "f16", "BF16": "bf16", "Q8_0": "q8", "Q8_K_XL": "q8", "Q6_K": "q6",
    "Q4_0": "q4_0", "Q4_1": "q4_0", "IQ4_NL": "q4_0", "MXFP4": "q4_0", "Q5_0": "q4_0", "Q5_1": "q4_0",
    "FP8": "fp8", "FP8-DYNAMIC": "fp8", "INT8": "fp8", "W8A8": "fp8", "AWQ": "int4", "GPTQ": "int4", "INT4": "int4",
    "W4A16": "int4", "NVFP4": "nvfp4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """The circumstances that factors are told apart by: which device runs what, with what."""

    device_class: str
    vendor: str
    architecture: str
    device: str
    """Catalog id of the accelerator, or of the memory platform of a host."""
    engine: str
    backend: str
    family: str
    """Of the quantization, see `family_of`."""
    moe: str = "dense"
    attention: str = "flash"
    """`flash` or `plain`."""
    era: str = "current"
    """`2024` for engines of that year and before."""
    shape: str = "transformer"
    """`hybrid` for models with recurrent layers."""
    bandwidth_bytes_per_s: float = REFERENCE_BANDWIDTH_BYTES_PER_S

    @property
    def runtime(self) -> str:
        """The code that computes: Ollama, llamafile and LM Studio run llama.cpp's."""
        return _RUNTIMES.get(self.engine, self.engine)


TERMS: tuple[str, ...] = get_args(SpeedTerm)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Product of the factors of each term, for one kernel; the device's own factor is in every one."""

    by_term: dict[str, float]
    measured: bool
    """Whether this very device is among the measurements."""


@dataclass(frozen=True, slots=True)
class Interval:
    low_ratio: float
    high_ratio: float


class EfficiencyModel:
    """Look-up over the catalog's records; a kernel is worked out once. Called with a kernel it gives its coefficients,
    or None where nothing of its class was measured."""

    def __init__(self, records: Iterable[Efficiency], intervals: Iterable[SpeedInterval] = ()) -> None:
        by_scope: dict[str, dict[str, list[tuple[str, float]]]] = {}
        for record in records:
            if "^" not in record.scope:
                table = by_scope.setdefault(record.scope, {})
                for key, factor in record.factors.items():
                    table.setdefault(key, []).append((record.term, factor))
        # By scope, then key: one key serves all terms.
        self._tables = [(scope.split("+"), table) for scope, table in by_scope.items()]
        self._exponents = [(r.scope.split("^")[1].split("+"), r.factors) for r in records if "^" in r.scope]
        self._classes = {key for r in records if r.scope == "device_class" and r.term == "memory" for key in r.factors}
        self._devices = {key for r in records if r.scope == "device" for key, n in r.samples.items() if n}
        self._intervals: dict[tuple[str, str], Interval] = {
            (i.measure, i.group): Interval(i.low_ratio, i.high_ratio) for i in intervals
        }
        self._known: dict[Kernel, Coefficients | None] = {}
        self._by_kernel: dict[tuple[Kernel, bool, bool, bool, bool], dict[str, Interval]] = {}

    def __call__(self, kernel: Kernel) -> Coefficients | None:
        try:
            return self._known[kernel]
        except KeyError:
            found = self._known[kernel] = self._coefficients(kernel)
            return found

    def _coefficients(self, kernel: Kernel) -> Coefficients | None:
        if kernel.device_class not in self._classes:
            return None
        products = dict.fromkeys(TERMS, 1.0)
        for scope, table in self._tables:
            for term, factor in table.get(key_of(kernel, scope), ()):
                products[term] *= factor
        for scope, factors in self._exponents:
            exponent = factors.get(key_of(kernel, scope), 0.0)
            products["memory"] *= (kernel.bandwidth_bytes_per_s / REFERENCE_BANDWIDTH_BYTES_PER_S) ** exponent
        whole = products.pop("whole")
        by_term = {term: value if term.startswith("prompt") else value * whole for term, value in products.items()}
        return Coefficients(by_term=by_term, measured=kernel.device in self._devices)

    def interval(self, measure: str, groups: Iterable[str]) -> Interval:
        """Of the first group that has one."""
        for group in groups:
            found = self._intervals.get((measure, group))
            if found is not None:
                return found
        return Interval(0.5, 1.5)

    def intervals(
        self, kernel: Kernel, *, measured: bool, devices: int, partial: bool, sized: bool
    ) -> dict[str, Interval]:
        """By measure, worked out once for a kernel."""
        key = (kernel, measured, devices > 1, partial, sized)
        found = self._by_kernel.get(key)
        if found is None:
            groups = interval_groups(kernel, measured, devices=devices, partial=partial, sized=sized)
            found = {measure: self.interval(measure, groups) for measure in ("decode", "prefill", "together")}
            self._by_kernel[key] = found
        return found


EfficiencyOf = EfficiencyModel


def efficiency_lookup(records: Iterable[Efficiency], intervals: Iterable[SpeedInterval] = ()) -> EfficiencyModel:
    return EfficiencyModel(tuple(records), tuple(intervals))


def key_of(kernel: Kernel, scope: list[str]) -> str:
    """The key of a table of that scope: `all`, or the kernel's fields joined by `+`."""
    return "+".join("all" if name == "all" else str(getattr(kernel, name)) for name in scope)


def family_of(quantization: str) -> str:
    """Families whose kernels reach about the same share of the bandwidth; makers' mixes go with their main type."""
    name = quantization.upper().removeprefix("UD-")
    if name in _FAMILIES:
        return _FAMILIES[name]
    for start, family in (("Q2", "q23"), ("Q3", "q23"), ("IQ", "iq"), ("Q4_K", "q45"), ("Q5_K", "q45"), ("Q6", "q6"),
                          ("Q8", "q8"), ("MLX", "mlx"), ("EXL3", "exl3"), ("FP8", "fp8"), ("AWQ", "int4")):  # fmt: skip
        if name.startswith(start):
            return family
    return "q45"


def backend_of(vendor: str, engine: str) -> str:
    """What an engine computes with on a vendor's devices when nothing else is said."""
    if engine in ("vllm", "sglang", "exllamav3", "mlx"):
        return engine
    return {"nvidia": "cuda", "amd": "rocm", "intel": "vulkan", "apple": "metal"}.get(vendor, "cpu")


def is_moe(model: ModelSpec) -> bool:
    return model.experts is not None


def interval_groups(
    kernel: Kernel, measured: bool, *, devices: int = 1, partial: bool = False, sized: bool = True
) -> tuple[str, ...]:
    """Names of the groups an interval is looked up by, narrowest first: what is run (dense, mixture, over several
    devices, partly from host memory), whether the weights' size is published or estimated, where, with which engine,
    and whether this device is among the measurements."""
    known = "measured" if measured else "unmeasured"
    kind = "partial" if partial else "several" if devices > 1 else kernel.moe
    size = "sized" if sized else "estimated"
    return (
        f"{kind}/{size}/{kernel.device_class}/{kernel.engine}/{known}",
        f"{kind}/{size}/{kernel.device_class}/{known}",
        f"{kind}/{size}/{known}",
        f"{kind}/{known}",
        kind,
        "all",
    )
