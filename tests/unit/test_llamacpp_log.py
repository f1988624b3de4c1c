"""What llama.cpp prints of its buffers, as it was printed by versions of three years."""

from __future__ import annotations

import pytest

from provision.engines.llamacpp_log import parse
from provision.units import MIB

_OF_2026 = """\
0.00.723.555 I llama_model_loader: loaded meta data with 33 key-value pairs and 272 tensors from model.gguf (version 3)
0.01.000.306 I load_tensors:   CPU_Mapped model buffer size =    92.10 MiB
0.01.000.410 I load_tensors:   CPU_REPACK model buffer size =    41.06 MiB
0.01.006.067 I llama_context: n_seq_max             = 4
0.01.006.082 I llama_context: n_ctx                 = 4096
0.01.006.097 I llama_context: n_ctx_seq             = 1024
0.01.006.113 I llama_context: n_batch               = 2048
0.01.006.128 I llama_context: n_ubatch              = 512
0.01.006.257 I llama_context: n_outputs_max         = 4
0.01.006.274 I llama_context: n_outputs_max_per_seq = 1
0.01.007.721 I llama_context:        CPU  output buffer size =     0.75 MiB
0.01.007.800 I llama_kv_cache_iswa: creating non-SWA KV cache, size = 1024 cells
0.01.007.889 I llama_kv_cache:        CPU KV buffer size =    68.91 MiB
0.01.103.002 I llama_kv_cache: size =   68.91 MiB (  1024 cells,  30 layers,  4/4 seqs), K (q8_0):   23.91 MiB, V (f16):   45.00 MiB
0.01.103.100 I llama_kv_cache:        CPU KV buffer size =     3.00 MiB
0.01.103.102 I llama_kv_cache: size =    3.00 MiB (   768 cells,   2 layers,  4/4 seqs), K (f16):    1.50 MiB, V (f16):    1.50 MiB
0.01.104.000 I llama_memory_recurrent:        CPU RS buffer size =     5.25 MiB
0.01.111.353 I sched_reserve:        CPU compute buffer size =    15.66 MiB
0.01.592.575 I slot   load_model: id  0 | task -1 | new slot, n_ctx = 1024
"""  # noqa: E501

_OF_2024 = """\
llama_model_loader: loaded meta data with 22 key-value pairs and 291 tensors from llama-3-8b.gguf (version GGUF V3 (latest))
llm_load_tensors:        CPU buffer size =   281.81 MiB
llm_load_tensors:      CUDA0 buffer size =  4155.99 MiB
llama_new_context_with_model: n_ctx      = 8192
llama_new_context_with_model: n_ubatch   = 512
llama_kv_cache_init:      CUDA0 KV buffer size =  1024.00 MiB
llama_new_context_with_model:  CUDA_Host  output buffer size =     0.49 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   560.00 MiB
llama_new_context_with_model:  CUDA_Host compute buffer size =    24.01 MiB
"""  # noqa: E501


def test_every_buffer_of_a_present_version() -> None:
    found = parse(_OF_2026)
    assert found.weights == {"CPU_Mapped": round(92.10 * MIB), "CPU_REPACK": round(41.06 * MIB)}
    assert found.kv_cache == {"CPU": round(68.91 * MIB) + 3 * MIB}, "the caches of one device are added"
    assert found.state == {"CPU": round(5.25 * MIB)}
    assert found.compute == {"CPU": round(15.66 * MIB)}
    assert found.output == {"CPU": round(0.75 * MIB)}
    assert found.caches == ((1024, 30, 4), (768, 2, 4))
    assert (found.context_tokens, found.slots, found.batch_tokens, found.outputs_max) == (4096, 4, 512, 4)


def test_a_version_of_2024_names_its_buffers_otherwise() -> None:
    found = parse(_OF_2024)
    assert found.weights == {"CPU": round(281.81 * MIB), "CUDA0": round(4155.99 * MIB)}
    assert found.kv_cache == {"CUDA0": 1024 * MIB}
    assert found.compute == {"CUDA0": 560 * MIB, "CUDA_Host": round(24.01 * MIB)}
    assert found.output == {"CUDA_Host": round(0.49 * MIB)}
    assert (found.context_tokens, found.slots, found.batch_tokens, found.outputs_max) == (8192, None, 512, None)


def test_of_several_models_the_last_counts() -> None:
    assert parse(_OF_2026 + _OF_2024) == parse(_OF_2024)


@pytest.mark.parametrize("text", ["", "no buffers here\n", "KV buffer size = unknown\n"])
def test_what_is_not_said_is_not_made_up(text: str) -> None:
    found = parse(text)
    assert not found.weights | found.kv_cache | found.compute
    assert found.context_tokens is None
