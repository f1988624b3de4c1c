"""Headers that were damaged at random: InvalidFile and nothing else, in bounded memory and with bounded reading."""

from __future__ import annotations

import struct
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from provision import safetensors
from provision.errors import InvalidFile
from provision.gguf import model_of, read_header
from tests import gguf_files
from tests.gguf_files import llama, llama_tensors

_MEMORY_LIMIT_BYTES = 64 * 2**20

_MIXED = llama(5, architecture="gemma3", attention__sliding_window=512) | {
    "tokenizer.ggml.tokens": ["a", "bc", ""] * 20,
    "tokenizer.ggml.scores": [0.5] * 60,
    "tokenizer.chat_template": "x" * 1500,
    "general.name": "A model",
    "gemma3.attention.sliding_window_pattern": [True, False, True, False, True],
    "gemma3.\n": "\n",
}
_HYBRID = llama(5, architecture="qwen35", nextn_predict_layers=1) | {
    "qwen35.ssm.conv_kernel": 4,
    "qwen35.ssm.inner_size": 128,
    "qwen35.ssm.state_size": 16,
    "qwen35.ssm.group_count": 2,
    "qwen35.expert_count": 8,
    "qwen35.expert_used_count": 2,
}
_VALID = tuple(gguf_files.header(metadata, llama_tensors(5)) for metadata in (_MIXED, _HYBRID))
_INTERESTING = st.sampled_from(
    [0, 1, 7, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
)


class _Memory:
    """Bytes as a range source that claims a size, or none."""

    label = "model.gguf"

    def __init__(self, data: bytes, size: int | None) -> None:
        self._data = data
        self.size = size
        self.given_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < 2**63
        assert 0 < length <= 8 * 2**20
        data = self._data[offset : offset + length]
        self.given_bytes += len(data)
        return data


def _survives(data: bytes, size: int | None) -> None:
    source = _Memory(data, size)
    tracemalloc.start()
    try:
        refused = _refusal(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused is None or (refused.hint and "\n" not in refused.message)
    assert peak < _MEMORY_LIMIT_BYTES
    assert source.given_bytes <= len(data)


def _refusal(source: _Memory) -> InvalidFile | None:
    """Any other error is the test's failure."""
    try:
        model, build, quantization = model_of(read_header(source), "model", "test")
    except InvalidFile as error:
        return error
    assert model.layer_count >= 1
    assert build.weights_bytes > 0
    assert quantization.bits_per_weight > 0
    return None


def _refusal_of_safetensors(content: bytes) -> InvalidFile | None:
    try:
        safetensors.read_header(_Memory(content, len(content)))
    except InvalidFile as error:
        return error
    return None


def _sizes(data: bytes) -> st.SearchStrategy[int | None]:
    return st.sampled_from([None, len(data), len(data) + 10**7])


def test_what_is_damaged_here_is_read_when_it_is_whole() -> None:
    for data in _VALID:
        model, _, _ = model_of(read_header(_Memory(data, None)), "model", "test")
        assert len(model.layers) == 2


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_flipped_bytes(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(_VALID)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _survives(bytes(content), data.draw(_sizes(content)))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_numbers_that_are_overwritten(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(_VALID)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(content) - 8))
        content[at : at + 8] = struct.pack("<Q", data.draw(_INTERESTING))
    _survives(bytes(content), data.draw(_sizes(content)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cut_anywhere_with_anything_behind(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(_VALID))
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=200))
    _survives(content, data.draw(_sizes(content)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_pieces_that_are_moved(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from(_VALID))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 400)))
    at = data.draw(st.integers(0, len(content)))
    content = content[:at] + content[start:end] + content[at:]
    _survives(content, data.draw(_sizes(content)))


_METADATA_VALUES = st.one_of(
    st.integers(0, 2**64 - 1),
    _INTERESTING,
    st.floats(width=32),
    st.booleans(),
    st.text(max_size=20),
    st.lists(st.integers(0, 2**32 - 1), max_size=6),
    st.lists(st.booleans(), max_size=6),
    st.lists(st.floats(width=32), max_size=6),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_sound_files_whose_metadata_makes_no_sense(data: st.DataObject) -> None:
    metadata = dict(data.draw(st.sampled_from([_MIXED, _HYBRID])))
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        metadata[key] = data.draw(_METADATA_VALUES)
    content = gguf_files.header(metadata, llama_tensors(5))
    _survives(content, data.draw(_sizes(content)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.one_of(st.none(), _INTERESTING))
def test_anything_at_all(content: bytes, length: int | None) -> None:
    _survives(b"GGUF" + content, None)
    if length is not None:
        content = struct.pack("<Q", length) + content
    refused = _refusal_of_safetensors(content)
    assert refused is None or (refused.hint and "\n" not in refused.message)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_safetensors_headers_of_any_json(data: st.DataObject) -> None:
    import json

    entry = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    document = data.draw(st.one_of(_JSON, st.just({"a": entry})))
    if isinstance(document, dict) and document:
        name = data.draw(st.sampled_from(sorted(document, key=repr)))
        document = document | {name: entry | {data.draw(st.sampled_from(sorted(entry))): data.draw(_JSON)}}
    text = json.dumps(document).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(12)
    refused = _refusal_of_safetensors(content)
    assert refused is None or (refused.hint and "\n" not in refused.message)
