"""`catalog add` and `catalog remove` against loopback servers that behave as hubs, registries and bad mirrors do."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.gguf import read_model
from provision.hub import found
from provision.hub import http as hub_http
from provision.records import to_plain
from tests import gguf_files
from tests.gguf_files import F16, Q4_K, Q8_0, llama, llama_tensors
from tests.helpers import Run, run_cli
from tests.integration.hub_server import Hub, Mode
from tests.lab.registry import ModelRegistry
from tests.models import smollm2_gguf

_REPOSITORY = "someone/Tiny-Llama-GGUF"
_TOKEN = "hf_secret_of_the_user"
_MACHINE = ("--gpu", "RTX 4090", "--ram", "64GiB")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "shared-cache"))
    for name in ("HF_TOKEN", "HF_ENDPOINT", "PROVISION_REGISTRY", "PROVISION_INSECURE_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_http, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(hub_http, "_LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        for label, kind, file_type in (("Q8_0", Q8_0, 7), ("Q4_K_M", Q4_K, 15), ("F16", F16, 1)):
            metadata = llama() | {"general.file_type": file_type, "tokenizer.chat_template": "{{x}}" * 500}
            server.add(_REPOSITORY, f"tiny-llama-{label}.gguf", gguf_files.whole(metadata, llama_tensors(kind=kind)))
        server.add(_REPOSITORY, "mmproj-tiny-llama-F16.gguf", b"GGUF" + bytes(2000))
        server.add(_REPOSITORY, "README.md", b"# Tiny")
        yield server


def _add(hub: Hub, *more: str, what: str = f"hf:{_REPOSITORY}") -> Run:
    return run_cli("catalog", "add", what, "--endpoint", hub.url, "--json", *more)


def _data_folder() -> Path:
    return Path(os.environ["XDG_DATA_HOME"]) / "provision" / "catalog"


def _error(run: Run) -> dict[str, str]:
    (error,) = run.json["errors"]
    assert error["hint"]
    assert not _data_folder().exists()
    return error


def to_plain_deep(record: object) -> object:
    return json.loads(json.dumps(record, default=to_plain))


# What is found


def test_every_quantization_of_a_repository_becomes_a_build_of_its_exact_size(hub: Hub) -> None:
    run = _add(hub)
    assert run.code == 0, run.stdout
    data = run.json["data"]
    assert data["name"] == "tiny-llama"
    sizes = {build["quantization"]: build["weights_bytes"] for build in data["builds"]}
    assert sizes == {
        label: len(hub.file(_REPOSITORY, f"tiny-llama-{label}.gguf") or b"") for label in ("Q8_0", "Q4_K_M", "F16")
    }
    tags = {build["ollama_tag"] for build in data["builds"]}
    assert f"hf.co/{_REPOSITORY}:Q4_K_M" in tags
    by_label = {build["quantization"]: build["layout"] for build in data["builds"]}
    assert by_label["Q4_K_M"] is not None  # whose header was read
    assert by_label["F16"] is None
    assert hub.url in data["source"]["title"]
    assert "abab" in data["source"]["title"]
    for command in (("plan", "--model", "tiny-llama"), ("estimate", "tiny-llama", "--quant", "F16")):
        assert run_cli(*command, *_MACHINE, "--context", "2k").code == 0
    assert run_cli("catalog", "check").code == 0
    shown = run_cli("catalog", "show", "tiny-llama").stdout
    assert data["source"]["id"] in shown


def test_every_header_gives_the_place_of_every_builds_bytes(hub: Hub) -> None:
    builds = _add(hub, "--every-header").json["data"]["builds"]
    assert len(builds) == 3
    assert all(build["layout"] for build in builds)


@pytest.mark.parametrize("choice", ["Q8_0", "q8_0", "tiny-llama-Q8_0.gguf"])
def test_one_quantization_or_file_can_be_chosen(hub: Hub, choice: str) -> None:
    data = _add(hub, what=f"hf:{_REPOSITORY}:{choice}").json["data"]
    assert [build["quantization"] for build in data["builds"]] == ["Q8_0"]


def test_a_mix_that_the_catalog_lacks_comes_with_its_bits(hub: Hub) -> None:
    tensors = llama_tensors(kind=Q4_K)
    hub.add("x/Own-GGUF", "own-UD-IQ1_NL.gguf", gguf_files.whole(llama() | {"general.file_type": 15}, tensors))
    run = _add(hub, what="hf:x/Own-GGUF")
    (mix,) = run.json["data"]["quantizations"]
    assert (mix["id"], mix["container"]) == ("UD-IQ1_NL", "gguf")
    assert 4.5 < mix["bits_per_weight"] < 4.7
    assert run_cli("estimate", "own", *_MACHINE, "--context", "2k").code == 0
    assert run_cli("catalog", "check").code == 0
    hub.add("x/Own-GGUF", "own-UD-IQ1_NL.gguf", gguf_files.whole(llama() | {"general.file_type": 15}, tensors))
    assert _add(hub, "--name", "own-2", what="hf:x/Own-GGUF").json["data"]["quantizations"] == []
    assert run_cli("catalog", "remove", "own").code == 0
    assert run_cli("estimate", "own-2", *_MACHINE, "--context", "2k").code == 0  # still has its mix
    assert run_cli("catalog", "remove", "own-2").code == 0
    assert [path.name for path in _data_folder().glob("*.toml")] == []


def test_a_split_model_is_one_build_of_all_its_parts(hub: Hub) -> None:
    tensors = llama_tensors()
    for number, own in enumerate(([], tensors[:8], tensors[8:])):
        metadata = (llama() if number == 0 else {}) | {"split.no": number, "split.count": 3, "split.tensors.count": 20}
        name = f"Q8_0/big-Q8_0-{number + 1:05}-of-00003.gguf"
        hub.add("x/Big-GGUF", name, gguf_files.whole(metadata, own))
    (build,) = _add(hub, what="hf:x/Big-GGUF").json["data"]["builds"]
    parts = [f"Q8_0/big-Q8_0-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    assert build["weights_bytes"] == sum(len(hub.file("x/Big-GGUF", part) or b"") for part in parts)
    assert build["ollama_tag"] is None  # Ollama does not pull split files
    hub.add("x/Cut-GGUF", parts[0], b"GGUF")
    assert "lacks Q8_0/big-Q8_0-00002-of-00003.gguf" in _add(hub, what="hf:x/Cut-GGUF").json["errors"][0]["message"]


def test_a_listing_of_several_pages_is_read_to_its_end(hub: Hub) -> None:
    hub.page_size = 2
    assert len(_add(hub).json["data"]["builds"]) == 3


def test_of_a_repository_with_several_models_one_must_be_named(hub: Hub) -> None:
    hub.add(_REPOSITORY, "other-llama-Q8_0.gguf", gguf_files.whole(llama(), llama_tensors()))
    error = _error(_add(hub))
    assert error["code"] == "several-models"
    assert error["hint"].startswith(f"hf:{_REPOSITORY}:")
    assert _add(hub, what=error["hint"]).code == 0


# How it is read


def test_of_a_file_of_forty_gigabytes_a_few_megabytes_are_read(hub: Hub, tmp_path: Path) -> None:
    """A 32B model's size, sparse on disk, behind a redirect to another host, with a vocabulary of 150,000 tokens."""
    tensors = [("token_embd.weight", (8192, 150_000), F16), ("output_norm.weight", (8192,), 0)]
    for layer in range(64):
        tensors += [(f"blk.{layer}.{name}.weight", (8192, 12_000), F16) for name in ("attn_q", "ffn_up", "ffn_down")]
    vocabulary = ["twelve bytes"] * 150_000
    metadata = llama(64, embedding_length=8192) | {"tokenizer.ggml.tokens": vocabulary, "general.file_type": 1}
    start = gguf_files.header(metadata, tensors)
    file = tmp_path / "big.gguf"
    file.write_bytes(start)
    os.truncate(file, len(start) + gguf_files.data_bytes(tensors))
    assert file.stat().st_size > 40e9
    hub.add("x/Big-GGUF", "big-F16.gguf", file)
    hub.mode = Mode(redirect_to=hub.other_host)
    run = _add(hub, what="hf:x/Big-GGUF")
    data = run.json["data"]
    assert data["builds"][0]["weights_bytes"] == file.stat().st_size
    assert hub.sent_bytes < len(start) + 4 * 2**20 < 8e6
    assert data["bytes_read"] < 8e6


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", _TOKEN)
    hub.mode = Mode(redirect_to=hub.other_host)
    run = _add(hub, "--debug")
    assert run.code == 0
    own = [asked for asked in hub.requests if asked.host == "127.0.0.1"]
    other = [asked for asked in hub.requests if asked.host == "localhost"]
    assert own
    assert other
    assert all(asked.headers["Authorization"] == f"Bearer {_TOKEN}" for asked in own)
    assert not any("Authorization" in asked.headers for asked in other)
    written = "".join(path.read_text() for path in _data_folder().iterdir())
    for secret in (_TOKEN, "secret-of-the-address"):
        assert secret not in run.stdout + run.stderr + written


