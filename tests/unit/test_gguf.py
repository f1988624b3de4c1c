"""Files that look like models: the header is read, and whether the rest is there."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from provision.errors import InvalidFile
from provision.gguf import read_model

F16, Q4_K, UNKNOWN_TYPE = 1, 12, 99
_NUMBERS = {
    "llama.block_count": 2,
    "llama.embedding_length": 256,
    "llama.attention.head_count": 4,
    "llama.context_length": 2048,
    "llama.vocab_size": 512,
}


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(tensor_type: int, offset: int = 0) -> bytes:
    """A llama with one tensor of 256 × 512 weights, up to where the weights begin."""
    entries = _string("general.architecture") + struct.pack("<I", 8) + _string("llama")
    for key, value in _NUMBERS.items():
        entries += _string(key) + struct.pack("<II", 4, value)
    tensor = _string("token_embd.weight") + struct.pack("<IQQIQ", 2, 256, 512, tensor_type, offset)
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 1 + len(_NUMBERS)) + entries + tensor
    return content + bytes(-len(content) % 32)


@pytest.mark.parametrize(("kind", "weights"), [(F16, 256 * 512 * 2), (Q4_K, 256 * 512 * 9 // 16)])
def test_a_file_that_lacks_one_byte_of_its_weights_is_told_from_a_whole_one(
    tmp_path: Path, kind: int, weights: int
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(header(kind) + bytes(weights))
    size = file.stat().st_size
    assert read_model(file)[1].weights_bytes == size
    os.truncate(file, size - 1)
    with pytest.raises(InvalidFile, match=f"ends inside the tensors: {size - 1:,} bytes of {size:,}"):
        read_model(file)


def test_a_type_that_llama_cpp_does_not_have_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(header(UNKNOWN_TYPE) + bytes(10))
    with pytest.raises(InvalidFile, match=r"'token_embd[.]weight' is of type 99"):
        read_model(file)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "model.gguf"
    os.mkfifo(fifo)
    with pytest.raises(InvalidFile, match="not a regular file"):
        read_model(fifo)
