#!/usr/bin/python
"""Does the service answer, and is it the version that was installed? One short look; repeat it until it is finished."""

from __future__ import annotations

import time

from ansible.module_utils import ollama_http
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_answers
short_description: Ask Ollama for its version
description: Returns C(finished) when the service answers. Fails when it reports another version.
options:
  base_url: {description: Where Ollama listens., type: str, required: true}
  version: {description: Version that it must report., type: str, required: true}
"""

WINDOW_S = 2.0


def main():
    module = AnsibleModule(
        argument_spec={"base_url": {"type": "str", "required": True}, "version": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    deadline = time.monotonic() + WINDOW_S
    while True:
        try:
            found = ollama_http.call(module.params["base_url"], "GET", "/api/version", timeout_s=WINDOW_S)["version"]
            break
        except (OSError, ValueError, KeyError) as error:
            if time.monotonic() > deadline:
                module.fail_json(
                    msg="Ollama does not answer at {}: {}".format(
                        module.params["base_url"], ollama_http.error_text(error)
                    ),
                    code="service-failed",
                    hint="on the host: journalctl -u ollama -n 50",
                    finished=False,
                )
            time.sleep(0.1)
    if found != module.params["version"]:
        module.fail_json(
            msg="Ollama {} answers where {} was installed".format(found, module.params["version"]),
            code="wrong-version",
            hint="does another Ollama listen on the same port? On the host: ss -ltnp",
            finished=True,
        )
    module.exit_json(changed=False, finished=True)


if __name__ == "__main__":
    main()
