"""Reaching a host with the system's own ssh: the user's configuration, agent and known hosts count."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from provision.errors import Unreachable, UsageError

_CONNECT_TIMEOUT_MAX_S = 10


@dataclass(frozen=True, slots=True)
class SshTarget:
    host: str
    user: str | None = None
    port: int | None = None
    key_file: Path | None = None
    config_file: Path | None = None
    options: tuple[str, ...] = ()
    """Further arguments for ssh, as an inventory's `ansible_ssh_common_args` gives them."""
    local: bool = False
    """It is this machine: an inventory's `ansible_connection=local`."""

    @property
    def name(self) -> str:
        """As the user would type it."""
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse_target(text: str, *, key_file: Path | None = None, config_file: Path | None = None) -> SshTarget:
    """`[user@]host[:port]`, an alias of the ssh configuration, or an IPv6 address (in brackets where a port follows).

    Raises UsageError.
    """
    user, _, rest = text.strip().rpartition("@")
    match = re.fullmatch(r"\[([0-9A-Fa-f:.%\w]+)\](?::(\d{1,5}))?", rest) or re.fullmatch(
        r"([^\s:\[\]/]+)(?::(\d{1,5}))?", rest
    )
    host, port = (match[1], match[2]) if match else (rest if re.fullmatch(r"[0-9A-Fa-f:.]+(%\w+)?", rest) else "", None)
    # A leading dash would be an option to ssh.
    if not host or host.startswith("-") or user.startswith("-") or (port and not 0 < int(port) < 65536):
        raise UsageError(f"'{text}' is not a host", hint="provision detect --host user@host[:port]", code="bad-host")
    return SshTarget(host, user or None, int(port) if port else None, key_file, config_file)


def run_script(target: SshTarget, script: str, argument: str, timeout_s: float) -> str:
    """Standard output of `script`, run by `sh` on the host with one argument. Nothing is left on the host.

    No question is ever asked, and host keys are checked as the user's configuration says. Raises Unreachable with a
    code for what went wrong.
    """
    import subprocess

    connect_s = max(1, round(min(timeout_s, _CONNECT_TIMEOUT_MAX_S)))
    command = [
        "ssh", "-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", f"ConnectTimeout={connect_s}",
        # A connection of the user's may be shared, but none is left behind.
        "-o", "ControlMaster=no", "-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "ClearAllForwardings=yes",
    ]  # fmt: skip
    if target.config_file:
        command += ["-F", str(target.config_file)]
    if target.key_file:
        command += ["-i", str(target.key_file), "-o", "IdentitiesOnly=yes"]
    if target.port:
        command += ["-p", str(target.port)]
    if target.user:
        command += ["-l", target.user]
    command += [*target.options, "--", target.host, f"sh -s -- {shlex.quote(argument)}"]
    try:
        done = subprocess.run(
            command,
            input=script.encode(),
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"{target.name}: no answer within {timeout_s:g} s",
            hint=f"ssh {_arguments(target)} true   # or give more time with --timeout",
            code="timeout",
        ) from None
    except FileNotFoundError:
        raise Unreachable(
            "there is no ssh client on this machine", hint="sudo apt install openssh-client", code="no-ssh-client"
        ) from None
    if done.returncode == 255:
        raise classify(target, done.stderr.decode(errors="replace"))
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise Unreachable(
            f"{target.name}: its shell could not run the probe: {words[-1] if words else f'exit {done.returncode}'}",
            hint=f"ssh {_arguments(target)} sh -c true",
            code="no-shell",
        )
    return done.stdout.decode(errors="replace")


def classify(target: SshTarget, stderr: str) -> Unreachable:
    """What ssh's own messages (never translated) mean, in one line, with what to type next."""
    name, host, typed = target.name, target.host, _arguments(target)
    known = re.search(r"[Oo]ffending .* key in ([^\n]+):\d+", stderr)
    named = re.search(r"[Hh]ost key for (\S+) has changed", stderr)
    entry = shlex.quote(named[1] if named else host)
    scan = f"ssh-keyscan {f'-p {target.port} ' if target.port else ''}-H {host} >> ~/.ssh/known_hosts"

    def error(code: str, what: str, hint: str) -> Unreachable:
        return Unreachable(f"{name}: {what}", hint=hint, code=code)

    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr or "has changed and you have requested strict" in stderr:
        file = f" -f {shlex.quote(known[1])}" if known else ""
        return error(
            "host-key-changed",
            "its host key is not the one known: reinstalled, or somebody in between",
            f"ssh-keygen -R {entry}{file}   # only if the change is expected",
        )
    if "Host key verification failed" in stderr or "host key is known for" in stderr:
        return error(
            "host-key-unknown",
            "its host key is not known yet",
            f"ssh {typed} true   # compare the fingerprint, answer yes; or: {scan}",
        )
    if re.search(
        r"Permission denied|Too many authentication failures|UNPROTECTED PRIVATE KEY|no mutual signature", stderr
    ):
        return error(
            "ssh-auth",
            "it accepts none of our keys",
            f"ssh-copy-id {typed}   # or give the right key with --ssh-key FILE",
        )
    if "Connection refused" in stderr:
        return error("connection-refused", "it is up, but no SSH server listens there", f"ssh -v {typed} true")
    if "Could not resolve hostname" in stderr:
        return error("unreachable", "no such host name", f"getent hosts {shlex.quote(host)}")
    if re.search(r"[Tt]imed out|[Tt]imeout", stderr):
        return error("timeout", "no answer to the connection attempt", f"ssh -v {typed} true")
    if re.search(r"Bad configuration option|Can't open user config file|terminating, \d+ bad configuration", stderr):
        return error("ssh-config", f"ssh cannot read its configuration: {_last(stderr)}", f"ssh -G {typed}")
    if re.search(r"No route to host|Network is unreachable|Host is down", stderr):
        return error("unreachable", "no way to it through the network", f"ping -c 1 {shlex.quote(host)}")
    return error("unreachable", _last(stderr) or "the connection broke", f"ssh -v {typed} true")


def _last(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _arguments(target: SshTarget) -> str:
    """Arguments with which `ssh` reaches the target, as one would type them."""
    words = ["-F", str(target.config_file)] if target.config_file else []
    words += ["-i", str(target.key_file)] if target.key_file else []
    words += ["-p", str(target.port)] if target.port else []
    return shlex.join([*words, (f"{target.user}@" if target.user else "") + target.host])
