"""What was measured, with everything needed to judge it again. Definitions: docs in `provision/bench/stats.py`."""

from __future__ import annotations

from datetime import datetime

from provision.domain.finding import Finding
from provision.domain.record import record

BENCH_VERSION = 1


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
    """Inside the window in which all users were active; for one user over the whole run."""
    prefill_tokens_per_s: Distribution | None
    error_rate: float
    client_cpu_ratio: float | None
    """The client's own CPU time over wall time."""
    client_lag_p99_s: float | None
    server_decode_delta_ratio: float | None
    """Client TPOT / server TPOT - 1, median; None where the server tells no timings."""
    valid: bool
    findings: tuple[Finding, ...] = ()


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
    levels: tuple[BenchLevel, ...] = ()
    findings: tuple[Finding, ...] = ()
