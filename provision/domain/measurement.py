"""What was measured, with everything needed to judge it again. Definitions: docs in `provision/bench/stats.py`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from provision.domain.finding import Finding
from provision.domain.record import record

BENCH_VERSION = 1
MEASUREMENT_VERSION = 1


@record
class RequestTiming:
    """One streamed request; times in seconds since the run's start, on a monotonic clock."""

    user: int
    sent_s: float
    first_token_s: float | None
    last_token_s: float | None
    prompt_tokens: int | None
    """As the server counted them, cached ones included."""
    cached_tokens: int | None = None
    output_tokens: int | None
    """As the server counted them, never chunks."""
    chunks: int = 0
    server_prefill_s: float | None = None
    server_decode_s: float | None = None
    reconnects: int = 0
    error: str | None = None
    requested_tokens: int | None = None
    """Output tokens that were asked for."""
    first_chunk_tokens: int | None = None
    """Tokens inside the first chunk, where the server counts along."""
    first_answer_s: float | None = None
    """First visible text; later than the first token when the model reasons."""
    connect_s: float | None = None
    """Taken to connect before the request was sent; in no other figure."""
    server_queue_s: float | None = None
    server_load_s: float | None = None
    stop_reason: str | None = None


@record
class Distribution:
    count: int
    mean: float
    p50: float
    p90: float | None
    """None below 10 samples."""
    p95: float | None
    """None below 20 samples."""
    p99: float | None
    """None below 100 samples."""
    min: float
    max: float


@record
class BenchLevel:
    """One concurrency level of a run."""

    users: int
    requests: tuple[RequestTiming, ...]
    ttft_s: Distribution | None
    decode_tokens_per_s: Distribution | None
    """Per user: (n - 1) / (last - first token)."""
    system_output_tokens_per_s: float | None
    """Inside the window in which all users were active; for one user over the whole run. None without such a
    window."""
    prefill_tokens_per_s: Distribution | None
    error_rate: float
    client_cpu_ratio: float | None
    """The client's own CPU time over wall time."""
    client_lag_p99_s: float | None
    server_decode_delta_ratio: float | None
    """Client TPOT / server TPOT - 1, median; None where the server tells no timings."""
    valid: bool
    """False when the figures must not be compared or published; the findings say why."""
    ttfa_s: Distribution | None = None
    """To the first visible text; None where no request reasoned."""
    e2e_s: Distribution | None = None
    chunk_gap_s: Distribution | None = None
    """Between chunks, which are not tokens: a sign of jitter only."""
    e2e_tokens_per_s: Distribution | None = None
    """Per user, time to the first token included."""
    whole_run_output_tokens_per_s: float | None = None
    """Ramp and drain included."""
    system_total_tokens_per_s: float | None = None
    """Output and uncached prompt tokens, over the whole run."""
    scaling_ratio: float | None = None
    """System tokens/s over users x one user's decode speed; None without a level of one user."""
    concurrent_decodes: int | None = None
    """Most answers generated at the same time."""
    length_jitter_ratio: float = 0.0
    """Output lengths vary by this share around the one asked for; 0 is lock-step."""
    findings: tuple[Finding, ...] = ()


@record
class HardwareIdentity:
    """What a machine is told apart by: what is in it, not its name."""

    accelerators: tuple[str, ...]
    """Names as the drivers report them, sorted; one for each card."""
    cpu: str | None
    logical_cores: int | None = None
    memory_bytes: int | None


@record
class BenchResult:
    bench_version: int = BENCH_VERSION
    provision_version: str
    started_at: datetime
    finished_at: datetime | None = None
    complete: bool
    """False for a run that was interrupted; what it had is kept."""
    url: str
    api: str
    """`ollama` (native) or `openai`."""
    engine: str | None
    engine_version: str | None
    model: str
    context_tokens: int | None
    prompt_tokens: int
    output_tokens: int
    size_bytes: int | None = None
    size_vram_bytes: int | None = None
    """What the engine says of the loaded model (Ollama's /api/ps)."""
    quantization: str | None = None
    """As the server tells it."""
    catalog_model: str | None = None
    """Catalog id, where who started the server knows it and its name for the model says nothing."""
    offload_ratio: float | None = None
    """Share of the model that is on accelerators: 1 all, 0 on the CPU; None: the server does not tell."""
    machine: HardwareIdentity | None = None
    """What the server runs on; None: not known."""
    levels: tuple[BenchLevel, ...] = ()
    findings: tuple[Finding, ...] = ()


@record
class StoredRun:
    """One valid single-stream run on a known machine: a line of the measurements file."""

    measurement_version: int = MEASUREMENT_VERSION
    measured_at: str
    """ISO 8601."""
    machine: HardwareIdentity
    model: str
    """As the server called it, or the catalog's id where that is known."""
    quantization: str | None
    engine: str
    engine_version: str | None
    context_tokens: int | None
    prompt_tokens: int
    output_tokens: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float | None = None
    offload_ratio: float | None = None
    """As in BenchResult."""
    result: str | None = None
    """File with the whole result."""


@record
class LocalMeasurement:
    """One figure measured on the machine that is sized, beside what was predicted for the same workload."""

    model: str
    quantization: str
    engine: str
    measure: Literal["decode", "prefill"]
    tokens_per_s: float
    expected_tokens_per_s: float
    where: Literal["accelerators", "host"] | None = None
    """What it ran on; None: not told, good for any."""
