"""The file system of a lab host: Debian, built once and kept in the cache; hosts get a copy-on-write layer over it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.lab.cache import Report, build_once, quiet, recipe_id

DEFAULT_SUITE = "bookworm"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "sudo",
    "curl",
    "ca-certificates",
    "iproute2",
    "nftables",
    "procps",
    "zstd",
    "libstdc++6",
    "libgomp1",
)

# Timers and consoles that change a host's state by themselves would show up as differences nobody made.
_MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "console-getty.service",
    "getty@tty1.service",
)

_CUSTOMISE = f"""
set -eu
useradd --create-home --shell /bin/bash deploy
useradd --create-home --shell /bin/bash nosudo
echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy
chmod 0440 /etc/sudoers.d/deploy
for home in /root /home/deploy /home/nosudo; do
    install -d -m 0700 -o "$(stat -c %U $home)" -g "$(stat -c %G $home)" $home/.ssh
done
cat > /etc/ssh/sshd_config.d/lab.conf <<EOF
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
HostKey /etc/ssh/ssh_host_ed25519_key
MaxStartups 100
MaxSessions 100
EOF
rm -f /etc/ssh/ssh_host_* /etc/resolv.conf /etc/machine-id
: > /etc/resolv.conf
echo uninitialized > /etc/hostname
systemctl mask --quiet {" ".join(_MASKED_UNITS)}
systemctl enable --quiet ssh.service
"""


def cached_root(suite: str = DEFAULT_SUITE, report: Report = quiet) -> Path:
    """The pristine root of a suite (about 300 MB, half a minute the first time). Never boot or change it: copy it.

    Users: `deploy` with sudo without a password, `nosudo` without any right, `root`; all log in with a key only.
    """
    name = f"root-{suite}-{recipe_id(*PACKAGES, _CUSTOMISE)}"

    def build(folder: Path) -> None:
        report(f"building the {suite} root file system (about half a minute)")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(folder)]
        _run([*command, *_sources(suite)])
        _run(["chroot", str(folder), "sh", "-c", _CUSTOMISE])

    return build_once(name, build)


def mount_copy(pristine: Path, layer: Path) -> Path:
    """A writable copy of a root at `layer/root`: an overlay where the kernel allows it, else a real copy."""
    root = layer / "root"
    for name in ("root", "upper", "work"):
        (layer / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={pristine},upperdir={layer / 'upper'},workdir={layer / 'work'}"
    # The layer may itself lie on an overlay (a container): the kernel refuses that.
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, root], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        root.rmdir()
        _run(["cp", "-a", "--reflink=auto", str(pristine), str(root)])
    return root


def remove_copy(layer: Path) -> None:
    """Unmount and delete what `mount_copy` made; also after a crash."""
    root = layer / "root"
    if root.is_mount():
        # Lazy: a process that is still dying in there must not keep the layer. A failure means that another cleaner
        # was faster.
        subprocess.run(["umount", "--lazy", root], capture_output=True, check=False)
    shutil.rmtree(layer, ignore_errors=True)


def _sources(suite: str) -> list[str]:
    """Where this machine gets Debian packages from, so that a mirror set up here is used for the hosts too."""
    if shutil.which("apt-get") is None:
        return []
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    found = dict.fromkeys(
        tuple(line.split()) for line in listing.splitlines() if line.split()[1:] and line.split()[1] in wanted
    )
    lines = [f"deb {uri} {release} main" for uri, release in found]
    return lines if any(line.split()[2] == suite for line in lines) else []


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
