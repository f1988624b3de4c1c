#!/usr/bin/python
"""Make the running service the configured one: restarts when program or environment of the process differ.

Handlers would restart "when a file changed in this run": after an interruption between the change and the restart, the
next run would see no change and leave the old process. What runs is compared instead.
"""

from __future__ import annotations

import os
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_service
short_description: Enable and start Ollama, restart it where it runs with other settings
description: Compares program and environment of the running process with what is wanted.
options:
  program_folder: {description: Folder of the version that must run., type: path, required: true}
  environment: {description: Environment that the process must have., type: dict, required: true}
"""

UNIT = "ollama.service"


def main():
    module = AnsibleModule(
        argument_spec={
            "program_folder": {"type": "path", "required": True},
            "environment": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    state = show("MainPID", "ActiveState", "UnitFileState", "NeedDaemonReload")
    actions = []
    if state["NeedDaemonReload"] == "yes" or state["UnitFileState"] == "":
        actions.append(["daemon-reload"])
    if state["UnitFileState"] != "enabled":
        actions.append(["enable", "--quiet", UNIT])
    if state["ActiveState"] != "active" or not as_wanted(state["MainPID"], module.params):
        actions += [["reset-failed", UNIT], ["restart", UNIT]]
    if actions and not module.check_mode:
        for action in actions:
            code, _out, err = module.run_command(["systemctl", *action])
            if code != 0 and action[0] != "reset-failed":
                module.fail_json(
                    msg="systemctl {} failed: {}".format(" ".join(action), err.strip()),
                    code="service-failed",
                    hint="on the host: journalctl -u ollama -n 50",
                )
    module.exit_json(changed=bool(actions), actions=[" ".join(action) for action in actions])


def show(*names):
    done = subprocess.run(
        ["systemctl", "show", UNIT, "--property=" + ",".join(names)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    return {name: found.get(name, "") for name in names}


def as_wanted(pid, wanted):
    """Whether the service's processes run from the folder with the environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as handle:
            pairs = handle.read().decode(errors="replace").split("\0")
        environment = dict(pair.partition("=")[::2] for pair in pairs if pair)
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    in_folder = program.startswith(os.path.realpath(wanted["program_folder"]) + "/")
    # The program may add variables of its own; a setting that was taken away shows in PROVISION_SETTINGS_ID.
    return in_folder and all(environment.get(name) == str(value) for name, value in wanted["environment"].items())


if __name__ == "__main__":
    main()
