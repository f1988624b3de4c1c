#!/usr/bin/python3
"""Stand-in for nvidia-smi: prints what the real one prints, from the profile that the NVML stand-in reads.

Knows the plain call, `-L`, `--query-gpu=FIELDS --format=csv[,noheader][,nounits]` with `-i`, `--query-compute-apps=`,
`-q -x` (the parts that programs read), and `topo -m`. It runs on the lab host, so it uses only the standard library.
"""

import os
import re
import sys
import time
from collections.abc import Callable

MODES = {"0": "Disabled", "1": "Enabled"}
COMPUTE_MODES = {"0": "Default", "1": "Exclusive_Thread", "2": "Prohibited", "3": "Exclusive_Process"}
MISSING = "[N/A]"

# field -> (key of the profile, unit); figures with a point are printed with two digits, as the real one does
NUMBERS = {
    "memory.total": ("memory_total_mib", "MiB"),
    "memory.reserved": ("memory_reserved_mib", "MiB"),
    "memory.used": ("memory_used_mib", "MiB"),
    "memory.free": ("memory_free_mib", "MiB"),
    "utilization.gpu": ("utilization_gpu_percent", "%"),
    "utilization.memory": ("utilization_memory_percent", "%"),
    "fan.speed": ("fan_speed_percent", "%"),
    "power.draw": ("power_draw_w", "W"),
    "power.draw.instant": ("power_draw_w", "W"),
    "power.limit": ("power_limit_w", "W"),
    "enforced.power.limit": ("power_limit_w", "W"),
    "power.default_limit": ("power_default_limit_w", "W"),
    "power.min_limit": ("power_min_limit_w", "W"),
    "power.max_limit": ("power_max_limit_w", "W"),
    "clocks.current.graphics": ("clock_graphics_current_mhz", "MHz"),
    "clocks.current.sm": ("clock_sm_current_mhz", "MHz"),
    "clocks.current.memory": ("clock_memory_current_mhz", "MHz"),
    "clocks.gr": ("clock_graphics_current_mhz", "MHz"),
    "clocks.sm": ("clock_sm_current_mhz", "MHz"),
    "clocks.mem": ("clock_memory_current_mhz", "MHz"),
    "clocks.max.graphics": ("clock_graphics_max_mhz", "MHz"),
    "clocks.max.gr": ("clock_graphics_max_mhz", "MHz"),
    "clocks.max.sm": ("clock_sm_max_mhz", "MHz"),
    "clocks.max.memory": ("clock_memory_max_mhz", "MHz"),
    "clocks.max.mem": ("clock_memory_max_mhz", "MHz"),
}
TEXTS = {
    "name": "name",
    "gpu_name": "name",
    "uuid": "uuid",
    "gpu_uuid": "uuid",
    "serial": "serial",
    "gpu_serial": "serial",
    "pci.bus_id": "pci_bus_id",
    "gpu_bus_id": "pci_bus_id",
    "pci.device_id": "pci_device_id",
    "pci.sub_device_id": "pci_subsystem_id",
    "vbios_version": "vbios_version",
    "compute_cap": "compute_cap",
    "temperature.gpu": "temperature_c",
    "pcie.link.gen.current": "pcie_gen_current",
    "pcie.link.gen.gpucurrent": "pcie_gen_current",
    "pcie.link.gen.max": "pcie_gen_max",
    "pcie.link.gen.gpumax": "pcie_gen_max",
    "pcie.link.gen.hostmax": "pcie_gen_max",
    "pcie.link.width.current": "pcie_width_current",
    "pcie.link.width.max": "pcie_width_max",
    "addressing_mode": "addressing_mode",
}
ENABLED = {
    "ecc.mode.current": "ecc_mode",
    "ecc.mode.pending": "ecc_mode",
    "mig.mode.current": "mig_mode",
    "mig.mode.pending": "mig_mode",
    "persistence_mode": "persistence_mode",
    "display_active": "display_active",
    "display_mode": "display_active",
}