@pytest.mark.parametrize("without_length", [False, True])
def test_a_mirror_that_ignores_ranges_is_read_no_further_than_the_header(
    hub: Hub, tmp_path: Path, without_length: bool
) -> None:
    tensors = llama_tensors(vocabulary=2_000_000)
    start = gguf_files.header(llama(), tensors)
    file = tmp_path / "model.gguf"
    file.write_bytes(start)
    os.truncate(file, len(start) + gguf_files.data_bytes(tensors))
    hub.add("x/Y-GGUF", "y-Q8_0.gguf", file)
    hub.mode = Mode(ignores_ranges=True, ignores_listed_length=without_length)
    run = _add(hub, what="hf:x/Y-GGUF")
    assert run.code == 0, run.stdout
    assert "ignores ranges" in run.stderr
    assert run.json["data"]["bytes_read"] < 2**20
    assert file.stat().st_size > 5e8
    assert run.json["data"]["builds"][0]["weights_bytes"] == file.stat().st_size


def test_a_mirror_that_ignores_ranges_and_sends_no_model_is_stopped(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "endless.gguf"
    string_array = struct.pack("<IIQ", 9, 8, 2**34) + struct.pack("<Q", 2**20)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + gguf_files.string("a") + string_array)
    os.truncate(file, 2**40)
    hub.add("x/Y-GGUF", "y-Q8_0.gguf", file)
    hub.mode = Mode(ignores_ranges=True)
    run = _add(hub, what="hf:x/Y-GGUF")
    assert run.code == 3
    assert "longer than 64 MiB" in _error(run)["message"]
    assert hub.sent_bytes < 80 * 2**20


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_transfer_that_is_cut_is_resumed(hub: Hub, ignores_ranges: bool) -> None:
    hub.mode = Mode(cut_after_bytes=1000, times=3, ignores_ranges=ignores_ranges)
    run = _add(hub)
    assert run.code == 0, run.stdout
    assert "breaks" in run.stderr
    if not ignores_ranges:
        ranges = [asked.headers["Range"] for asked in hub.requests if "Range" in asked.headers]
        assert [text.partition("-")[0] for text in ranges[:4]] == ["bytes=0", "bytes=1000", "bytes=2000", "bytes=3000"]


