"""Runs a benchmark against a server: warm-up, then levels of concurrent users in a closed loop.

"Closed loop" means users who wait for their answer before they ask again; it says nothing about arrival rates.
"""

from __future__ import annotations

import asyncio
import gc
import math
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import provision
from provision import engines
from provision.bench import stats, verdict
from provision.bench.prompts import Calibration, prompt_of
from provision.domain.hardware import RunningEngine
from provision.domain.measurement import BenchLevel, BenchResult, RequestTiming
from provision.engines import ollama, openai_api
from provision.engines.client import (
    RequestFailed,
    SendClock,
    StreamEvent,
    Usage,
    refused,
    stream_client,
    tls_context,
    unreachable,
)
from provision.errors import Interrupted, Unreachable, UsageError
from provision.resources import user_data_dir

if TYPE_CHECKING:
    import ssl

    import httpx

Api = Literal["auto", "ollama", "openai", "openai-completions"]
LENGTH_JITTER_RATIO = 0.5
"""With several users: equal lengths would make all answers end together and all prompts be read together, for ever."""
_REQUESTS_ALONE, _REQUESTS_PER_USER = 10, 5
_TICK_S = 0.01
_SAVE_EVERY_S = 5.0
_RETRY_PAUSE_S = 0.25
_HOPELESS_FAILURES = 10
"""Failures without one success after which a level ends."""
_SHORT_KEEP_ALIVE = timedelta(minutes=2)
_KEEP_ALIVE = "10m"
_REFUSALS = (400, 404, 422)
"""Statuses of servers that do not know the route or a parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchProgress:
    users: int
    phase: Literal["warm-up", "measuring"]
    done: int
    total: int
    decode_tokens_per_s: float | None
    """Median so far."""


def run_bench(
    url: str,
    model: str | None = None,
    *,
    users: Sequence[int] = (1,),
    requests_per_user: int | None = None,
    prompt_tokens: int = 512,
    output_tokens: int = 128,
    context_tokens: int | None = None,
    api: Api = "auto",
    api_key: str | None = None,
    length_jitter_ratio: float | None = None,
    level_time_limit_s: float | None = None,
    on_start: Callable[[str], None] | None = None,
    on_progress: Callable[[BenchProgress], None] | None = None,
    save: Callable[[BenchResult], None] | None = None,
) -> BenchResult:
    """Measure `model` (None: the only one there) at each number of `users`.

    Every prompt is new to the server and has about `prompt_tokens` by the server's count. Answers have
    `output_tokens`; with several users their lengths vary by `length_jitter_ratio` (None: 0 for one user, else 0.5).
    `context_tokens` is sent to Ollama only (None: what the loaded model has, if that is enough). After
    `level_time_limit_s` a level starts no new request. `on_start` gets the server's name of the model before the first
    request, and may raise what speaks against measuring it. `save` gets the result so far after every level and every
    few seconds, from another thread, and a last time at the end, or on Ctrl-C with `complete=False`.

    Raises Unreachable, UsageError (unknown model, numbers that cannot be), and Interrupted on Ctrl-C.
    """
    if not users or min(users) < 1:
        raise UsageError("the number of users must be at least 1", hint="--users 1,4,8")
    if output_tokens < 2:
        raise UsageError("decode speed needs at least 2 output tokens", hint="--output-tokens 128")
    if prompt_tokens < 1 or (requests_per_user is not None and requests_per_user < 1):
        raise UsageError("prompt tokens and requests must be at least 1", hint="--prompt-tokens 512 --requests 10")

    engine = engines.identify(url, api_key=api_key)
    model = choose_model(engine, model)
    native = api == "ollama" or (api == "auto" and engine.id == "ollama")
    jitter_ratio = max(_jitter_ratio(length_jitter_ratio, count) for count in users)
    longest = prompt_tokens + math.ceil(output_tokens * (1 + jitter_ratio))
    context = _context(engine, model, native, context_tokens, longest, api_key)
    if on_start is not None:
        on_start(model)
    run = _Run(
        engine=engine,
        model=model,
        api="ollama" if native else "openai" if api == "auto" else api,
        api_key=api_key,
        users=tuple(users),
        requests_per_user=requests_per_user,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        context_tokens=context,
        length_jitter_ratio=length_jitter_ratio,
        level_time_limit_s=level_time_limit_s,
        on_progress=on_progress,
        save=save,
    )
    try:
        asyncio.run(run.measure())
    except KeyboardInterrupt:
        if save is not None and run.request_count:
            save(run.result(complete=False))
        raise Interrupted(f"interrupted after {run.request_count} measured requests") from None
    result = run.result(complete=True)
    if save is not None:
        save(result)
    return result


def choose_model(engine: RunningEngine, model: str | None) -> str:
    """The server's own name of `model`, or of its only model. Raises UsageError with what is there."""
    names = [installed.name for installed in engine.models]
    there = ", ".join(names) or "no model"
    if model is None:
        if len(names) == 1:
            return names[0]
        raise UsageError(
            f"{engine.url} has {there}: which one?" if names else f"{engine.url} has no model",
            hint=f"--model {names[0]}" if names else "ollama pull llama3.1:8b",
            code="model-needed",
        )
    for name in names:
        if name == model or (engine.id == "ollama" and ollama.is_same_model(name, model)):
            return name
    near = get_close_matches(model, names, n=1)
    hint = f"--model {near[0]}" if near else f"ollama pull {model}" if engine.id == "ollama" else "--model NAME"
    raise UsageError(f"{engine.url} has no model '{model}'; it has {there}", hint=hint, code="unknown-model")


