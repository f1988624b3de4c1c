"""A stand-in for NVIDIA's management library and for nvidia-smi, driven by profiles: machines with GPUs without GPUs.

It tells what a driver would tell. It cannot compute anything: an engine on such a host runs on the CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.lab.cache import build_once, recipe_id

_HERE = Path(__file__).parent
_SOURCE = _HERE / "nvml_standin.c"
_NVIDIA_SMI = _HERE / "nvidia_smi_standin.py"
_LIBRARY = "libnvidia-ml.so.1"
PROFILES = tuple(sorted(path.stem for path in (_HERE / "profiles").glob("*.conf")))


def profile_file(profile: str) -> Path:
    """The data file of a profile by its name."""
    if profile not in PROFILES:
        raise ValueError(f"no NVML profile {profile!r}: there are {', '.join(PROFILES)}")
    return _HERE / "profiles" / f"{profile}.conf"


def standin_env(profile: str) -> dict[str, str]:
    """Environment for a local process that shall see the profile's GPUs: this process's own, with three changes."""
    built = _built()
    path, libraries = os.environ.get("PATH", ""), os.environ.get("LD_LIBRARY_PATH", "")
    return {
        **os.environ,
        "PATH": f"{built / 'bin'}:{path}",
        "LD_LIBRARY_PATH": f"{built / 'lib'}:{libraries}" if libraries else str(built / "lib"),
        "NVML_STANDIN_PROFILE": str(profile_file(profile)),
    }


def install_nvml_standin(root: Path, profile: str) -> None:
    """Put library, nvidia-smi and profile where a driver's packages put them, into a root or a `LabHost.root`."""
    built = _built()
    library = root / "usr" / "lib" / "x86_64-linux-gnu" / _LIBRARY
    program = root / "usr" / "bin" / "nvidia-smi"
    for source, target in ((built / "lib" / _LIBRARY, library), (built / "bin" / "nvidia-smi", program)):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755)
    conf = root / "etc" / "nvml-standin.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(profile_file(profile), conf)
    conf.chmod(0o644)


def kernel_module_version(profile: str) -> str | None:
    """Version of the kernel module that the profile's driver has loaded; None when it has none."""
    for line in profile_file(profile).read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "kernel_module_version":
            return value.strip()
    return None


def kernel_module_text(version: str) -> str:
    """What /proc/driver/nvidia/version says of a kernel module."""
    return (
        f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Fri Mar 14 13:12:07 UTC 2025\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )


def _built() -> Path:
    def build(folder: Path) -> None:
        (folder / "lib").mkdir()
        (folder / "bin").mkdir()
        library = folder / "lib" / _LIBRARY
        command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{_LIBRARY}"]
        subprocess.run([*command, "-o", str(library), str(_SOURCE)], check=True)
        program = folder / "bin" / "nvidia-smi"
        shutil.copyfile(_NVIDIA_SMI, program)
        program.chmod(0o755)

    return build_once(f"nvml-{recipe_id(_SOURCE.read_text(), _NVIDIA_SMI.read_text())}", build)