def test_an_address_that_expires_is_asked_for_again(hub: Hub) -> None:
    """The redirect's target answers 403 for the second range; the hub gives a new one."""
    big = llama() | {"tokenizer.ggml.tokens": ["twelve bytes"] * 40_000}
    hub.add("x/Y-GGUF", "y-Q8_0.gguf", gguf_files.whole(big, llama_tensors()))
    hub.mode = Mode(redirect_to=hub.other_host)
    taken = iter([Mode(), Mode(status=403)])
    hub.take_mode = lambda: next(taken, Mode())  # type: ignore[method-assign]
    assert _add(hub, what="hf:x/Y-GGUF").code == 0
    moved = [asked.path.startswith("/cdn") for asked in hub.requests if "resolve" in asked.path]
    assert moved[:5] == [False, True, True, False, True]


@pytest.mark.parametrize("status", [429, 503])
def test_what_passes_is_waited_for(hub: Hub, status: int) -> None:
    hub.mode = Mode(status=status, times=2, retry_after="0")
    assert _add(hub).code == 0


# What goes wrong


@pytest.mark.parametrize(
    ("mode", "code", "expected"),
    [
        (Mode(status=401), 5, "refuses access (HTTP 401): private, gated, or no such model"),
        (Mode(status=403), 5, "refuses access (HTTP 403)"),
        (Mode(status=404), 2, "there is no"),
        (Mode(status=429), 5, "asks for fewer requests (HTTP 429)"),
        (Mode(status=500), 5, "answers HTTP 500"),
        (Mode(status=418), 5, "answers HTTP 418"),
        (Mode(wrong_range=True), 5, "answers with another range than was asked for: 'bytes 7-"),
        (Mode(compressed=True), 5, "sends its answer compressed (gzip)"),
        (Mode(web_page=True), 5, "answers with a web page instead of the file"),
        (Mode(claims_bytes=10**13), 5, "10,000,000,000,000 bytes, not the"),
        (Mode(cut_after_bytes=0), 5, "breaks"),
        (Mode(ignores_ranges=True, compressed=True), 5, "sends its answer compressed (gzip)"),
        (Mode(redirect_to="ftp://127.0.0.1"), 5, "redirects to 'ftp://127.0.0.1/"),
        (Mode(redirect_to="http://127.0.0.1:9"), 5, "(connection refused)"),
    ],
)
def test_a_bad_answer_is_one_line_and_a_hint(hub: Hub, mode: Mode, code: int, expected: str) -> None:
    hub.mode = mode
    run = _add(hub)
    assert run.code == code
    assert expected in _error(run)["message"]