def read_profile() -> dict[str, str]:
    path = os.environ.get("NVML_STANDIN_PROFILE", "/etc/nvml-standin.conf")
    with open(path) as handle:
        pairs = (line.split("=", 1) for line in handle if "=" in line and not line.startswith("#"))
        return {key.strip(): value.strip() for key, value in pairs}


class Gpu:
    """One GPU of the profile, or a multi-instance part of it."""

    def __init__(self, profile: dict[str, str], index: int, mig: int | None = None) -> None:
        self.profile = profile
        self.index = index
        self.mig = mig

    def get(self, key: str) -> str | None:
        if key == "memory_free_mib":
            total = self.get("memory_total_mib")
            taken = (int(self.get(f"memory_{part}_mib") or 0) for part in ("reserved", "used"))
            return None if total is None else str(int(total) - sum(taken))
        if self.mig is not None:
            return self.profile.get(f"gpu.{self.index}.mig.{self.mig}.{key}")
        return self.profile.get(f"gpu.{self.index}.{key}", self.profile.get(f"gpu.*.{key}"))

    def migs(self) -> "list[Gpu]":
        numbers = range(7) if self.mig is None else ()
        return [Gpu(self.profile, self.index, k) for k in numbers if f"gpu.{self.index}.mig.{k}.uuid" in self.profile]

    def processes(self, kind: str) -> list[tuple[str, str, str]]:
        """(pid, MiB, name) of the compute or graphics processes."""
        found: list[tuple[str, str, str]] = []
        while (value := self.get(f"{kind}_process.{len(found)}")) is not None:
            pid, mib, name = value.split(" ", 2)
            found.append((pid, mib, name))
        return found

    def field(self, name: str, with_unit: bool) -> str | None:
        """A field of --query-gpu as it is printed; None when there is no such field."""
        if name in NUMBERS:
            key, unit = NUMBERS[name]
            value = self.get(key)
            if value is None:
                return MISSING
            shown = f"{float(value):.2f}" if unit == "W" else value
            return f"{shown} {unit}" if with_unit else shown
        if name in TEXTS:
            return self.get(TEXTS[name]) or MISSING
        if name in ENABLED:
            return MODES.get(self.get(ENABLED[name]) or "", MISSING)
        others: dict[str, Callable[[], str]] = {
            "index": lambda: str(self.index),
            "count": lambda: self.profile["device_count"],
            "driver_version": lambda: self.profile["driver_version"],
            "timestamp": lambda: time.strftime("%Y/%m/%d %H:%M:%S.000"),
            "compute_mode": lambda: COMPUTE_MODES.get(self.get("compute_mode") or "", MISSING),
            "pstate": lambda: "P8",
            "pci.domain": lambda: f"0x{(self.get('pci_bus_id') or '0:0:0').split(':')[0][-4:]}",
            "pci.bus": lambda: f"0x{(self.get('pci_bus_id') or '0:0:0').split(':')[1]}",
        }
        return others[name]() if name in others else None


def query(gpus: list[Gpu], names: list[str], options: set[str]) -> int:
    with_unit = "nounits" not in options
    for name in names:
        if Gpu({"device_count": "0", "driver_version": ""}, 0).field(name, with_unit) is None:
            print(f'Field "{name}" is not a valid field to query.\n')
            return 2
    if "noheader" not in options:
        units = {name: f" [{NUMBERS[name][1]}]" for name in names if name in NUMBERS}
        print(", ".join(f"{name}{units.get(name, '')}" for name in names))
    for gpu in gpus:
        print(", ".join(str(gpu.field(name, with_unit)) for name in names))
    return 0


def query_processes(gpus: list[Gpu], names: list[str], options: set[str]) -> int:
    if "noheader" not in options:
        print(", ".join(f"{name} [MiB]" if name.startswith("used_") else name for name in names))
    for gpu in gpus:
        for pid, mib, program in gpu.processes("compute"):
            memory = mib if "nounits" in options else f"{mib} MiB"
            values = {"pid": pid, "process_name": program, "name": program, "used_memory": memory}
            values |= {
                "used_gpu_memory": memory,
                "gpu_uuid": gpu.get("uuid") or MISSING,
                "gpu_name": gpu.get("name") or "",
            }
            values |= {"gpu_bus_id": gpu.get("pci_bus_id") or MISSING}
            print(", ".join(values.get(name, MISSING) for name in names))
    return 0


