"""Which server answers, on fakes that greet as the real ones do, and what is said when none does."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from provision.engines import identify, ollama, openai_api
from provision.engines.client import fetch
from provision.errors import Unreachable
from tests.integration.scripted_server import (
    Reply,
    json_reply,
    ollama_server,
    openai_server,
    scripted_server,
    text_reply,
)


def test_ollama_with_its_models():
    with ollama_server(names=("a:latest", "b:7b")) as server:
        engine = identify(server.url + "/v1/")

    assert (engine.id, engine.version, engine.url) == ("ollama", "0.32.1", server.url)
    assert [(m.name, m.size_bytes, m.quantization) for m in engine.models] == [
        ("a:latest", 1000, "Q4_0"),
        ("b:7b", 1000, "Q4_0"),
    ]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"/version": lambda _: json_reply({"version": "0.11.0"})}, ("vllm", "0.11.0")),
        (
            {"/props": lambda _: json_reply({"default_generation_settings": {"n_ctx": 2048}, "build_info": "b10488"})},
            ("llamacpp", "b10488"),
        ),
        ({}, ("openai", None)),
    ],
)
def test_openai_servers(extra, expected):
    with openai_server(extra=extra) as server:
        engine = identify(server.url)
        context = openai_api.context_tokens(server.url, "fake")

    assert (engine.id, engine.version) == expected
    assert [model.name for model in engine.models] == ["fake"]
    assert context == 4096


def test_health():
    with openai_server(extra={"/health": lambda _: text_reply("")}) as server:
        assert openai_api.healthy(server.url)
    with openai_server(extra={"/health": lambda _: json_reply({"error": "loading"}, status=503)}) as server:
        assert not openai_api.healthy(server.url)
    with openai_server() as server:
        assert openai_api.healthy(server.url), "no /health, but it lists models"


def test_loaded_models_and_details():
    details = {
        "details": {"family": "llama", "quantization_level": "Q4_K_M"},
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
        "capabilities": ["completion"],
    }
    with ollama_server(loaded={"size_vram": 0}) as server:
        server.handlers["/api/show"] = lambda _: json_reply(details)
        (loaded,) = ollama.loaded_models(server.url)
        shown = ollama.show(server.url, "fake")

    assert (loaded.size_bytes, loaded.size_vram_bytes, loaded.context_tokens) == (1000, 0, 8192)
    assert loaded.expires_at.year == 2318
    assert (shown.family, shown.context_tokens_max) == ("llama", 131072)


def test_preload_and_unload():
    with ollama_server() as server:
        ollama.preload(server.url, "fake", context_tokens=8192, keep_alive=-1)
        ollama.unload(server.url, "fake")
        first, second = server.bodies("/api/generate")

    assert (first["options"], first["keep_alive"], first["prompt"]) == ({"num_ctx": 8192}, -1, "")
    assert second["keep_alive"] == 0


def test_nothing_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match="connection refused") as caught:
            identify(url)
    assert caught.value.code == "connection-refused"
    assert caught.value.hint


def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unreachable) as caught:
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}", "/", timeout_s=0.2)
    assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    ("models", "code"),
    [
        (Reply(status=404), "not-found"),
        (Reply(status=401), "unauthorized"),
        (Reply(status=502, pieces=((0.0, b"bad gateway"),)), "http-error"),
        (text_reply("<html>"), "not-an-engine"),
        (json_reply([1, 2]), "not-an-engine"),
        (Reply(closes_silently=True), "broken-off"),
    ],
)
def test_something_else_answers(models, code):
    with scripted_server({"/v1/models": lambda _: models}) as server, pytest.raises(Unreachable) as caught:
        identify(server.url)
    assert caught.value.code == code
    assert caught.value.hint


@pytest.fixture
def tls_url(tmp_path):
    """A server with a certificate that nobody knows."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to test with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)

    class Models(BaseHTTPRequestHandler):
        def do_GET(self):
            content = b'{"data": [{"id": "fake"}]}' if self.path == "/v1/models" else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    class QuietServer(HTTPServer):
        def handle_error(self, request, client_address):
            pass  # the client that refuses the certificate

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with QuietServer(("127.0.0.1", 0), Models) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_certificate_that_nobody_knows(tls_url):
    with pytest.raises(Unreachable) as caught:
        identify(tls_url)
    assert caught.value.code == "unknown-certificate"
    assert "SSL_CERT_FILE" in caught.value.hint


def test_an_authority_of_ones_own(tls_url, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))

    assert [model.name for model in identify(tls_url).models] == ["fake"]