@pytest.mark.parametrize(
    "target", ["ftp://x", "file:///etc/passwd", "http://[", "http://x:99999", "http://:80", "http://a b\u2028c"]
)
def test_a_redirect_to_nowhere_is_not_followed(hub: Hub, target: str) -> None:
    hub.mode = Mode(redirect_to=target)
    run = _add(hub)
    assert run.code in (2, 5)
    _error(run)


def test_a_server_that_says_nothing_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_READ_TIMEOUT_S", 0.05)
    hub.mode = Mode(pause_s=0.5)
    run = _add(hub)
    assert run.code == 5
    assert _error(run)["code"] == "timeout"


def test_a_server_that_drips_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_DEADLINE_S", 0.1)
    hub.mode = Mode(pause_s=0.2)
    run = _add(hub)
    assert run.code == 5
    assert "is too slow" in _error(run)["message"]


def test_a_repository_of_countless_files_is_not_read_whole(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "_MOST_HEADERS", 3)
    for label in ("IQ1_XXS", "IQ1_XS", "IQ1_NL", "Q2_K_XXL"):
        hub.add("x/Many-GGUF", f"many-UD-{label}.gguf", b"x")
    error = _error(_add(hub, what="hf:x/Many-GGUF"))
    assert error["code"] == "too-many-files"
    assert not any("resolve" in asked.path for asked in hub.requests)


def test_redirects_in_a_circle_are_left(hub: Hub) -> None:
    hub.mode = Mode(redirect_to=hub.other_host, circle=True)
    run = _add(hub)
    assert run.code == 5
    assert _error(run)["code"] == "too-many-redirects"
    assert len(hub.requests) < 10


def test_a_hub_that_is_none(hub: Hub) -> None:
    for answer in ({"error": "x"}, "x", 7, None.__class__.__name__):
        hub.listed = answer
        assert _error(_add(hub))["code"] == "wrong-answer"
    hub.listed = [{"type": "file", "path": 7, "size": "x"}, 3, {"type": "file", "path": "a.gguf", "size": -1}]
    assert _error(_add(hub))["code"] == "no-weights"


