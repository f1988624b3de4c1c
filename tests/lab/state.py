"""What is on a host, as far as software leaves traces there: to show that nothing changed, or what did."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

READ_STATE_SCRIPT = r"""
import functools, grp, hashlib, json, os, pwd, stat, subprocess

# path -> why a difference there says nothing about what was done to the host
LEFT_OUT = {
    "/proc": "kernel", "/sys": "kernel", "/dev": "kernel",
    "/run": "gone at the next boot", "/tmp": "gone at the next boot",
    "/var/tmp": "scratch space", "/var/log": "logs and the journal",
    "/var/cache/apt": "package cache", "/var/cache/debconf": "package cache", "/var/cache/ldconfig": "linker cache",
    "/var/lib/apt": "package lists", "/var/lib/dpkg": "compared as packages",
    "/var/lib/systemd/timers": "time stamps", "/var/lib/systemd/random-seed": "changes at every boot",
    "/etc/passwd-": "backup of the last change", "/etc/group-": "backup of the last change",
    "/etc/shadow-": "backup of the last change", "/etc/gshadow-": "backup of the last change",
    "/etc/subuid-": "backup of the last change", "/etc/subgid-": "backup of the last change",
}
# Units that come and go by themselves: logins, and bus services that start when they are asked something.
TRANSIENT_UNITS = ("run-", "session-", "user@", "user-", "systemd-hostnamed", "systemd-timedated", "systemd-localed",
                   "systemd-tmpfiles-clean", "dbus-org.", "ssh@")

@functools.cache
def name_of(lookup, number):
    try:
        return lookup(number)[0]
    except KeyError:
        return str(number)

def describe(path):
    info = os.lstat(path)
    mode = stat.S_IMODE(info.st_mode)
    owner = name_of(pwd.getpwuid, info.st_uid) + ":" + name_of(grp.getgrgid, info.st_gid)
    if stat.S_ISREG(info.st_mode):
        digest = hashlib.sha256()
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
        return f"file {mode:04o} {owner} {info.st_size} bytes sha256 {digest.hexdigest()[:16]}"
    if stat.S_ISLNK(info.st_mode):
        return f"link {owner} to {os.readlink(path)}"
    kind = {stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device",
            stat.S_IFBLK: "device"}[stat.S_IFMT(info.st_mode)]
    return f"{kind} {mode:04o} {owner}"

def files():
    found = {}
    waiting = ["/"]
    while waiting:
        folder = waiting.pop()
        for entry in os.scandir(folder):
            if entry.path in LEFT_OUT:
                continue
            try:
                found[entry.path] = describe(entry.path)
            except FileNotFoundError:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
    return found

def lines(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines() if line.strip()]

def units():
    found = {}
    for words in lines("systemctl", "list-unit-files", "--no-legend", "--no-pager"):
        if not words[0].startswith(TRANSIENT_UNITS):
            found[words[0]] = words[1]
    kinds = "--type=service,socket,timer,path,mount"
    for words in lines("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", kinds):
        name, load, active = words[:3]
        if active in ("active", "activating", "failed") and not name.startswith(TRANSIENT_UNITS):
            found[name] = (found.get(name, "") + f" {load} {active}").strip()
    return found

def ports():
    found = {}
    for words in lines("ss", "-H", "-l", "-n", "-t", "-u", "-p"):
        user = words[6].split('"')[1] if len(words) > 6 and '"' in words[6] else "unknown"
        found[f"{words[0]} {words[4]}"] = user
    return found

print(json.dumps({
    "files": files(),
    "users": {user.pw_name: f"{user.pw_uid}:{user.pw_gid} {user.pw_dir} {user.pw_shell}" for user in pwd.getpwall()},
    "groups": {group.gr_name: f"{group.gr_gid} {','.join(sorted(group.gr_mem))}" for group in grp.getgrall()},
    "units": units(),
    "ports": ports(),
    "packages": {words[0]: " ".join(words[1:]) for words in
                 lines("dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${db:Status-Abbrev}\n")},
}))
"""
"""Runs on the host as root; contents, modes and owners count, times do not."""

SECTIONS = {
    "files": "file",
    "users": "user",
    "groups": "group",
    "units": "unit",
    "ports": "port",
    "packages": "package",
}


@dataclass(frozen=True, slots=True)
class HostState:
    """One look at a host. Each section maps a name to a description of everything about it that is compared."""

    files: Mapping[str, str]
    users: Mapping[str, str]
    groups: Mapping[str, str]
    units: Mapping[str, str]
    ports: Mapping[str, str]
    packages: Mapping[str, str]

    @classmethod
    def from_json(cls, text: str) -> HostState:
        """What `READ_STATE_SCRIPT` printed."""
        return cls(**json.loads(text))

    def diff(self, later: HostState, ignore: Iterable[str] = ()) -> list[str]:
        """What a later look found different, a line each; empty when nothing. `ignore`: shell patterns of names."""
        patterns = tuple(ignore)
        changes = []
        for section, noun in SECTIONS.items():
            before, after = getattr(self, section), getattr(later, section)
            for name in sorted(before.keys() | after.keys()):
                if before.get(name) == after.get(name) or any(fnmatchcase(name, pattern) for pattern in patterns):
                    continue
                if name not in before:
                    changes.append(f"{noun} added: {name} ({after[name]})")
                elif name not in after:
                    changes.append(f"{noun} gone: {name} ({before[name]})")
                else:
                    changes.append(f"{noun} changed: {name} ({before[name]} -> {after[name]})")
        return changes