def default_result_path(model: str, started_at: datetime) -> Path:
    """Where results go when no file is named: the user's data folder, created here. Raises OSError."""
    folder = user_data_dir() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip("._") or "model"
    return folder / f"{started_at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{safe}.json"


def _jitter_ratio(wanted: float | None, users: int) -> float:
    if wanted is not None:
        return wanted
    return LENGTH_JITTER_RATIO if users > 1 else 0.0


def _context(
    engine: RunningEngine, model: str, native: bool, wanted: int | None, longest: int, api_key: str | None
) -> int | None:
    """Context of one request, and that prompt and answer are not too long for it."""
    if native:
        if wanted is None:
            for loaded in ollama.loaded_models(engine.url, api_key=api_key):
                if ollama.is_same_model(loaded.name, model) and (loaded.context_tokens or 0) >= longest:
                    return loaded.context_tokens
            return max(4096, 1 << (longest - 1).bit_length())
        available: int | None = wanted
    else:
        available = openai_api.context_tokens(engine.url, model, api_key=api_key)
    if available is not None and longest > available:
        raise UsageError(
            f"prompt and answer take up to {longest:,} tokens, the context has {available:,}",
            hint="--context, or fewer --prompt-tokens and --output-tokens",
        )
    return available


def _offload_ratio(size_bytes: int | None, size_vram_bytes: int | None) -> float | None:
    return min(1.0, size_vram_bytes / size_bytes) if size_bytes and size_vram_bytes is not None else None


@dataclass(frozen=True, slots=True)
class _Job:
    prompt: str
    output_tokens: int
    seed: int


