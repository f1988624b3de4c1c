#!/usr/bin/python
"""What runs on this host, as the running process tells it; files on the disk are not asked."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import urllib.error

from ansible.module_utils import ledger_file, ollama_http
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_state
short_description: Report the running Ollama
description: Version, unit, environment of the process, addresses, models; loads each model to see where it lies.
options:
  base_url: {description: Where Ollama should listen; without it where apply put it., type: str}
  load: {description: Models to load., type: list, elements: str, default: []}
  load_timeout_s: {description: Limit for each., type: int, default: 600}
"""

DEFAULT_URL = "http://127.0.0.1:11434"


def main():
    module = AnsibleModule(
        argument_spec={
            "base_url": {"type": "str"},
            "load": {"type": "list", "elements": "str", "default": []},
            "load_timeout_s": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    threading.Thread(target=end_when_abandoned, daemon=True).start()
    ledger = ledger_file.read() or ledger_file.empty()
    base_url = module.params["base_url"] or ledger["base_url"] or DEFAULT_URL
    wanted = module.params
    unit = systemd_state()
    state = {
        "unit_active": unit.get("ActiveState") == "active",
        "unit_enabled": unit.get("UnitFileState") == "enabled",
        "environment": environment(unit.get("MainPID", "0")),
        "addresses": listening_addresses(base_url.rpartition(":")[2]),
        "recorded_models": ledger["models"],
        "choices": ledger.get("choices", {}),
        "version": None,
        "models": {},
        "loaded": {},
        "load_errors": {},
    }
    try:
        state["version"] = ollama_http.call(base_url, "GET", "/api/version")["version"]
        state["models"] = ollama_http.models(base_url)
    except (OSError, ValueError, KeyError) as error:
        module.exit_json(changed=False, error=ollama_http.error_text(error), **state)
    for name in wanted["load"]:
        if name in state["models"]:
            try:
                load(base_url, name, wanted["load_timeout_s"])
                state["loaded"][name] = placement(base_url, name)
            except (OSError, ValueError) as error:
                state["load_errors"][name] = ollama_http.error_text(error)
    module.exit_json(changed=False, **state)


def end_when_abandoned():
    """Loading can take minutes: when the other end of our output has gone, nobody waits for it any more."""
    poll = select.poll()
    poll.register(1, 0)
    poll.poll()
    os._exit(1)


def systemd_state():
    done = subprocess.run(
        ["systemctl", "show", "ollama.service", "--property=ActiveState,UnitFileState,MainPID"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


def environment(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as handle:
            pairs = handle.read().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name.startswith("OLLAMA_")}


def listening_addresses(port):
    """Local addresses that accept connections on the port: `127.0.0.1`, `0.0.0.0`, `::` ..."""
    done = subprocess.run(["ss", "-Hltn"], stdout=subprocess.PIPE, text=True, check=False)
    local = [line.split()[3] for line in done.stdout.splitlines() if len(line.split()) > 3]
    return sorted({address.rpartition(":")[0].strip("[]") for address in local if address.endswith(":" + port)})


def load(base_url, name, timeout_s):
    try:
        ollama_http.call(base_url, "POST", "/api/generate", {"model": name, "stream": False}, timeout_s)
    except urllib.error.HTTPError as error:
        text = ollama_http.error_text(error)
        if "does not support generate" not in text:
            raise OSError(text) from error
        ollama_http.call(base_url, "POST", "/api/embed", {"model": name, "input": "a"}, timeout_s)


def placement(base_url, name):
    """Where a loaded model lies; None when it is not loaded. `context_tokens` is None in versions that do not tell."""
    for entry in ollama_http.call(base_url, "GET", "/api/ps").get("models") or []:
        if entry["name"] == name:
            return {
                "size_bytes": entry["size"],
                "vram_bytes": entry.get("size_vram", 0),
                "context_tokens": entry.get("context_length"),
            }
    return None


if __name__ == "__main__":
    main()
