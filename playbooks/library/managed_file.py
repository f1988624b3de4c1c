#!/usr/bin/python
"""A root-owned text file with given content. Unlike copy and template it needs no temporary folder in anyone's home."""

from __future__ import annotations

import os
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: managed_file
short_description: Write a small text file
description: Atomic, root-owned, with its folder; reports changed only when content or mode differ.
options:
  path: {description: File., type: path, required: true}
  content: {description: Whole text., type: str, required: true}
  file_mode: {description: Octal mode., type: str, default: "0644"}
"""


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "file_mode": {"type": "str", "default": "0644"},
        },
        supports_check_mode=True,
    )
    path, content = module.params["path"], module.params["content"]
    mode = int(module.params["file_mode"], 8)
    try:
        with open(path) as handle:
            before = handle.read()
        same = before == content and stat.S_IMODE(os.stat(path).st_mode) == mode
    except FileNotFoundError:
        before, same = "", False
    if not same and not module.check_mode:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".provision-")
        with os.fdopen(handle, "w") as stream:
            stream.write(content)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    diff = {"before": before, "after": content, "before_header": path, "after_header": path}
    module.exit_json(changed=not same, diff=diff)


if __name__ == "__main__":
    main()
