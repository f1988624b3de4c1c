#!/usr/bin/python
"""A model in the running Ollama, pulled through its API.

With another registry the model is pulled under the long name that Ollama needs for it, copied to its plain name, and
the long name deleted: clients use one name wherever the weights came from; blobs and digest are the same.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request

from ansible.module_utils import ledger_file, ollama_http
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.leased_job import JobFailed, step

DOCUMENTATION = r"""
module: ollama_model
short_description: Pull a model through the API of the running Ollama
description: >-
  Does nothing when the model is there. Each call works for a moment and returns C(finished), C(phase), C(done_bytes)
  and C(total_bytes); repeat it until it is finished.
options:
  name: {description: Name that clients use., type: str, required: true}
  source: {description: Name to pull, with the registry in it where it is not the default., type: str, required: true}
  insecure: {description: The registry speaks plain HTTP., type: bool, default: false}
  base_url: {description: Where Ollama listens., type: str, required: true}
  models_path: {description: Folder for models., type: path, required: true}
"""

REGISTRY = "registry.ollama.ai"
AGAIN = "apply again: it goes on where it stopped"


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "insecure": {"type": "bool", "default": False},
            "base_url": {"type": "str", "required": True},
            "models_path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        present = wanted["name"] in ollama_http.models(wanted["base_url"])
    except OSError as error:
        if module.check_mode:  # On a fresh host there is nothing to ask yet.
            module.exit_json(changed=True, finished=True)
        module.fail_json(
            msg="Ollama does not answer at {}: {}".format(wanted["base_url"], ollama_http.error_text(error)),
            code="service-failed",
            hint="on the host: journalctl -u ollama -n 50",
            finished=True,
        )
    if present or module.check_mode:
        module.exit_json(changed=not present, finished=True)
    key = "pull-" + "".join(letter if letter.isalnum() else "-" for letter in wanted["name"])
    status = step(key, lambda report: pull(wanted, report))
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


def pull(wanted, report):
    base_url = wanted["base_url"]
    total_bytes = registry_size(wanted)
    if total_bytes is not None:
        make_sure_of_space(wanted["models_path"], total_bytes)
    done_by_digest = {}
    succeeded = False
    try:
        request = {"model": wanted["source"], "insecure": wanted["insecure"], "stream": True}
        with ollama_http.stream(base_url, "POST", "/api/pull", request, timeout_s=300) as answer:
            for line in answer:
                event = json.loads(line)
                # Errors in the middle come as lines of an answer that began with 200.
                if "error" in event:
                    raise failure(event["error"], wanted)
                if event.get("digest"):
                    done_by_digest[event["digest"]] = event.get("completed") or 0
                report("pulling " + wanted["name"], sum(done_by_digest.values()), total_bytes)
                succeeded = event.get("status") == "success"
    except urllib.error.HTTPError as error:
        raise failure(ollama_http.error_text(error), wanted) from error
    except (OSError, ValueError) as error:
        message = "the pull of {} broke off: {}".format(wanted["name"], error)
        raise JobFailed("pull-interrupted", message, AGAIN) from error
    if not succeeded:
        raise JobFailed("pull-interrupted", "the pull of {} ended before it was complete".format(wanted["name"]), AGAIN)
    if wanted["source"] != wanted["name"]:
        ollama_http.call(base_url, "POST", "/api/copy", {"source": wanted["source"], "destination": wanted["name"]})
        ollama_http.call(base_url, "DELETE", "/api/delete", {"model": wanted["source"]})
    ledger = ledger_file.read() or ledger_file.empty()
    digest = ollama_http.models(base_url)[wanted["name"]]["digest"]
    ledger["models"][wanted["name"]] = {"digest": digest}
    ledger_file.write(ledger)
    return {}


def failure(text, wanted):
    lowered = text.lower()
    if "no space left" in lowered:
        message = "the disk of {} is full".format(wanted["models_path"])
        return JobFailed("disk-full", message, "make room there and apply again")
    if "file does not exist" in lowered or "manifest unknown" in lowered or "not found" in lowered:
        message = "the registry has no {}: {}".format(wanted["source"], text)
        return JobFailed("model-not-found", message, "check the model's name and --registry")
    return JobFailed("pull-interrupted", "the pull of {} failed: {}".format(wanted["source"], text), AGAIN)


def make_sure_of_space(path, total_bytes):
    # What an interrupted pull has left counts as there already.
    blobs = os.path.join(path, "blobs")
    partial_bytes = 0
    if os.path.isdir(blobs):
        for name in os.listdir(blobs):
            if "-partial" in name:
                partial_bytes += os.stat(os.path.join(blobs, name)).st_blocks * 512
    state = os.statvfs(path)
    free_bytes = state.f_bavail * state.f_frsize
    needed_bytes = int(total_bytes * 1.1) - partial_bytes
    if free_bytes < needed_bytes:
        raise JobFailed(
            "disk-full",
            f"{path} has {free_bytes / 2**30:.2f} GiB free, the model needs {needed_bytes / 2**30:.2f} GiB",
            "make room, or choose another folder with --models-path",
        )


def registry_size(wanted):
    """Bytes of the model as the registry's manifest tells, or None where it cannot be had; the pull then says why."""
    name, _, tag = wanted["source"].rpartition(":")
    parts = name.split("/")
    registry = parts[0] if len(parts) == 3 else REGISTRY
    path = "/".join(parts[-2:]) if len(parts) > 1 else "library/" + name
    url = "{}://{}/v2/{}/manifests/{}".format("http" if wanted["insecure"] else "https", registry, path, tag)
    headers = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            manifest = json.load(answer)
        return sum(layer["size"] for layer in [manifest["config"], *manifest["layers"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    main()