def list_gpus(gpus: list[Gpu]) -> int:
    for gpu in gpus:
        print(f"GPU {gpu.index}: {gpu.get('name')} (UUID: {gpu.get('uuid')})")
        for mig in gpu.migs():
            print(f"  MIG {mig.get('profile'):<11} Device {mig.mig:>2}: (UUID: {mig.get('uuid')})")
    return 0


def table(profile: dict[str, str], gpus: list[Gpu]) -> int:
    cuda = int(profile["cuda_driver_version"])
    driver = profile["driver_version"]
    line = "+-----------------------------------------+------------------------+----------------------+"
    print(time.strftime("%a %b %e %H:%M:%S %Y"))
    print("+-----------------------------------------------------------------------------------------+")
    title = f"NVIDIA-SMI {driver:<22} Driver Version: {driver:<14} CUDA Version: {cuda // 1000}.{cuda % 1000 // 10}"
    print(f"| {title:<87} |")
    print("|-----------------------------------------+------------------------+----------------------+")
    print("| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |")
    print("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |")
    print("|                                         |                        |               MIG M. |")
    print("|=========================================+========================+======================|")
    for gpu in gpus:
        short = {"1": "On", "0": "Off"}
        ecc = {"1": "0", "0": "Off"}.get(gpu.get("ecc_mode") or "", "N/A")
        fan = f"{gpu.get('fan_speed_percent')}%" if gpu.get("fan_speed_percent") else "N/A"
        draw = f"{float(gpu.get('power_draw_w') or 0):.0f}W"
        cap = f"{float(gpu.get('power_limit_w') or 0):.0f}W" if gpu.get("power_limit_w") else "N/A"
        total = gpu.get("memory_total_mib")
        used = int(gpu.get("memory_used_mib") or 0)
        memory = f"{used}MiB / {total:>6}MiB" if total else "Not Supported"
        load = f"{gpu.get('utilization_gpu_percent')}%" if gpu.get("utilization_gpu_percent") else "N/A"
        persistence = short.get(gpu.get("persistence_mode") or "", "N/A")
        display = short.get(gpu.get("display_active") or "", "N/A")
        compute = COMPUTE_MODES.get(gpu.get("compute_mode") or "", "N/A")
        mig = MODES.get(gpu.get("mig_mode") or "", "N/A")
        bus = gpu.get("pci_bus_id")
        print(f"| {gpu.index:>3}  {gpu.get('name'):<30} {persistence:>3} | {bus:>18} {display:>3} | {ecc:>20} |")
        heat = f"{gpu.get('temperature_c')}C"
        print(f"| {fan:>3}  {heat:>4}    P8 {draw:>15} / {cap:>6} | {memory:>22} | {load:>8} {compute:>11} |")
        print(f"| {'':39} | {'':22} | {mig:>20} |")
        print(line)
    print()
    print("+-----------------------------------------------------------------------------------------+")
    print("| Processes:                                                                              |")
    print("|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |")
    print("|        ID   ID                                                               Usage      |")
    print("|=========================================================================================|")
    rows = [
        (gpu, kind, *process) for gpu in gpus for kind in ("compute", "graphics") for process in gpu.processes(kind)
    ]
    for gpu, kind, pid, mib, name in rows:
        letter = {"compute": "C", "graphics": "G"}[kind]
        memory = f"{mib}MiB"
        print(f"| {gpu.index:>4}   N/A  N/A {pid:>16}      {letter}   {name[:34]:<34} {memory:>11} |")
    if not rows:
        print("|  No running processes found                                                             |")
    print("+-----------------------------------------------------------------------------------------+")
    return 0