def test_names_that_are_none(hub: Hub) -> None:
    for what in (
        "hf:",
        "hf:x",
        "hf:x/y/z",
        "hf:../..",
        "hf:a/b?c",
        "ollama:",
        "ollama:a b",
        "ollama:a/b/c/d",
        "nothing",
    ):
        run = _add(hub, what=what)
        assert run.code == 2, what
        _error(run)
    assert "http" in _error(run_cli("catalog", "add", "hf:a/b", "--endpoint", "ftp://x", "--json"))["hint"]
    assert _add(hub, "--name", "../../etc/x").code == 2
    assert _add(hub, what="hf:nobody/nothing").code == 5
    assert hub.requests[-1].path.startswith("/api/models/nobody/nothing/")


def test_a_password_in_an_address_is_not_shown(hub: Hub) -> None:
    hub.mode = Mode(status=418)
    address = hub.url.replace("http://", "http://user:pass-word@")
    run = run_cli("catalog", "add", f"hf:{_REPOSITORY}", "--endpoint", address, "--json")
    assert run.code == 5
    assert "pass-word" not in run.stdout + run.stderr
    hub.mode = Mode()
    run = run_cli("catalog", "add", f"hf:{_REPOSITORY}", "--endpoint", address, "--json")
    assert run.code == 0
    assert "pass-word" not in run.stdout + run.stderr + "".join(p.read_text() for p in _data_folder().iterdir())


def test_a_certificate_that_nobody_signed_is_one_line(tmp_path: Path) -> None:
    from tests.integration.tls import https_server

    with https_server(tmp_path) as url:
        error = _error(run_cli("catalog", "add", "hf:a/b", "--endpoint", url, "--json"))
    assert error["code"] == "unknown-certificate"
    assert "SSL_CERT_FILE" in error["hint"]


# Safetensors


def _safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


_CONFIG = {
    "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
    "sliding_window": None, "tie_word_embeddings": True,
}  # fmt: skip


def _shards() -> list[bytes]:
    first = {"model.embed_tokens.weight": ("BF16", [100, 64], 12_800)}
    layers = {f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", [128, 64], 16_384) for layer in (0, 1)} | {
        "model.norm.weight": ("BF16", [64], 128)
    }
    return [_safetensors(first), _safetensors(layers)]


def test_a_repository_of_safetensors_is_one_build_in_the_format_it_is_kept_in(hub: Hub) -> None:
    for number, shard in enumerate(_shards(), 1):
        hub.add("x/Small-0.1B", f"model-{number:05}-of-00002.safetensors", shard)
    hub.add("x/Small-0.1B", "config.json", json.dumps(_CONFIG).encode())
    hub.add("x/Small-0.1B", "original/consolidated.safetensors", b"x" * 5000)
    data = _add(hub, what="hf:x/Small-0.1B").json["data"]
    (build,) = data["builds"]
    assert (build["quantization"], build["weights_bytes"]) == ("BF16", sum(map(len, _shards())))
    assert data["model"]["parameters"] == 100 * 64 + 2 * 128 * 64 + 64
    assert build["layout"] == {
        "embedding_bytes": 12_800, "output_bytes": 128, "layer_bytes": [16_384, 16_384], "expert_bytes": [],
    }  # fmt: skip
    assert data["model"]["layers"][0] | {"count": 2, "kv_heads": 2, "key_dim": 32} == data["model"]["layers"][0]
    assert data["model"]["tied_embeddings"]
    assert run_cli("estimate", "small-0.1b", "--engine", "vllm", *_MACHINE, "--context", "2k").code == 0
    assert run_cli("catalog", "check").code == 0