@dataclass(slots=True, kw_only=True)
class _Run:
    """State of one run; what it has so far can be taken at any moment with `result`."""

    engine: RunningEngine
    model: str
    api: str
    api_key: str | None
    users: tuple[int, ...]
    requests_per_user: int | None
    prompt_tokens: int
    output_tokens: int
    context_tokens: int | None
    length_jitter_ratio: float | None
    level_time_limit_s: float | None
    on_progress: Callable[[BenchProgress], None] | None
    save: Callable[[BenchResult], None] | None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    origin: float = field(default_factory=time.perf_counter)
    levels: list[BenchLevel] = field(default_factory=list)
    current: _Level | None = None
    extensions: bool = True
    keep_alive: str | None = None
    template_tokens: int = 0
    size_bytes: int | None = None
    size_vram_bytes: int | None = None
    tls: ssl.SSLContext | bool = False
    seeds: int = 0
    calibration: Calibration = field(init=False)

    def __post_init__(self) -> None:
        self.calibration = Calibration(self.prompt_tokens)

    @property
    def request_count(self) -> int:
        return sum(len(level.requests) for level in self.levels) + (len(self.current.requests) if self.current else 0)

    def result(self, *, complete: bool) -> BenchResult:
        levels = [*self.levels]
        if self.current is not None and self.current.requests:
            levels.append(self.current.so_far())
        spill = verdict.spill_finding(self.size_bytes, self.size_vram_bytes, self.model)
        return BenchResult(
            provision_version=provision.__version__,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            complete=complete,
            url=self.engine.url,
            api=self.api,
            engine=self.engine.id,
            engine_version=self.engine.version,
            model=self.model,
            context_tokens=self.context_tokens,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            size_bytes=self.size_bytes,
            size_vram_bytes=self.size_vram_bytes,
            quantization=next((m.quantization for m in self.engine.models if m.name == self.model), None),
            offload_ratio=_offload_ratio(self.size_bytes, self.size_vram_bytes),
            levels=verdict.with_scaling(levels),
            findings=(spill,) if spill else (),
        )

    async def measure(self) -> None:
        self.tls = tls_context(self.engine.url)
        try:
            await self._calibrate()
            await asyncio.to_thread(self._look_at_loaded_model)
            for users in self.users:
                await self._measure_level(users)
        finally:
            if self.keep_alive is not None:
                # The server would have unloaded the model soon; our requests have prolonged that.
                with suppress(Unreachable):
                    await asyncio.to_thread(ollama.unload, self.engine.url, self.model, api_key=self.api_key)

    async def _calibrate(self) -> None:
        """Two requests alone: they load the model, find the route that the server takes, and fit the prompt length."""
        if self.api.startswith("openai"):
            attempts = [(self.api, True), (self.api, False)]
            if self.api == "openai":  # a model without a chat template
                attempts.insert(1, ("openai-completions", True))
        else:
            attempts = [(self.api, True)]
        self._tell(self.users[0], "warm-up", 0, 2, None)
        for index, (self.api, self.extensions) in enumerate(attempts):
            try:
                await self._ask_once()
                break
            except RequestFailed as error:
                if error.status not in _REFUSALS or index == len(attempts) - 1:
                    raise self._no_generation(error) from error
        self._tell(self.users[0], "warm-up", 1, 2, None)
        try:
            timing = await self._ask_once()
        except RequestFailed as error:
            raise self._no_generation(error) from error
        self.template_tokens = timing.cached_tokens or 0
        self._tell(self.users[0], "warm-up", 2, 2, None)

    async def _ask_once(self) -> RequestTiming:
        """One warm-up request, which the calibration learns from. Raises RequestFailed and Unreachable."""
        import httpx

        words = self.calibration.words
        async with self._client() as client:
            try:
                timing, _ = await self._request(client, 0, self._job(words, self.output_tokens))
            except httpx.HTTPError as error:
                raise unreachable(self.engine.url, error) from error
        self.calibration.saw(words, timing.prompt_tokens)
        return timing

    def _no_generation(self, error: RequestFailed) -> Unreachable:
        if error.status in (401, 403):
            return refused(self.engine.url, "", error.status, error.message)
        return Unreachable(
            f"{self.engine.url} does not generate with {self.model}: {error.message}",
            hint=f"curl -s {self.engine.url}/v1/models",
            code="no-generation",
        )

    def _look_at_loaded_model(self) -> None:
        """What the server says of the loaded model, and whether it would drop it during the run."""
        if self.api != "ollama":
            return
        with suppress(Unreachable):
            for loaded in ollama.loaded_models(self.engine.url, api_key=self.api_key):
                if ollama.is_same_model(loaded.name, self.model):
                    self.size_bytes, self.size_vram_bytes = loaded.size_bytes, loaded.size_vram_bytes
                    if loaded.expires_at is None or loaded.expires_at - datetime.now(UTC) > _SHORT_KEEP_ALIVE:
                        return
            self.keep_alive = _KEEP_ALIVE

    async def _measure_level(self, users: int) -> None:
        jitter_ratio = _jitter_ratio(self.length_jitter_ratio, users)
        per_user = self.requests_per_user or (_REQUESTS_ALONE if users == 1 else _REQUESTS_PER_USER)
        generator = random.Random(users)
        lengths = [
            max(2, round(self.output_tokens * (1 + jitter_ratio * generator.uniform(-1, 1))))
            for _ in range(per_user * users)
        ]
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(self._client()) for _ in range(users)]
            stagger_s = 0.0
            if users > 1:
                warm_up = _Level(users=users)
                await self._drive(warm_up, clients, [self.output_tokens] * users, phase="warm-up")
                stagger_s = (stats.median(map(stats.ttft_s, warm_up.requests)) or 0.0) / users
            self.current = _Level(users=users, jitter_ratio=jitter_ratio, template_tokens=self.template_tokens)
            await self._drive(self.current, clients, lengths, phase="measuring", stagger_s=stagger_s)
        self.levels.append(self.current.so_far())
        self.current = None
        await self._save()

    async def _drive(
        self,
        level: _Level,
        clients: Sequence[httpx.AsyncClient],
        lengths: Sequence[int],
        *,
        phase: Literal["warm-up", "measuring"],
        stagger_s: float = 0.0,
    ) -> None:
        """All users in a closed loop until the jobs are done; each user has one job of its own, the rest are shared, so
        that all stay busy to the end."""
        jobs = [self._job(self.calibration.words, length) for length in lengths]
        first_jobs, shared = jobs[: len(clients)], iter(jobs[len(clients) :])
        started = time.perf_counter()
        saved = started

        async def user(number: int, client: httpx.AsyncClient) -> None:
            nonlocal saved
            await asyncio.sleep(number * stagger_s)
            job: _Job | None = first_jobs[number]
            while job is not None and not level.hopeless:
                timing, gaps = await self._timed_request(client, number, job)
                level.requests.append(timing)
                level.chunk_gaps_s.extend(gaps)
                speed = stats.median(map(stats.decode_tokens_per_s, level.requests))
                self._tell(level.users, phase, len(level.requests), len(jobs), speed)
                now = time.perf_counter()
                if phase == "measuring" and now - saved > _SAVE_EVERY_S:
                    saved = now
                    await self._save()
                if self.level_time_limit_s is not None and now - started > self.level_time_limit_s:
                    return
                if timing.error is not None:
                    await asyncio.sleep(_RETRY_PAUSE_S)
                job = next(shared, None)

        gc.collect()
        gc.freeze()
        gc.disable()
        ticker = asyncio.create_task(_tick(level.lags_s))
        # Of this thread, not of the process: the engine itself may run in another thread.
        cpu_started = time.thread_time()
        try:
            async with asyncio.TaskGroup() as group:
                for number, client in enumerate(clients):
                    group.create_task(user(number, client))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            level.cpu_s = time.thread_time() - cpu_started
            level.wall_s = time.perf_counter() - started
            ticker.cancel()
            gc.enable()
            gc.unfreeze()

    async def _timed_request(
        self, client: httpx.AsyncClient, user: int, job: _Job
    ) -> tuple[RequestTiming, list[float]]:
        """A request of the measurement: whatever goes wrong with it is noted, not raised."""
        import httpx

        sent_s = time.perf_counter() - self.origin
        try:
            return await self._request(client, user, job)
        except (httpx.HTTPError, RequestFailed) as error:
            text = error.message if isinstance(error, RequestFailed) else str(error) or type(error).__name__
            failed = RequestTiming(
                user=user,
                sent_s=sent_s,
                first_token_s=None,
                last_token_s=None,
                prompt_tokens=None,
                output_tokens=None,
                requested_tokens=job.output_tokens,
                error=text,
            )
            return failed, []

    async def _request(self, client: httpx.AsyncClient, user: int, job: _Job) -> tuple[RequestTiming, list[float]]:
        """One request, with a second try when the server closed the connection before it answered anything: that is a
        closed keep-alive, not a failure. The clock starts anew. Raises RequestFailed and httpx errors."""
        import httpx

        reconnects = 0
        while True:
            watch = _Watch()
            started = time.perf_counter()
            try:
                async with aclosing(self._stream(client, job, watch.clock)) as events:
                    async for event in events:
                        watch.see(event)
            except httpx.RemoteProtocolError:
                if watch.answered or reconnects:
                    raise
                reconnects += 1
                continue
            if not watch.finished:
                raise RequestFailed("the stream ended before the server announced its end")
            return watch.timing(user, job, self.origin, started, reconnects), watch.gaps_s()

    def _stream(self, client: httpx.AsyncClient, job: _Job, clock: SendClock) -> AsyncGenerator[StreamEvent, None]:
        if self.api == "ollama":
            return ollama.generate_stream(
                client,
                self.engine.url,
                self.model,
                job.prompt,
                output_tokens=job.output_tokens,
                context_tokens=self.context_tokens or 4096,
                seed=job.seed,
                clock=clock,
                keep_alive=self.keep_alive,
            )
        return openai_api.generate_stream(
            client,
            self.engine.url,
            self.model,
            job.prompt,
            output_tokens=job.output_tokens,
            seed=job.seed,
            clock=clock,
            route="completions" if self.api == "openai-completions" else "chat",
            extensions=self.extensions,
            count_along=self.extensions and self.engine.id == "vllm",
        )

    def _client(self) -> httpx.AsyncClient:
        return stream_client(self.engine.url, api_key=self.api_key, tls=self.tls)

    def _job(self, words: int, output_tokens: int) -> _Job:
        self.seeds += 1
        return _Job(prompt=prompt_of(words, self.seeds), output_tokens=output_tokens, seed=self.seeds)

    def _tell(
        self, users: int, phase: Literal["warm-up", "measuring"], done: int, total: int, speed: float | None
    ) -> None:
        if self.on_progress is not None:
            self.on_progress(BenchProgress(users=users, phase=phase, done=done, total=total, decode_tokens_per_s=speed))

    async def _save(self) -> None:
        if self.save is not None:
            # Not in this thread: a slow disk must not delay the time stamps of other users' streams.
            await asyncio.to_thread(self.save, self.result(complete=False))


