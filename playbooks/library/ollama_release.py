#!/usr/bin/python
"""An Ollama release in a folder of its own: downloaded, checked, unpacked, and there at once or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.leased_job import JobFailed, step

DOCUMENTATION = r"""
module: ollama_release
short_description: Download and unpack an Ollama release
description: >-
  Each call works for a moment and returns C(finished), C(phase), C(done_bytes) and C(total_bytes); repeat it until it
  is finished. An interrupted download goes on where it stopped.
options:
  mirror: {description: URL that has v<version>/ below it., type: str, required: true}
  version: {description: Version without the v., type: str, required: true}
  components: {description: Archive name parts after the architecture., type: list, elements: str, required: true}
  sha256: {description: Known checksums by component; else sha256sum.txt counts., type: dict, default: {}}
  directory: {description: Folder that holds a folder for each version., type: path, required: true}
"""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CHUNK_BYTES = 1 << 20
MANIFEST = "provision.json"
# The archives are compressed to about a third; the archive itself lies beside what is unpacked until the end.
DISK_PER_ARCHIVE_BYTE = 4


def main():
    module = AnsibleModule(
        argument_spec={
            "mirror": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "components": {"type": "list", "elements": "str", "required": True},
            "sha256": {"type": "dict", "default": {}},
            "directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    target = os.path.join(wanted["directory"], wanted["version"])
    if installed_components(target) == wanted["components"]:
        module.exit_json(changed=False, finished=True)
    if module.check_mode:
        module.exit_json(changed=True, finished=True)
    status = step("release-" + wanted["version"], lambda report: install(wanted, target, report))
    error = status.get("error")
    if error:
        module.fail_json(finished=True, **error)
    module.exit_json(
        changed=status["finished"],
        finished=status["finished"],
        phase=status.get("phase"),
        done_bytes=status.get("done_bytes"),
        total_bytes=status.get("total_bytes"),
    )


def installed_components(target):
    try:
        with open(os.path.join(target, MANIFEST)) as handle:
            return json.load(handle)["components"]
    except (OSError, ValueError, KeyError):
        return None


def install(wanted, target, report):
    base = "{}/v{}".format(wanted["mirror"].rstrip("/"), wanted["version"])
    downloads = os.path.join(wanted["directory"], ".download")
    unpacked = os.path.join(downloads, "unpacked")
    try:
        os.makedirs(downloads, exist_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)
        os.makedirs(unpacked)
        for component in wanted["components"]:
            name = f"ollama-linux-{ARCHITECTURES[platform.machine()]}{component}.tar.zst"
            sha256 = wanted["sha256"].get(component) or published_checksum(base, name)
            archive = os.path.join(downloads, "{}-{}".format(wanted["version"], name))
            download(base + "/" + name, archive, report)
            report("verifying the checksum")
            check(archive, sha256, base + "/" + name)
            report("unpacking")
            unpack(archive, unpacked)
        with open(os.path.join(unpacked, MANIFEST), "w") as handle:
            json.dump({"components": wanted["components"], "mirror": wanted["mirror"]}, handle)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(unpacked, target)
        shutil.rmtree(downloads)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JobFailed(
                "disk-full", "the disk of {} is full".format(wanted["directory"]), "make room there and apply again"
            ) from error
        raise
    return {}


def open_url(url, offset_bytes=0):
    headers = {"User-Agent": "provision"}
    if offset_bytes:
        headers["Range"] = f"bytes={offset_bytes}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return None
        code = "mirror-not-found" if error.code == 404 else "mirror-failed"
        hint = "check --engine-version and --mirror: the mirror must have v<version>/ollama-linux-<arch>.tar.zst"
        raise JobFailed(code, f"{url} answers {error.code} {error.reason}", hint) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise JobFailed(
            "mirror-unreachable",
            f"the host cannot reach {url}: {reason}",
            "check the host's network, or name a mirror that it reaches with --mirror URL",
        ) from error


def published_checksum(base, name):
    with open_url(base + "/sha256sum.txt") as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        words = line.split()
        if len(words) == 2 and words[1].lstrip("*").rpartition("/")[2] == name:
            return words[0].lower()
    raise JobFailed("mirror-not-found", f"{base}/sha256sum.txt has no line for {name}", None)


def download(url, archive, report):
    part_bytes = os.path.getsize(archive) if os.path.exists(archive) else 0
    answer = open_url(url, part_bytes)
    if answer is None:
        return  # The part is complete already; its checksum decides.
    with answer:
        if answer.status != 206:
            part_bytes = 0
        length = answer.headers.get("Content-Length")
        total_bytes = part_bytes + int(length) if length else None
        if total_bytes is not None:
            make_sure_of_space(archive, DISK_PER_ARCHIVE_BYTE * total_bytes - part_bytes)
        done_bytes = part_bytes
        with open(archive, "ab" if part_bytes else "wb") as sink:
            while True:
                report("downloading Ollama", done_bytes, total_bytes)
                try:
                    chunk = answer.read(CHUNK_BYTES)
                except OSError as error:
                    raise interrupted(url, done_bytes, total_bytes) from error
                if not chunk:
                    break
                sink.write(chunk)
                done_bytes += len(chunk)
    if total_bytes is not None and done_bytes != total_bytes:
        raise interrupted(url, done_bytes, total_bytes)


def interrupted(url, done_bytes, total_bytes):
    message = f"the download of {url} broke off after {done_bytes} of {total_bytes} bytes"
    return JobFailed("download-interrupted", message, "apply again: it goes on where it stopped")


def make_sure_of_space(path, needed_bytes):
    state = os.statvfs(os.path.dirname(path))
    free_bytes = state.f_bavail * state.f_frsize
    if free_bytes < needed_bytes:
        raise JobFailed(
            "disk-full",
            f"{os.path.dirname(path)} has {free_bytes / 2**30:.2f} GiB free, "
            f"unpacking Ollama needs {needed_bytes / 2**30:.2f} GiB",
            "make room there and apply again",
        )


def check(archive, sha256, url):
    digest = hashlib.sha256()
    with open(archive, "rb") as handle:
        for chunk in iter(lambda: handle.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        os.unlink(archive)
        raise JobFailed(
            "checksum-mismatch",
            f"{url} has sha256 {digest.hexdigest()}, expected {sha256}",
            "nothing was installed; do not use this mirror before you know why",
        )


def unpack(archive, folder):
    # tar itself finds the compression; its user numbers must not become ours.
    done = subprocess.run(
        ["tar", "--no-same-owner", "-xf", archive, "-C", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        last = done.stderr.strip().splitlines()[-1:] or ["tar failed"]
        raise JobFailed("unpack-failed", "the archive cannot be unpacked: " + last[0], None)
    if not os.access(os.path.join(folder, "bin", "ollama"), os.X_OK):
        raise JobFailed("unpack-failed", "the archive has no bin/ollama", None)


if __name__ == "__main__":
    main()