@pytest.mark.parametrize(
    ("settings", "packed", "label"),
    [
        ({"quant_method": "awq", "bits": 4}, ("qweight", "I32", [64, 16], 4096), "AWQ"),
        ({"quant_method": "gptq", "bits": 4}, ("qweight", "I32", [8, 128], 4096), "GPTQ-INT4"),
        ({"quant_method": "fp8"}, ("weight", "F8_E4M3", [128, 64], 8192), "FP8"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            ("weight_packed", "I32", [128, 8], 4096),
            "W4A16",
        ),
    ],
)
def test_packed_weights_are_counted_one_by_one(
    hub: Hub, settings: dict[str, object], packed: tuple[str, str, list[int], int], label: str
) -> None:
    suffix, dtype, shape, size = packed
    tensors: dict[str, tuple[str, list[int], int]] = {"model.embed_tokens.weight": ("BF16", [100, 64], 12_800)}
    for layer in (0, 1):
        tensors[f"model.layers.{layer}.mlp.up_proj.{suffix}"] = (dtype, shape, size)
        tensors[f"model.layers.{layer}.mlp.up_proj.weight_scale"] = ("F16", [128], 256)
        tensors[f"model.layers.{layer}.mlp.up_proj.qzeros"] = ("I32", [16], 64)
    hub.add("x/Packed", "model.safetensors", _safetensors(tensors))
    hub.add("x/Packed", "config.json", json.dumps(_CONFIG | {"quantization_config": settings}).encode())
    run = _add(hub, what="hf:x/Packed")
    assert run.code == 0, run.stdout
    data = run.json["data"]
    assert data["builds"][0]["quantization"] == label
    assert data["model"]["parameters"] == 100 * 64 + 2 * 128 * 64
    assert run_cli("catalog", "check").code == 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (_CONFIG | {"model_type": "tomorrow"}, "the model_type 'tomorrow' is not known here"),
        (_CONFIG | {"quantization_config": {"quant_method": "magic"}}, "is quantized by 'magic'"),
        (_CONFIG | {"num_hidden_layers": "two"}, "has no whole number as 'num_hidden_layers'"),
        (_CONFIG | {"hidden_size": 10**30}, "its 'embedding_length' is 1000"),
        ([1, 2], "is not a JSON object"),
    ],
)
def test_a_configuration_that_is_not_understood_is_not_guessed_from(hub: Hub, config: object, expected: str) -> None:
    hub.add("x/Odd", "model.safetensors", _shards()[0])
    hub.add("x/Odd", "config.json", json.dumps(config).encode())
    assert expected in _error(_add(hub, what="hf:x/Odd"))["message"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it is empty"),
        (b"\1", "it ends inside the header"),
        (struct.pack("<Q", 2**63) + b"{}", "claims a header of 9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", 2) + b"[]", "is not a JSON object"),
        (struct.pack("<Q", 4) + b"[[[[", "is not a JSON object"),
        (struct.pack("<Q", 100) + b"{}", "it ends inside the header"),
        (_shards()[0][:-1], "it ends inside the tensors"),
    ],
)
def test_a_broken_safetensors_file_is_one_line(hub: Hub, content: bytes, expected: str) -> None:
    hub.add("x/Odd", "model.safetensors", content)
    hub.add("x/Odd", "config.json", json.dumps(_CONFIG).encode())
    run = _add(hub, what="hf:x/Odd")
    assert run.code == 3
    assert expected in _error(run)["message"]


# Ollama registries


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[ModelRegistry]:
    """The lab's registry over a models folder that holds a real small model, as Ollama stores it."""
    blobs, manifests = tmp_path / "models" / "blobs", tmp_path / "models" / "manifests" / "registry.ollama.ai"
    blobs.mkdir(parents=True)

    def blob(data: Path | bytes) -> dict[str, object]:
        content = data if isinstance(data, bytes) else data.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"sha256-{digest}").write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    model = {"mediaType": "application/vnd.ollama.image.model", **blob(smollm2_gguf())}
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", **blob(b'{"file_type":"Q4_1"}')}
    license_text = {"mediaType": "application/vnd.ollama.image.license", **blob(b"Apache")}
    tensor = {"mediaType": "application/vnd.ollama.image.tensor"}
    manifest = {"schemaVersion": 2, "config": config, "layers": [model, license_text]}
    for name, content in (
        ("library/tiny/135m", json.dumps(manifest)),
        ("library/tiny/latest", json.dumps(manifest)),
        ("someone/tiny/v1", json.dumps(manifest)),
        ("library/tensors/latest", json.dumps(manifest | {"layers": [tensor]})),
        ("library/odd/latest", json.dumps(manifest | {"layers": [model | {"digest": "sha256:../../etc"}]})),
        ("library/broken/latest", "{"),
    ):
        path = manifests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with ModelRegistry(tmp_path / "models") as server:
        yield server


