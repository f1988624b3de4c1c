"""Files that look like models: what they claim is checked before memory is taken, and whether they are whole."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from provision.errors import InvalidFile
from provision.gguf import read_model
from tests import gguf_files
from tests.gguf_files import F16, F32, Q4_K, Q8_0, llama, llama_tensors, string
from tests.helpers import run_cli
from tests.models import smollm2_gguf

_MEMORY_LIMIT_BYTES = 64 * 2**20


def _start(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def _one_entry(data: bytes, key: str = "general.architecture") -> bytes:
    return _start(1, 1) + string(key) + data


def _one_tensor(info: bytes) -> bytes:
    metadata = llama()
    entries = b"".join(string(key) + gguf_files.value(content) for key, content in metadata.items())
    return _start(1, len(metadata)) + entries + info + bytes(4096)


def _info(
    name: str = "token_embd.weight", shape: tuple[int, ...] = (256, 4), kind: int = F32, offset: int = 0
) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _two_tensors(second: bytes) -> bytes:
    metadata = llama()
    entries = b"".join(string(key) + gguf_files.value(content) for key, content in metadata.items())
    return _start(2, len(metadata)) + entries + _info() + second + bytes(2**16)


def _array(element: int, length: int, data: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, element, length) + data


def _architecture(name: str) -> bytes:
    return gguf_files.whole({"general.architecture": name}, [("token_embd.weight", (32,), F32)])


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty"),
    "one byte": (b"G", "it ends inside the header"),
    "another magic": (b"PK\3\4" + bytes(100), "it does not start with GGUF"),
    "the magic alone": (b"GGUF", "it ends inside the header"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100), "it is big-endian"),
    "version 1": (_start(1, 1, version=1) + bytes(100), "version 1 is not known"),
    "version 4": (_start(1, 1, version=4) + bytes(100), "version 4 is not known"),
    "2^64 - 1 tensors": (_start(2**64 - 1, 1) + bytes(100), "it claims 18,446,744,073,709,551,615 tensors"),
    "2^63 entries": (_start(1, 2**63) + bytes(100), "9,223,372,036,854,775,808 metadata entries"),
    "a key of 2^63": (_start(1, 1) + struct.pack("<Q", 2**63) + bytes(100), "a metadata key of"),
    "a text of 2^63": (_one_entry(struct.pack("<IQ", 8, 2**63) + bytes(100)), "exceeds the file"),
    "a text of 2^64 - 1": (_one_entry(struct.pack("<IQ", 8, 2**64 - 1) + bytes(100)), "exceeds the file"),
    "an array of 2^63 numbers": (_one_entry(_array(4, 2**63)), "exceeds the file"),
    "an array of 2^63 texts": (_one_entry(_array(8, 2**63)), "exceeds the file"),
    "a text of 2^63 in an array": (_one_entry(_array(8, 2, struct.pack("<Q", 2**63) + bytes(50))), "ends inside"),
    "a text of 2^64 - 8 in an array": (_one_entry(_array(8, 2, struct.pack("<Q", 2**64 - 8) + bytes(50))), "ends insi"),
    "arrays of arrays": (_one_entry(_array(9, 4, _array(9, 4) * 4)), "an array of arrays"),
    "an unknown value type": (_one_entry(struct.pack("<I", 77) + bytes(50)), "value type 77 is not known"),
    "an unknown element type": (_one_entry(_array(77, 1, bytes(50))), "value type 77 is not known"),
    "a key twice": (
        _start(0, 2) + (string("a.b") + gguf_files.value(1)) * 2 + bytes(50),
        "its metadata has 'a.b' twice",
    ),
    "a tensor twice": (_two_tensors(_info(offset=4096)), "it has the tensor 'token_embd.weight' twice"),
    "tensors that overlap": (_two_tensors(_info("b", offset=32)), "'token_embd.weight' and 'b' overlap"),
    "no alignment": (_two_tensors(_info("b", offset=4097)), "'b' is not aligned to 32 bytes"),
    "an unknown tensor type": (_one_tensor(_info(kind=99)), "'token_embd.weight' is of type 99"),
    "no dimension": (_one_tensor(_info(shape=())), "has 0 dimensions"),
    "2^32 - 1 dimensions": (_one_tensor(string("t") + struct.pack("<I", 2**32 - 1)), "has 4294967295 dimensions"),
    "dimensions that overflow": (_one_tensor(_info(shape=(2**32, 2**32, 2**32))), "4294967296 x 4294967296 x"),
    "a dimension of nothing": (_one_tensor(_info(shape=(0, 4))), "has the shape 0 x 4"),
    "part of a block": (_one_tensor(_info(shape=(100, 4), kind=Q8_0)), "has rows of 100, not whole blocks of Q8_0"),
    "a long tensor name": (_one_tensor(_info("t" * 64)), "a tensor name of 64 bytes"),
    "an offset of 2^63": (_one_tensor(_info(offset=2**63)), "it ends inside the tensors"),
    "no alignment at all": (
        gguf_files.whole(llama() | {"general.alignment": 0}, llama_tensors()),
        "its alignment is 0",
    ),
    "an odd alignment": (gguf_files.whole(llama() | {"general.alignment": 33}, llama_tensors()), "its alignment is 33"),
    "a text as alignment": (
        gguf_files.whole(llama() | {"general.alignment": "x"}, llama_tensors()),
        "its alignment is x",
    ),
    "no weights": (gguf_files.whole(llama(), []), "holds no weights"),
    "no architecture": (gguf_files.whole({"a.b": 1}, llama_tensors()), "names no architecture"),
    "a number as architecture": (
        gguf_files.whole({"general.architecture": 7}, llama_tensors()),
        "names no architecture",
    ),
    "an architecture of tomorrow": (_architecture("quantumformer"), "'quantumformer' is not known here"),
    "no layers": (gguf_files.whole(llama(0), llama_tensors()), "its 'block_count' is 0"),
    "2^31 layers": (gguf_files.whole(llama(2**31), llama_tensors()), "its 'block_count' is 2147483648"),
    "no size": (gguf_files.whole(llama(embedding_length=None), llama_tensors()), "its 'embedding_length' is missing"),
    "a text as size": (gguf_files.whole(llama(embedding_length="x"), llama_tensors()), "is 'x', not a number"),
    "a size of 2^63": (
        gguf_files.whole(llama(embedding_length=2**63), llama_tensors()),
        "its 'embedding_length' is 9223372036854775808",
    ),
    "too few heads": (
        gguf_files.whole(llama(4, attention__head_count_kv=[2, 2]), llama_tensors(4)),
        "its 'attention.head_count_kv' has 2 values for 4 layers",
    ),
    "more layers than claimed": (
        gguf_files.whole(llama(1), llama_tensors(2)),
        "'blk.1.attn_norm.weight', but claims 1 layers",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line_and_a_hint(case: str, tmp_path: Path) -> None:
    data, expected = HOSTILE[case]
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    run = run_cli("estimate", str(file), "--gpu", "RTX 4090", "--ram", "64GiB")
    assert run.code == 3
    error, hint = run.stderr.splitlines()
    assert error.startswith("error: ")
    assert expected in error
    assert hint.startswith("hint: ")


def _sparse(path: Path, start: bytes, size: int) -> None:
    path.write_bytes(start)
    os.truncate(path, size)


BIG: dict[str, bytes] = {
    "zeros": b"",
    "an array of 2^32 empty texts": _one_entry(_array(8, 2**32)),
    "an array of 1,000,000 empty texts": _one_entry(_array(8, 1_000_000)),
    "an array of 2^30 numbers": _one_entry(_array(4, 2**30)),
    "a text of 3 GiB": _one_entry(struct.pack("<IQ", 8, 3 * 2**30)),
    "60,000 tensors without names": _start(60_000, 0),
    "4,000 entries without keys": _start(1, 4_000),
    "texts of 1 MiB": _one_entry(_array(8, 4_000, struct.pack("<Q", 2**20))),
}


@pytest.mark.parametrize("case", BIG)
def test_four_gigabytes_of_nothing_cost_little_memory_and_little_reading(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    _sparse(file, BIG[case], 4 * 2**30)
    read = os.pread
    sizes: list[int] = []

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        sizes.append(length)
        return read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFile) as raised:
            read_model(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)
    assert peak < _MEMORY_LIMIT_BYTES
    assert sum(sizes) <= 68 * 2**20


def test_a_large_header_is_read_in_little_memory(tmp_path: Path) -> None:
    """A vocabulary of 1,000,000 tokens, 30 MB of header: only blocks of it are ever held."""
    file = tmp_path / "model.gguf"
    tokens = _array(8, 1_000_000, (string("twenty-two bytes long!")) * 1_000_000)
    metadata = llama()
    entries = b"".join(string(key) + gguf_files.value(content) for key, content in metadata.items())
    tensors = llama_tensors()
    infos = gguf_files.header({}, tensors)[24:]
    content = _start(len(tensors), len(metadata) + 1) + entries + string("tokenizer.ggml.tokens") + tokens + infos
    file.write_bytes(content + bytes(-len(content) % 32) + bytes(gguf_files.data_bytes(tensors)))
    del content, tokens
    tracemalloc.start()
    try:
        model, build, _ = read_model(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model.vocabulary_size == 320  # the rows of the table, not the length of the list
    assert build.weights_bytes == file.stat().st_size
    assert peak < 16 * 2**20


@pytest.mark.parametrize("kind", [F16, Q4_K])
def test_a_file_that_lacks_one_byte_of_its_weights_is_told_from_a_whole_one(tmp_path: Path, kind: int) -> None:
    file = tmp_path / "model.gguf"
    tensors = llama_tensors(kind=kind)
    file.write_bytes(gguf_files.whole(llama(), tensors))
    size = file.stat().st_size
    assert read_model(file)[1].weights_bytes == size
    os.truncate(file, size - 1)
    with pytest.raises(InvalidFile, match=f"ends inside the tensors: {size - 1:,} bytes of {size:,}"):
        read_model(file)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "model.gguf"
    os.mkfifo(fifo)
    with pytest.raises(InvalidFile, match="not a regular file"):
        read_model(fifo)


def test_bytes_by_place_are_those_of_the_tensors(tmp_path: Path) -> None:
    """Against sums written down by hand: Q8_0 is 34 bytes for 32 weights."""
    file = tmp_path / "model-Q8_0.gguf"
    tensors = [*llama_tensors(tied=False), ("rope_freqs.weight", (32,), F32)]
    file.write_bytes(gguf_files.whole(llama(), tensors))
    model, build, quantization = read_model(file)
    table = 256 * 320 * 34 // 32
    layer = (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512) * 34 // 32 + 2 * 256 * 4
    assert build.layout is not None
    assert build.layout.embedding_bytes == table
    assert build.layout.output_bytes == table + 256 * 4
    assert build.layout.layer_bytes == (layer + 32 * 4, layer)
    assert build.layout.expert_bytes == ()
    assert model.parameters == 2 * 256 * 320 + 256 + 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512 + 2 * 256)
    assert (quantization.id, quantization.output_bits_per_weight) == ("Q8_0", 8.5)
    assert not model.tied_embeddings


def test_experts_are_counted_apart(tmp_path: Path) -> None:
    tensors = [t for t in llama_tensors(3) if not (t[0].startswith(("blk.1.ffn_", "blk.2.ffn_")))]
    for layer in (1, 2):
        tensors += [
            (f"blk.{layer}.ffn_gate_inp.weight", (256, 8), F32),
            (f"blk.{layer}.ffn_up_exps.weight", (256, 64, 8), Q8_0),
            (f"blk.{layer}.ffn_gate_exps.weight", (256, 64, 8), Q8_0),
            (f"blk.{layer}.ffn_down_exps.weight", (64, 256, 8), Q8_0),
            (f"blk.{layer}.ffn_up_shexp.weight", (256, 128), Q8_0),
        ]
    more = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 64, "expert_shared_count": 2}
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_files.whole(llama(3, architecture="deepseek", **more), tensors))
    model, build, _ = read_model(file)
    experts = model.experts
    assert experts is not None
    assert (experts.count, experts.used, experts.feed_forward_size) == (8, 2, 64)
    assert (experts.shared_feed_forward_size, experts.dense_layers) == (128, 1)
    routed = 3 * 256 * 64 * 8
    assert build.layout is not None
    assert build.layout.expert_bytes == (0, routed * 34 // 32, routed * 34 // 32)
    assert model.parameters is not None
    assert model.active_parameters == model.parameters - 2 * routed * 6 // 8


def _split(folder: Path, change: Callable[[int, dict[str, object]], None] = lambda number, metadata: None) -> Path:
    """A model of two layers in three parts, the first of which has no tensors."""
    tensors = llama_tensors()
    parts = ([], tensors[:8], tensors[8:])
    for number, own in enumerate(parts):
        metadata: dict[str, object] = {
            **(llama() if number == 0 else {}),
            "split.no": number,
            "split.count": 3,
            "split.tensors.count": len(tensors),
        }
        change(number, metadata)
        path = folder / f"model-{number + 1:05}-of-00003.gguf"
        path.write_bytes(gguf_files.whole(metadata, own))
    return folder / "model-00001-of-00003.gguf"


@pytest.mark.parametrize("named", [1, 2, 3])
def test_a_split_file_is_read_whole_whichever_part_is_named(tmp_path: Path, named: int) -> None:
    _split(tmp_path)
    _, build, _ = read_model(tmp_path / f"model-{named:05}-of-00003.gguf")
    assert build.weights_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert build.layout is not None
    assert sum(build.layout.layer_bytes) + build.layout.embedding_bytes + build.layout.output_bytes == sum(
        gguf_files.size_of(shape, kind) for _, shape, kind in llama_tensors()
    )


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = _split(tmp_path)
    (tmp_path / "model-00002-of-00003.gguf").unlink()
    with pytest.raises(InvalidFile, match=r"model-00002-of-00003\.gguf is missing, one of the 3 parts"):
        read_model(first)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    def wrong_number(number: int, metadata: dict[str, object]) -> None:
        metadata["split.no"] = min(number, 1)

    with pytest.raises(InvalidFile, match=r"is not part 3 of 3: its 'split\.no' is 1"):
        read_model(_split(tmp_path, wrong_number))
    first = _split(tmp_path)
    (tmp_path / "model-00003-of-00003.gguf").write_bytes((tmp_path / "model-00002-of-00003.gguf").read_bytes())
    with pytest.raises(InvalidFile, match="is not part 3 of 3"):
        read_model(first)


def test_parts_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    def more(number: int, metadata: dict[str, object]) -> None:
        metadata["split.tensors.count"] = 99

    with pytest.raises(InvalidFile, match="its parts hold 20 tensors of 99"):
        read_model(_split(tmp_path, more))


def test_a_part_under_another_name_and_a_name_of_a_million_parts_are_refused(tmp_path: Path) -> None:
    first = _split(tmp_path)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(InvalidFile, match="is one of 3 parts, under a name that does not say of which"):
        read_model(renamed)
    renamed.rename(tmp_path / "model-00001-of-99999.gguf")
    with pytest.raises(InvalidFile, match="says that it is part 1 of 99999"):
        read_model(tmp_path / "model-00001-of-99999.gguf")


def test_a_real_model() -> None:
    """Figures of its config.json and of the published file."""
    model, build, quantization = read_model(smollm2_gguf())
    assert (model.architecture, model.parameters, model.layer_count) == ("llama", 134_515_008, 30)
    assert (model.hidden_size, model.attention_heads, model.vocabulary_size) == (576, 9, 49_152)
    assert model.context_tokens_max == 8192
    assert model.tied_embeddings
    assert (quantization.id, build.weights_bytes) == ("Q4_1", 98_362_432)
    assert build.layout is not None
    held = build.layout.embedding_bytes + build.layout.output_bytes + sum(build.layout.layer_bytes)
    assert 0 < build.weights_bytes - held < 3 * 2**20  # the header