def xml(profile: dict[str, str], gpus: list[Gpu]) -> int:
    cuda = int(profile["cuda_driver_version"])
    print('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>')
    print(f"\t<timestamp>{time.strftime('%a %b %e %H:%M:%S %Y')}</timestamp>")
    print(f"\t<driver_version>{profile['driver_version']}</driver_version>")
    print(f"\t<cuda_version>{cuda // 1000}.{cuda % 1000 // 10}</cuda_version>")
    print(f"\t<attached_gpus>{len(gpus)}</attached_gpus>")
    for gpu in gpus:

        def shown(field: str, gpu: Gpu = gpu) -> str:
            return (gpu.field(field, True) or MISSING).strip("[]")

        print(f'\t<gpu id="{gpu.get("pci_bus_id")}">')
        print(f"\t\t<product_name>{shown('name')}</product_name>\n\t\t<uuid>{shown('uuid')}</uuid>")
        current, pending = shown("mig.mode.current"), shown("mig.mode.pending")
        print(f"\t\t<mig_mode>\n\t\t\t<current_mig>{current}</current_mig>")
        print(f"\t\t\t<pending_mig>{pending}</pending_mig>\n\t\t</mig_mode>")
        print("\t\t<fb_memory_usage>")
        for part in ("total", "reserved", "used", "free"):
            print(f"\t\t\t<{part}>{shown(f'memory.{part}')}</{part}>")
        print("\t\t</fb_memory_usage>")
        print(f"\t\t<ecc_mode>\n\t\t\t<current_ecc>{shown('ecc.mode.current')}</current_ecc>")
        print(f"\t\t\t<pending_ecc>{shown('ecc.mode.pending')}</pending_ecc>\n\t\t</ecc_mode>")
        print(f"\t\t<gpu_power_readings>\n\t\t\t<current_power_limit>{shown('power.limit')}</current_power_limit>")
        print("\t\t</gpu_power_readings>\n\t</gpu>")
    print("</nvidia_smi_log>")
    return 0


def topology(profile: dict[str, str], gpus: list[Gpu]) -> int:
    print("\t" + "\t".join(f"GPU{gpu.index}" for gpu in gpus) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID")
    for row in gpus:
        cells = []
        for column in gpus:
            low, high = sorted((row.index, column.index))
            cells.append(" X " if low == high else profile.get(f"topology.{low}.{high}", "SYS"))
        print(f"GPU{row.index}\t" + "\t".join(cells) + "\t0-31\t0\t\tN/A")
    return 0


def main(arguments: list[str]) -> int:
    profile = read_profile()
    failure = int(profile.get("init_result", "0"))
    if failure == 18:
        print("Failed to initialize NVML: Driver/library version mismatch")
        print(f"NVML library version: {profile.get('nvml_short_version', profile['driver_version'])}")
        return failure
    if failure:
        print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest")
        print("NVIDIA driver is installed and running.\n")
        return failure
    gpus = [Gpu(profile, index) for index in range(int(profile["device_count"]))]
    # `-i 0`, `-i=0` and `--id=0` are the same.
    text = re.sub(r"(?:^|\x00)(?:-i|--id)[=\x00]([^\x00]*)", "\0--id=\\1", "\0".join(arguments))
    words = [word for word in text.split("\0") if word]
    options = {name: value for name, _, value in (word.partition("=") for word in words)}
    if "--id" in options:
        gpus = [gpu for gpu in gpus if options["--id"] in (str(gpu.index), gpu.get("uuid"), gpu.get("pci_bus_id"))]
    form = {word.strip() for word in options.get("--format", "").split(",")}
    for option, action in (("--query-gpu", query), ("--query-compute-apps", query_processes)):
        if option in options:
            if "csv" not in form:
                print('"--format=" switch is missing. Please specify "--format=" switch with "csv" option.\n')
                return 1
            return action(gpus, [name.strip() for name in options[option].split(",")], form)
    if "-L" in options or "--list-gpus" in options:
        return list_gpus(gpus)
    if "-q" in options and "-x" in options:
        return xml(profile, gpus)
    if words[:2] == ["topo", "-m"]:
        return topology(profile, gpus)
    if not options or set(options) == {"--id"}:
        return table(profile, gpus)
    print(f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n(stand-in: {words})")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