def _pull_header(registry: ModelRegistry, tag: str, *more: str) -> Run:
    return run_cli("catalog", "add", f"ollama:{tag}", "--registry", registry.url(), "--json", *more)


def test_a_tag_is_its_models_header_by_ranges_from_another_host(registry: ModelRegistry) -> None:
    run = _pull_header(registry, "tiny:135m")
    assert run.code == 0, run.stdout
    data = run.json["data"]
    (build,) = data["builds"]
    assert (data["name"], build["ollama_tag"]) == ("tiny:135m", "tiny:135m")
    assert (build["quantization"], build["weights_bytes"]) == ("Q4_1", 98_362_432)
    assert "sha256:" in data["source"]["title"]
    blobs = [asked for asked in registry.requests if asked.path.startswith("/data/")]
    assert all(asked.host.startswith("localhost") for asked in blobs)
    assert 0 < sum(asked.sent_bytes for asked in blobs) < 4 * 2**20
    assert run_cli("plan", "--model", "tiny:135m", *_MACHINE, "--context", "2k").code == 0
    assert run_cli("estimate", "tiny:135m", *_MACHINE, "--context", "2k").code == 0


def test_tags_as_people_type_them(registry: ModelRegistry) -> None:
    assert _pull_header(registry, "tiny", "--dry-run").json["data"]["name"] == "tiny"
    assert _pull_header(registry, "someone/tiny:v1", "--dry-run").json["data"]["name"] == "someone/tiny:v1"
    address = registry.url().removeprefix("http://")
    run = run_cli("catalog", "add", "ollama:tiny", "--registry", address, "--insecure-registry", "--dry-run", "--json")
    assert run.code == 0


@pytest.mark.parametrize(
    ("tag", "code", "expected"),
    [
        ("nothing", 2, "has no nothing:latest"),
        ("tensors", 3, "is kept as single tensors"),
        ("odd", 3, "has 0 model files"),
        ("broken", 5, "does not answer with JSON"),
    ],
)
def test_a_tag_that_is_no_model_is_one_line(registry: ModelRegistry, tag: str, code: int, expected: str) -> None:
    run = _pull_header(registry, tag)
    assert run.code == code
    assert expected in _error(run)["message"]


# What is written


def test_a_file_is_added_shown_replaced_and_taken_out_again() -> None:
    file = smollm2_gguf()
    run = run_cli("catalog", "add", file, "--name", "mine:tiny", "--json")
    assert run.code == 0, run.stdout
    (written,) = run.json["data"]["written"]
    path = Path(written["path"])
    first = path.read_text()
    assert path.parent == _data_folder()
    assert run_cli("catalog", "check").code == 0
    estimate = run_cli("estimate", "mine:tiny", "--quant", "Q4_1", *_MACHINE, "--context", "2k", "--json")
    direct = run_cli("estimate", file, *_MACHINE, "--context", "2k", "--json")
    bills = [run.json["data"]["cases"][0]["memory"] for run in (estimate, direct)]
    assert bills[0] == bills[1]
    assert run.json["data"]["builds"][0]["layout"] == to_plain_deep(read_model(file)[1].layout)
    assert run_cli("plan", "--model", "mine:tiny", "--engine", "llamacpp", *_MACHINE, "--context", "2k").code == 0
    again = run_cli("catalog", "add", file, "--name", "mine:tiny", "--json").json["data"]
    (rewritten,) = again["written"]
    assert Path(rewritten["backup"]).read_text() == first
    assert any("mine-tiny.toml" in label for label in again["overrides"])
    removed = run_cli("catalog", "remove", "MINE:tiny", "--json")
    assert removed.code == 0
    assert removed.json["data"]["now_means"] is None
    assert run_cli("estimate", "mine:tiny", *_MACHINE).code == 2
    gone = run_cli("catalog", "remove", "mine:tiny")
    assert gone.code == 2
    assert list(_data_folder().glob("*.toml")) == []


