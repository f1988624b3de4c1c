"""A real Linux host to provision: Debian booted under systemd-nspawn, in a network namespace, reachable over SSH."""

from __future__ import annotations

import itertools
import os
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.lab.clean import BASE, cgroup_folders, kill_processes, remove_host, write_owner
from tests.lab.network import open_link
from tests.lab.rootfs import DEFAULT_SUITE, cached_root, mount_copy
from tests.lab.state import READ_STATE_SCRIPT, HostState

CONTROLLER_NAMES = ("controller.lab", "blobs.lab")
"""Names that a host resolves to `controller_address`; two, because a registry redirects to another host name."""

_BOOT_TIMEOUT_S = 60.0
_FILLER = ".lab-filler"
_numbers = itertools.count(1)

User = Literal["root", "deploy", "nosudo"]


class LabHost:
    """One booted host; use it as a context manager.

    `address` is the host's, `controller_address` this machine's on the link between them (where a mirror should
    listen), `root` the host's file system as seen from here, `ssh_config` a file in which the host's name is an alias
    with user `deploy`, the key, and the host's true key already known.
    """

    def __init__(self, name: str, suite: str = DEFAULT_SUITE) -> None:
        self.name = name
        self.lab_id = f"{os.getpid()}-{next(_numbers)}"
        self.folder = BASE / self.lab_id
        self.folder.mkdir(parents=True)
        write_owner(self.folder)
        self._console = self.folder / "console.log"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._loops = itertools.count(1)
        try:
            self.root = mount_copy(cached_root(suite), self.folder)
            self.link = open_link(self.lab_id)
            self.address = self.link.host_address
            self.controller_address = self.link.controller_address
            self.identity_file = self.folder / "id_ed25519"
            self.known_hosts = self.folder / "known_hosts"
            self.ssh_config = self.folder / "ssh_config"
            self._prepare_root()
            self._write_ssh_config()
        except BaseException:
            remove_host(self.lab_id)
            raise

    def __enter__(self) -> LabHost:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def boot(self) -> None:
        """Power on and wait until systemd has finished and sshd answers (one to two seconds)."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            raise RuntimeError(f"{self.name} is already on")
        self.link.set_up(True)
        arguments = [
            "--quiet",
            f"--directory={self.root}",
            "--boot",
            f"--machine=provision-lab-{self.lab_id}",
            f"--hostname={self.name}",
            "--register=no",
            f"--network-namespace-path=/run/netns/{self.link.namespace}",
            "--capability=CAP_NET_ADMIN",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            "--console=read-only",
        ]
        script = 'exec systemd-nspawn "$@"'
        if not Path("/run/systemd/system").is_dir():
            # There is no systemd outside to make a scope: the host stays in the cgroups that it is put into here.
            arguments.append("--keep-unit")
            for cgroup in cgroup_folders(self.lab_id):
                cgroup.mkdir(exist_ok=True)
                script = f"echo $$ > {shlex.quote(str(cgroup))}/cgroup.procs; {script}"
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["sh", "-c", script, "boot", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for the test, not for the hosts.
                start_new_session=True,
            )
        self._wait_until_running()

    def run(
        self,
        command: str | Sequence[str],
        user: User = "root",
        check: bool = True,
        input: str | None = None,
        timeout_s: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line, or a list of words, on the host over SSH; a failure shows what the command printed."""
        line = command if isinstance(command, str) else shlex.join(command)
        done = subprocess.run(
            ["ssh", "-F", self.ssh_config, "-l", user, self.name, line],
            input=input or "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{self.name}: `{line[:200]}` failed ({done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return done

    def snapshot(self) -> HostState:
        """Files, users, groups, units, ports and packages as they are now (about a second)."""
        return HostState.from_json(self.run(["python3", "-I", "-B", "-"], input=READ_STATE_SCRIPT).stdout)

    def processes(self) -> list[str]:
        """Command lines of everything that runs on the host, read from outside, so nothing of the look itself."""
        leader = self._leader_id()
        inside = os.readlink(f"/proc/{leader}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == inside:
                    words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                    found.append(b" ".join(words).decode(errors="replace"))
            except OSError:
                # Gone since, or a process of this machine that even root may not look into.
                continue
        return sorted(filter(None, found))

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Put a file, owned by root, into the host, whether it is on or off."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)

    def rotate_host_key(self) -> None:
        """Give the host another key, as after a reinstallation; `known_hosts` keeps the old one."""
        self._make_host_key()
        self.inside("pkill", "-HUP", "-o", "sshd")
        self._wait_for_sshd()

    def trust_host_key(self) -> None:
        """Make `known_hosts` hold the host's present key."""
        key = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
        self.known_hosts.write_text(f"{self.address} {key[0]} {key[1]}\n")

    def unplug(self) -> None:
        """Cut the network without a word: open connections hang, new ones find no route. `plug_in` undoes it."""
        self.link.set_up(False)

    def plug_in(self) -> None:
        """Bring the network back."""
        self.link.set_up(True)

    def kill(self) -> None:
        """Lose power: the network goes silent and every process is gone. `boot` turns the host on again."""
        self.unplug()
        kill_processes(self.lab_id)
        self._reap()

    def power_off(self) -> None:
        """Shut down in order. `boot` turns the host on again; its files stay."""
        self.run("systemctl poweroff", check=False)
        self._reap()

    def small_disk(self, path: str, size_bytes: int, kind: Literal["tmpfs", "ext4"] = "tmpfs") -> None:
        """Mount an empty file system of a size at a path of the running host; what was there is hidden.

        `tmpfs` has exactly this size; `ext4` is a loop-mounted disk and loses some of it to its own structures.
        """
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        owner = folder.stat()
        if kind == "tmpfs":
            self.inside("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", path)
        else:
            self.inside("mount", "-t", "ext4", self._loop_device(size_bytes), path)
        self.inside("chown", f"{owner.st_uid}:{owner.st_gid}", path)
        self.inside("chmod", f"{stat.S_IMODE(owner.st_mode):o}", path)

    def fill_disk(self, path: str, leave_bytes: int = 0) -> None:
        """Fill the small disk at a path until so much is left for anyone; `free_disk` undoes it."""
        usage = self.inside("stat", "--file-system", "--format=%a %S", path).split()
        if self.inside("stat", "--format=%d", path) == self.inside("stat", "--format=%d", "/"):
            raise ValueError(f"{path} lies on this machine's own disk: mount a small_disk there first")
        used_bytes = int(usage[0]) * int(usage[1]) - leave_bytes
        if used_bytes > 0:
            self.inside("fallocate", f"--length={used_bytes}", f"{path}/{_FILLER}")

    def free_disk(self, path: str) -> None:
        """Give back what `fill_disk` took."""
        self.inside("rm", "-f", f"{path}/{_FILLER}")

    def inside(self, *command: str) -> str:
        """Run one of the host's programs in its mount and process namespaces, with all of this machine's rights.

        Not over SSH and not under the host's systemd; for what root inside may not do (mounts, devices). Mounts are
        gone at the next boot.
        """
        entered = ["nsenter", f"--target={self._leader_id()}", "--mount", "--pid", "--root", "--wd=/", *command]
        done = subprocess.run(entered, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def close(self) -> None:
        """Remove the host and every trace of it on this machine."""
        remove_host(self.lab_id)
        self._reap()

    def _prepare_root(self) -> None:
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", f"{secrets.token_hex(16)}\n", mode=0o444)
        names = " ".join(CONTROLLER_NAMES)
        hosts = f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n::1 localhost\n{self.controller_address} {names}\n"
        self.write("/etc/hosts", hosts)
        self._make_host_key()
        _make_key(self.identity_file)
        public = self.identity_file.with_suffix(".pub").read_text()
        for home in ("root", "home/deploy", "home/nosudo"):
            keys = self.root / home / ".ssh" / "authorized_keys"
            keys.write_text(public)
            keys.chmod(0o600)
            owner = keys.parent.stat()
            os.chown(keys, owner.st_uid, owner.st_gid)

    def _make_host_key(self) -> None:
        path = self.root / "etc/ssh/ssh_host_ed25519_key"
        path.unlink(missing_ok=True)
        _make_key(path)

    def _write_ssh_config(self) -> None:
        self.trust_host_key()
        self.ssh_config.write_text(
            f"Host {self.name}\n"
            f"    HostName {self.address}\n"
            "    Port 22\n"
            "    User deploy\n"
            f"    IdentityFile {self.identity_file}\n"
            "    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {self.known_hosts}\n"
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
            "    BatchMode yes\n"
            "    ConnectTimeout 10\n"
            "    LogLevel ERROR\n"
        )

    def _wait_until_running(self) -> None:
        self._wait_for_sshd()
        state = self.run("systemctl is-system-running --wait", check=False).stdout.strip()
        if state != "running":
            failed = self.run("systemctl --failed --no-legend --plain", check=False).stdout
            raise RuntimeError(f"{self.name} is {state or 'unknown'} after boot: {failed}\n{self._console_tail()}")

    def _wait_for_sshd(self) -> None:
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._nspawn is None or self._nspawn.poll() is not None:
                raise RuntimeError(f"{self.name} went off while it booted:\n{self._console_tail()}")
            try:
                with socket.create_connection((self.address, 22), timeout=1.0) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not answer on port 22:\n{self._console_tail()}")

    def _console_tail(self) -> str:
        return self._console.read_text(errors="replace")[-3000:]

    def _leader_id(self) -> int:
        """The host's process 1 as this machine numbers it."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            raise RuntimeError(f"{self.name} is off")
        nspawn_id = self._nspawn.pid
        return int(Path(f"/proc/{nspawn_id}/task/{nspawn_id}/children").read_text().split()[0])

    def _loop_device(self, size_bytes: int) -> str:
        """An ext4 image as a loop device, with a node for it in the host's /dev."""
        image = self.folder / f"disk-{next(self._loops)}.img"
        with image.open("wb") as handle:
            handle.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        attach = ["losetup", "--find", "--show", str(image)]
        device = subprocess.run(attach, capture_output=True, text=True, check=True).stdout.strip()
        image.with_suffix(".loop").write_text(device)
        number = os.stat(device).st_rdev
        node = f"/dev/lab-disk-{os.minor(number)}"
        self.inside("mknod", node, "b", str(os.major(number)), str(os.minor(number)))
        return node

    def _reap(self) -> None:
        if self._nspawn is not None:
            try:
                self._nspawn.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._nspawn.send_signal(signal.SIGKILL)
                self._nspawn.wait()


def _make_key(path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        raise RuntimeError("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", path], check=True)
