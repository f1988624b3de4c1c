"""A lab of real parts: booted Debian hosts, a real Ollama release, a model registry; only the GPUs are a stand-in.

It stands alone: nothing here imports the project under test. See README.md beside this file.
"""

import os

# Root's PATH often lacks these where it was not got by a login (CI, sudo): ip, losetup and mkfs live there.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
