#!/usr/bin/python
"""Can this host take Ollama? Looks only; every "no" has a code, one line and a hint."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import subprocess

from ansible.module_utils import ledger_file
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_preflight
short_description: Check that a host can take Ollama
description: Looks at architecture, systemd, free disk, the port and other installations; changes nothing.
options:
  models_path: {description: Folder for models., type: path, required: true}
  needed_bytes: {description: Sizes of the models by name., type: dict, required: true}
  port: {description: TCP port of the service., type: int, required: true}
"""

UNIT_FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)


def main():
    module = AnsibleModule(
        argument_spec={
            "models_path": {"type": "path", "required": True},
            "needed_bytes": {"type": "dict", "required": True},
            "port": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )

    def refuse(code, message, hint):
        module.fail_json(msg=message, code=code, hint=hint)

    architecture = platform.machine()
    if architecture not in ("x86_64", "aarch64"):
        refuse("unsupported-host", "Ollama is published for x86_64 and aarch64, not for " + architecture, None)
    if not os.path.isdir("/run/systemd/system"):
        refuse("unsupported-host", "the host does not run systemd", "use a host, not a container without an init")
    if shutil.which("tar") is None:
        refuse("unsupported-host", "tar is not installed", "sudo apt-get install tar")

    ours = ledger_file.read() is not None
    if not ours:
        foreign = [path for folder in UNIT_FOLDERS for path in glob.glob(folder + "/ollama.service")]
        if foreign:
            refuse(
                "foreign-ollama",
                f"Ollama is installed already, and not by provision: {os.path.realpath(foreign[0])} exists",
                "remove it first: sudo systemctl disable --now ollama && sudo rm " + os.path.realpath(foreign[0]),
            )
    owner = port_owner(module.params["port"])
    if owner is not None and not (ours and is_our_service(owner["pid"])):
        refuse(
            "port-taken",
            "port {} is taken by {}".format(module.params["port"], owner["name"]),
            "stop it, or choose another port with --listen 127.0.0.1:PORT",
        )

    missing = {name: size for name, size in module.params["needed_bytes"].items() if not pulled(module, name)}
    needed_bytes = int(sum(missing.values()) * 1.1)
    free_bytes = free_space(module.params["models_path"])
    if missing and free_bytes < needed_bytes:
        refuse(
            "disk-full",
            "{} has {:.2f} GiB free, the models need {:.2f} GiB".format(
                module.params["models_path"], free_bytes / 2**30, needed_bytes / 2**30
            ),
            "make room, or choose another folder with --models-path",
        )
    module.exit_json(
        changed=False,
        architecture=architecture,
        zstd=shutil.which("zstd") is not None,
        device_groups=[group for group in ("render", "video") if has_group(group)],
    )


def free_space(path):
    while not os.path.exists(path):
        path = os.path.dirname(path)
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def pulled(module, name):
    model, _, tag = name.partition(":")
    namespace = model if "/" in model else "library/" + model
    manifests = os.path.join(module.params["models_path"], "manifests", "registry.ollama.ai")
    return os.path.exists(os.path.join(manifests, namespace, tag or "latest"))


def has_group(name):
    with open("/etc/group") as handle:
        return any(line.startswith(name + ":") for line in handle)


def port_owner(port):
    """Who listens on a TCP port: {"pid", "name"}, or None."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as handle:
                rows = [line.split() for line in handle][1:]
        except OSError:
            continue
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            if any(os.readlink(link) in wanted for link in glob.glob(folder + "/fd/*")):
                with open(folder + "/comm") as handle:
                    name = handle.read().strip()
                pid = int(folder.rpartition("/")[2])
                return {"pid": pid, "name": f"{name} (process {pid})"}
        except OSError:
            continue
    return {"pid": None, "name": "another process"}


def is_our_service(pid):
    shown = subprocess.run(
        ["systemctl", "show", "ollama.service", "--property=MainPID", "--value"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return pid is not None and shown.stdout.strip() == str(pid)


if __name__ == "__main__":
    main()
