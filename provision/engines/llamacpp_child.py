"""The child process of `provision.engines.llamacpp`: GGUF, total context, slots, threads, pipe to watch."""

from __future__ import annotations

import os
import sys

from provision.engines.llamacpp import MODEL_ALIAS


def main(gguf: str, context_tokens: str, slots: str, threads: str, parent_pipe: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {MODEL_ALIAS}
    params.port = 0
    params.n_ctx = int(context_tokens)
    params.n_parallel = int(slots)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.endpoint_metrics = True
    params.warmup = True
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    os.read(int(parent_pipe), 1)  # returns when the parent closes its end or dies
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
