#!/usr/bin/python
"""Folders, small text files and links with given content, in one go: each further task costs a round trip.

Unlike copy and template it needs no temporary folder in anyone's home.
"""

from __future__ import annotations

import os
import pwd
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: managed_files
short_description: Write folders, text files and links
description: Files are atomic and root-owned; reports changed only for what differs, and which paths those are.
options:
  folders: {description: Folders of the owner., type: list, elements: path, default: []}
  owner: {description: User that owns the folders., type: str, required: true}
  files: {description: Text by path., type: dict, default: {}}
  links: {description: Target by path., type: dict, default: {}}
"""

FOLDER_MODE, FILE_MODE = 0o750, 0o644


def main():
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "path", "default": []},
            "owner": {"type": "str", "required": True},
            "files": {"type": "dict", "default": {}},
            "links": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    folders = [path for path in wanted["folders"] if not folder_is(path, wanted["owner"])]
    files = {path: text for path, text in wanted["files"].items() if not file_is(path, text)}
    links = {path: target for path, target in wanted["links"].items() if not link_is(path, target)}
    if not module.check_mode:
        for path in folders:
            write_folder(path, wanted["owner"])
        for path, text in files.items():
            write_file(path, text)
        for path, target in links.items():
            write_link(path, target)
    changed_paths = [*folders, *files, *links]
    module.exit_json(changed=bool(changed_paths), changed_paths=changed_paths)


def folder_is(path, owner):
    try:
        info, user = os.stat(path), pwd.getpwnam(owner)
    except (FileNotFoundError, KeyError):
        return False
    return (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (user.pw_uid, user.pw_gid, FOLDER_MODE)


def file_is(path, text):
    try:
        with open(path) as handle:
            return handle.read() == text and stat.S_IMODE(os.stat(path).st_mode) == FILE_MODE
    except FileNotFoundError:
        return False


def link_is(path, target):
    return os.path.islink(path) and os.readlink(path) == target


def write_folder(path, owner):
    user = pwd.getpwnam(owner)
    missing = []
    parent = path
    while not os.path.isdir(parent):
        missing.insert(0, parent)
        parent = os.path.dirname(parent)
    # New parents are the owner's too, or the service could not pass through them.
    for each in missing:
        os.mkdir(each, FOLDER_MODE)
        os.chown(each, user.pw_uid, user.pw_gid)
    os.chown(path, user.pw_uid, user.pw_gid)
    os.chmod(path, FOLDER_MODE)


def write_file(path, text):
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".provision-")
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    os.chmod(temporary, FILE_MODE)
    os.replace(temporary, path)


def write_link(path, target):
    temporary = path + ".provision-new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
