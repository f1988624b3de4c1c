#!/usr/bin/python
"""Install one distribution package with the host's own package manager, without helpers that would stay behind."""

from __future__ import annotations

import shutil

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_package
short_description: Install a package that provides a program
description: >-
  Does nothing when the program is there. Unlike the apt module it installs no Python bindings, so that removing what
  was installed leaves the host as it was.
options:
  name: {description: Package., type: str, required: true}
  program: {description: Program that shows whether it is there., type: str, required: true}
"""

COMMANDS = {
    "apt-get": ["apt-get", "install", "-y", "-q", "--no-install-recommends"],
    "dnf": ["dnf", "install", "-y", "-q"],
    "zypper": ["zypper", "--non-interactive", "install"],
}


def main():
    module = AnsibleModule(
        argument_spec={"name": {"type": "str", "required": True}, "program": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    name = module.params["name"]
    if shutil.which(module.params["program"]):
        module.exit_json(changed=False)
    manager = next((found for found in COMMANDS if shutil.which(found)), None)
    if manager is None:
        module.fail_json(msg=name + " is not installed", code="package-missing", hint="install it by hand on the host")
    if module.check_mode:
        module.exit_json(changed=True)
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    code, out, err = module.run_command([*COMMANDS[manager], name], environ_update=environment)
    if code != 0 and manager == "apt-get":
        module.run_command(["apt-get", "update", "-q"], environ_update=environment)
        code, out, err = module.run_command([*COMMANDS[manager], name], environ_update=environment)
    if code != 0:
        module.fail_json(
            msg=f"{name} cannot be installed: {(err or out).strip().splitlines()[-1:]}",
            code="package-missing",
            hint=f"install it by hand on the host: sudo {manager} install {name}",
        )
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