@dataclass(slots=True, kw_only=True)
class _Level:
    """A level while it runs."""

    users: int
    jitter_ratio: float = 0.0
    template_tokens: int = 0
    requests: list[RequestTiming] = field(default_factory=list)
    chunk_gaps_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    cpu_s: float | None = None
    wall_s: float | None = None

    @property
    def hopeless(self) -> bool:
        return len(self.requests) >= max(_HOPELESS_FAILURES, self.users) and all(
            request.error is not None for request in self.requests
        )

    def so_far(self) -> BenchLevel:
        return verdict.make_level(
            self.users,
            self.requests,
            chunk_gaps_s=self.chunk_gaps_s,
            client_cpu_ratio=self.cpu_s / self.wall_s if self.cpu_s is not None and self.wall_s else None,
            client_lag_p99_s=stats.percentile(sorted(self.lags_s), 99) if len(self.lags_s) >= 100 else None,
            template_tokens=self.template_tokens,
            length_jitter_ratio=self.jitter_ratio,
        )


@dataclass(slots=True)
class _Watch:
    """What is kept of one stream: arrival times of chunks that carry output, and the last word on usage."""

    clock: SendClock = field(default_factory=SendClock)
    answered: bool = False
    finished: bool = False
    arrivals: list[float] = field(default_factory=list)
    first_answer: float | None = None
    first_chunk_tokens: int | None = None
    usage: Usage | None = None
    stop_reason: str | None = None

    def see(self, event: StreamEvent) -> None:
        self.answered = True
        self.finished = self.finished or event.finished
        self.stop_reason = event.stop_reason or self.stop_reason
        if event.usage is not None:
            self.usage = event.usage
        if event.answer or event.reasoning:
            if not self.arrivals:
                self.first_chunk_tokens = event.tokens_so_far
            self.arrivals.append(event.arrived_s)
            if event.answer and self.first_answer is None:
                self.first_answer = event.arrived_s

    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.arrivals)]

    def timing(self, user: int, job: _Job, origin: float, started: float, reconnects: int) -> RequestTiming:
        usage = self.usage or Usage()
        sent = self.clock.sent_s or started
        return RequestTiming(
            user=user,
            sent_s=sent - origin,
            first_token_s=self.arrivals[0] - origin if self.arrivals else None,
            last_token_s=self.arrivals[-1] - origin if self.arrivals else None,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            chunks=len(self.arrivals),
            server_prefill_s=usage.prefill_s,
            server_decode_s=usage.decode_s,
            reconnects=reconnects,
            requested_tokens=job.output_tokens,
            first_chunk_tokens=self.first_chunk_tokens,
            first_answer_s=None if self.first_answer is None else self.first_answer - origin,
            connect_s=sent - started,
            server_queue_s=usage.queue_s,
            server_load_s=usage.load_s,
            stop_reason=self.stop_reason,
        )


async def _tick(lags_s: list[float]) -> None:
    """How late this event loop notices a timer: as late as it notices a chunk."""
    while True:
        due = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        lags_s.append(time.perf_counter() - due)
