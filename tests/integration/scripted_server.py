"""A fake inference server on loopback that does exactly what a test scripts, to the millisecond, faults included."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TTFT_S, TPOT_S = 0.04, 0.008
SILENCE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Pieces are written at times after the request was read; then the connection closes."""

    status: int = 200
    content_type: str = "application/json"
    pieces: tuple[tuple[float, bytes], ...] = ()
    chunked: bool = False
    """Frame the pieces, and end without the last frame when `broken`."""
    broken: bool = False
    closes_silently: bool = False
    """Close the connection after SILENCE_S, without any answer."""
    serial: bool = False
    """Wait for all other serial replies first; times count from then."""


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Handler = Callable[[dict[str, Any]], Reply]


@dataclass
class ScriptedServer:
    handlers: dict[str, Handler]
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [request.body for request in self.requests if request.path == path]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            content = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Request(first.split()[1], headers, json.loads(content) if content else {})
            self.requests.append(request)
            handler = self.handlers.get(request.path)
            reply = handler(request.body) if handler else json_reply({"error": "no such path"}, status=404)
            if reply.serial:
                async with self.lock:
                    await self._send(reply, writer)
            else:
                await self._send(reply, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        if reply.closes_silently:
            await asyncio.sleep(SILENCE_S)
            return
        now = asyncio.get_running_loop().time
        start = now()
        framing = "Transfer-Encoding: chunked\r\n" if reply.chunked else ""
        writer.write(
            f"HTTP/1.1 {reply.status} X\r\nContent-Type: {reply.content_type}\r\n{framing}"
            "Connection: close\r\n\r\n".encode()
        )
        for at_s, data in reply.pieces:
            await asyncio.sleep(start + at_s - now())
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if reply.chunked else data)
            await writer.drain()
        if reply.chunked and not reply.broken:
            writer.write(b"0\r\n\r\n")


@contextmanager
def scripted_server(handlers: dict[str, Handler]) -> Iterator[ScriptedServer]:
    """Runs in a thread until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[ScriptedServer, asyncio.Server]:
        scripted = ScriptedServer(handlers)
        listener = await asyncio.start_server(scripted.answer, "127.0.0.1", 0, limit=2**20)
        scripted.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        return scripted, listener

    async def stop(listener: asyncio.Server) -> None:
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    scripted, listener = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield scripted
    finally:
        asyncio.run_coroutine_threadsafe(stop(listener), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def json_reply(document: object, *, status: int = 200) -> Reply:
    return Reply(status=status, pieces=((0.0, json.dumps(document).encode()),))


def text_reply(text: str) -> Reply:
    return Reply(content_type="text/plain", pieces=((0.0, text.encode()),))


def stream_reply(
    contents: Sequence[bytes], end: bytes = b"", *, ttft_s: float = TTFT_S, tpot_s: float = TPOT_S, **more: Any
) -> Reply:
    """`contents` at the times of tokens, `end` together with the last of them."""
    pieces = [(ttft_s + index * tpot_s, content) for index, content in enumerate(contents)]
    last_s = pieces[-1][0] if pieces else ttft_s
    return Reply(content_type="text/event-stream", pieces=(*pieces, *(((last_s, end),) if end else ())), **more)


def sse(message: object) -> bytes:
    return b"data: " + json.dumps(message, ensure_ascii=False).encode() + b"\n\n"


def chat_chunk(finish: str | None = None, **delta: object) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage_chunk(prompt: int, output: int, *, cached: int | None = None, **more: object) -> bytes:
    usage: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": output}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return sse({"choices": [], "usage": usage, **more})


DONE = b"data: [DONE]\n\n"


def words_of(body: dict[str, Any]) -> int:
    """Tokens of the prompt as this server counts them: its words, and ten for a template."""
    text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    return len(text.split()) + 10


def openai_reply(body: dict[str, Any], **more: Any) -> Reply:
    """What a well-behaved server sends."""
    count = body["max_tokens"]
    contents = [chat_chunk(content="word ") for _ in range(count)]
    end = chat_chunk(finish="length") + usage_chunk(words_of(body), count) + DONE
    return stream_reply(contents, end, **more)


def openai_server(chat: Handler = openai_reply, extra: dict[str, Handler] | None = None) -> Any:
    models = json_reply({"data": [{"id": "fake", "max_model_len": 4096}]})
    return scripted_server({"/v1/models": lambda _: models, "/v1/chat/completions": chat, **(extra or {})})


def ollama_line(**message: object) -> bytes:
    return json.dumps({"model": "fake:latest", "done": False, **message}, ensure_ascii=False).encode() + b"\n"


def ollama_end(prompt: int, output: int, *, ttft_s: float = TTFT_S, tpot_s: float = TPOT_S, **more: object) -> bytes:
    decode_ns = int((output - 1) * tpot_s * 1e9)
    return ollama_line(
        **{
            "response": "",
            "done": True,
            "done_reason": "length",
            "total_duration": int(ttft_s * 1e9) + decode_ns,
            "load_duration": int(0.01 * 1e9),
            "prompt_eval_count": prompt,
            "prompt_eval_duration": int((ttft_s - 0.01) * 1e9),
            "eval_count": output,
            "eval_duration": decode_ns,
            **more,
        }
    )


def ollama_reply(body: dict[str, Any], **more: Any) -> Reply:
    if not body["prompt"]:
        return json_reply({"done": True, "done_reason": "unload" if body.get("keep_alive") == 0 else "load"})
    count = body["options"]["num_predict"]
    contents = [ollama_line(response="word ") for _ in range(count)]
    return stream_reply(contents, ollama_end(words_of(body), count), **more)


def ollama_server(
    generate: Handler = ollama_reply, loaded: dict[str, object] | None = None, names: Sequence[str] = ("fake:latest",)
) -> Any:
    tags = [{"name": name, "size": 1000, "digest": "d", "details": {"quantization_level": "Q4_0"}} for name in names]
    in_memory = {
        "name": "fake:latest",
        "size": 1000,
        "size_vram": 1000,
        "context_length": 8192,
        "expires_at": "2318-01-01T00:00:00.123456789Z",
        **(loaded or {}),
    }
    return scripted_server(
        {
            "/": lambda _: text_reply("Ollama is running"),
            "/api/version": lambda _: json_reply({"version": "0.32.1"}),
            "/api/tags": lambda _: json_reply({"models": tags}),
            "/api/ps": lambda _: json_reply({"models": [in_memory]}),
            "/api/generate": generate,
        }
    )
