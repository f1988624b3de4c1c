#!/usr/bin/python
"""Record what a host was like before its first change, and put it back."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import stat
import subprocess

from ansible.module_utils import ledger_file, ollama_http
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_ledger
short_description: Record the state before the first change, or restore it
description: >-
  C(recorded) notes, once for each thing, whether it was there before; files are backed up. C(restored) stops the
  service and takes off whatever was not there, and puts backups back.
options:
  state: {description: What to do., type: str, choices: [recorded, restored], required: true}
  paths: {description: Files and folders that will be created., type: list, elements: path, default: []}
  user: {description: User and group that will be created., type: str, default: ollama}
  packages: {description: Packages that may be installed., type: list, elements: str, default: []}
  keep_models: {description: Leave the folder of models when restoring., type: bool, default: false}
  models_path: {description: Folder for models., type: path}
  base_url: {description: Where Ollama listens., type: str}
  choices: {description: What apply was told; kept for verify., type: dict, default: {}}
"""

SERVICE = "ollama.service"


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["recorded", "restored"], "required": True},
            "paths": {"type": "list", "elements": "path", "default": []},
            "user": {"type": "str", "default": "ollama"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "keep_models": {"type": "bool", "default": False},
            "models_path": {"type": "path"},
            "base_url": {"type": "str"},
            "choices": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "recorded":
        record(module)
    else:
        restore(module)


def record(module):
    before = ledger_file.read()
    ledger = ledger_file.read() or ledger_file.empty()
    for path in module.params["paths"]:
        # Parents first, so that restoring in reverse order finds folders empty.
        for each in [*missing_parents(path), path]:
            if each not in ledger["paths"]:
                ledger["paths"][each] = describe(each, module.check_mode)
    user = module.params["user"]
    ledger["users"].setdefault(user, exists(pwd.getpwnam, user))
    ledger["groups"].setdefault(user, exists(grp.getgrnam, user))
    for package in module.params["packages"]:
        ledger["packages"].setdefault(package, shutil.which(package) is not None)
    for name in ("models_path", "base_url", "choices"):
        ledger[name] = module.params[name]
    changed = ledger != before
    if changed and not module.check_mode:
        ledger_file.write(ledger)
    module.exit_json(changed=changed, models_kept=bool(ledger.get("models_kept")))


def missing_parents(path):
    missing = []
    parent = os.path.dirname(path)
    while not os.path.lexists(parent):
        missing.insert(0, parent)
        parent = os.path.dirname(parent)
    return missing


def describe(path, check_mode):
    """What is at `path` now; a file is copied into the backups."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return {"kind": "absent"}
    if stat.S_ISDIR(info.st_mode):
        return {"kind": "folder", "uid": info.st_uid, "gid": info.st_gid, "mode": stat.S_IMODE(info.st_mode)}
    if stat.S_ISLNK(info.st_mode):
        return {"kind": "link", "target": os.readlink(path)}
    backup = ledger_file.BACKUPS + path
    if not check_mode:
        os.makedirs(os.path.dirname(backup), mode=0o700, exist_ok=True)
        shutil.copy2(path, backup)
        os.chown(backup, info.st_uid, info.st_gid)
    return {"kind": "file", "backup": backup}


def exists(lookup, name):
    try:
        lookup(name)
    except KeyError:
        return False
    return True


def restore(module):
    ledger = ledger_file.read()
    if ledger is None:
        module.exit_json(changed=False, removed=[])
    models_path = ledger["models_path"]
    ours = ledger["paths"].get(models_path, {}).get("kind") == "absent"
    keep = module.params["keep_models"] and ours and os.path.isdir(models_path)
    kept = [path for path in ledger["paths"] if keep and on_the_way(path, models_path)]
    paths = [path for path in ledger["paths"] if path not in kept]
    removed = [path for path in paths if ledger["paths"][path]["kind"] == "absent" and os.path.lexists(path)]
    if module.check_mode:
        module.exit_json(changed=True, removed=removed)
    if not module.params["keep_models"]:
        delete_models_in_foreign_folder(ledger)
    run("systemctl", "disable", "--now", SERVICE)
    for path in sorted(paths, key=len, reverse=True):
        put_back(path, ledger["paths"][path])
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", SERVICE)
    for user, was_there in ledger["users"].items():
        if not was_there and exists(pwd.getpwnam, user):
            code, _out, err = module.run_command(["userdel", user])
            if code != 0:
                module.fail_json(msg=f"user {user} cannot be removed: {err.strip()}", code="remove-failed")
    for group, was_there in ledger["groups"].items():
        if not was_there and exists(grp.getgrnam, group):
            module.run_command(["groupdel", group])
    for package, was_there in ledger["packages"].items():
        if not was_there:
            purge(module, package)
    if kept:
        # Their owner is gone; a number that a later user may get must not own them.
        hand_to_root(models_path)
        for path in kept:
            os.lchown(path, 0, 0)
    shutil.rmtree("/run/provision", ignore_errors=True)
    shutil.rmtree(ledger_file.BACKUPS, ignore_errors=True)
    if kept:
        left = ledger_file.empty()
        left["paths"] = {path: ledger["paths"][path] for path in kept}
        left.update({name: ledger[name] for name in ("models", "models_path", "base_url")}, models_kept=True)
        ledger_file.write(left)
    else:
        shutil.rmtree(ledger_file.FOLDER)
    module.exit_json(changed=True, removed=removed, kept=kept)


def delete_models_in_foreign_folder(ledger):
    """A models folder that was there before stays; only what was pulled into it goes."""
    if ledger["paths"].get(ledger["models_path"], {}).get("kind") == "absent":
        return
    for name in ledger["models"]:
        # Deleted by somebody else, or the service is down: neither must hold up the removal.
        with contextlib.suppress(OSError):
            ollama_http.call(ledger["base_url"], "DELETE", "/api/delete", {"model": name})


def on_the_way(path, models_path):
    """Whether `path` is the models folder, lies in it or holds it."""
    return path == models_path or path.startswith(models_path + "/") or models_path.startswith(path + "/")


def put_back(path, was):
    if was["kind"] == "folder":
        if not os.path.isdir(path):
            os.makedirs(path)
        os.chown(path, was["uid"], was["gid"])
        os.chmod(path, was["mode"])
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
    if was["kind"] == "link":
        os.symlink(was["target"], path)
    elif was["kind"] == "file":
        info = os.stat(was["backup"])
        shutil.copy2(was["backup"], path)
        os.chown(path, info.st_uid, info.st_gid)


def hand_to_root(folder):
    for parent, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            os.lchown(os.path.normpath(os.path.join(parent, name)), 0, 0)


def purge(module, package):
    if shutil.which("apt-get"):
        module.run_command(
            ["apt-get", "purge", "-y", "-q", package], environ_update={"DEBIAN_FRONTEND": "noninteractive"}
        )
    else:
        module.run_command([shutil.which("dnf") or "zypper", "remove", "-y", package])


def run(*command):
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    main()