def test_an_entry_of_ours_is_overridden_and_back_after_removal() -> None:
    run = run_cli("catalog", "add", smollm2_gguf(), "--json")
    data = run.json["data"]
    assert data["name"] == "smollm2:135m"  # whose alias the file's name is, and which has the same shape
    assert any("[[model]] 'smollm2:135m'" in label for label in data["overrides"])
    assert "SmolLM2-135M-Instruct" in data["model"]["aliases"]
    shown = run_cli("catalog", "show", "smollm2:135m", "--json").json["data"]
    assert {b["source"] for b in shown["builds"] if b["quantization"] == "Q4_1"} == {data["source"]["id"]}
    assert run_cli("catalog", "check").code == 0
    assert run_cli("catalog", "remove", "smollm2:135m", "--json").json["data"]["now_means"] == "smollm2:135m"


def test_a_name_of_another_model_is_not_taken(hub: Hub) -> None:
    hub.add("x/llama3.1-8b-GGUF", "llama3.1-8b-Q8_0.gguf", gguf_files.whole(llama(), llama_tensors()))
    error = _error(_add(hub, what="hf:x/llama3.1-8b-GGUF"))
    assert error["code"] == "name-taken"
    assert "--name" in error["hint"]
    assert _add(hub, "--name", "llama3.1-8b-mine", what="hf:x/llama3.1-8b-GGUF").code == 0


def test_builds_that_were_added_before_stay(hub: Hub) -> None:
    assert _add(hub, what=f"hf:{_REPOSITORY}:Q8_0").code == 0
    assert _add(hub, what=f"hf:{_REPOSITORY}:F16").code == 0
    builds = run_cli("catalog", "show", "tiny-llama", "--json").json["data"]["builds"]
    assert {build["quantization"] for build in builds} == {"Q8_0", "F16"}
    assert run_cli("catalog", "check").code == 0


def test_a_dry_run_prints_what_would_be_written_and_writes_nothing(hub: Hub) -> None:
    run = run_cli("catalog", "add", f"hf:{_REPOSITORY}", "--endpoint", hub.url, "--dry-run")
    assert run.code == 0
    assert '[[model]]\nid = "tiny-llama"' in run.stdout
    assert not _data_folder().exists()


def test_hostile_texts_of_a_header_stay_texts(hub: Hub) -> None:
    metadata = llama() | {"general.name": 'x"]\n[[engine]]\nid = "evil', "general.license": "\x1b[2J\u202e"}
    hub.add("x/Evil-GGUF", "evil-Q8_0.gguf", gguf_files.whole(metadata, llama_tensors()))
    assert _add(hub, what="hf:x/Evil-GGUF").code == 0
    shown = run_cli("catalog", "show", "evil").stdout
    assert "\x1b" not in shown
    assert "evil" not in {
        entry["id"] for entry in run_cli("catalog", "list", "engines", "--json").json["data"]["engines"]
    }


def test_an_entry_beside_others_is_left_to_its_owner() -> None:
    folder = _data_folder()
    run_cli("catalog", "add", smollm2_gguf(), "--name", "mine")
    other = folder / "all.toml"
    (folder / "mine.toml").rename(other)
    other.write_text(
        other.read_text() + '\n[[source]]\nid = "s"\ntitle = "t"\nkind = "derived"\nchecked_on = 2026-11-24\n'
    )
    run = run_cli("catalog", "remove", "mine", "--json")
    assert run.code == 2
    assert "by hand" in run.json["errors"][0]["hint"]
    assert other.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    run = run_cli("catalog", "add", smollm2_gguf(), "--name", "mine", "--json")
    assert run.code == 3
    assert run.json["errors"][0]["hint"]


def test_an_interruption_leaves_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_source: str, _target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    run = _add(hub)
    assert run.code == 130
    assert list(_data_folder().iterdir()) == []
