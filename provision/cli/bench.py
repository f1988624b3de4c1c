"""`provision bench`: throughput and latency of a running server."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provision.cli import where
from provision.cli.local import remember
from provision.domain.finding import Finding
from provision.domain.hardware import Origin
from provision.errors import ExitCode, Interrupted, InvalidFile, ProvisionError, UsageError
from provision.output.documents import Result
from provision.units import format_bytes, format_seconds, format_tokens, format_tokens_per_s, parse_tokens

if TYPE_CHECKING:
    from provision.bench.run import BenchProgress
    from provision.bench.self_test import SelfTest
    from provision.domain.measurement import BenchResult, Distribution, HardwareIdentity
    from provision.domain.plan import Candidate, Plan
    from provision.output.console import Progress, Screen

API_KEY_VARIABLE = "PROVISION_API_KEY"


class ApiChoice(StrEnum):
    AUTO = "auto"
    OLLAMA = "ollama"
    OPENAI = "openai"
    COMPLETIONS = "openai-completions"


def command(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Address of the server.")] = "http://127.0.0.1:11434",
    model: Annotated[
        str | None, typer.Option("--model", help="Model to measure; may be left out when the server has only one.")
    ] = None,
    users: Annotated[str, typer.Option("--users", help="Users at the same time, one level each: 1,4,8.")] = "1",
    requests: Annotated[
        int | None, typer.Option("--requests", help="Requests per user and level (10 for one user, else 5).")
    ] = None,
    prompt_tokens: Annotated[str, typer.Option("--prompt-tokens", help="Length of the prompts.")] = "512",
    output_tokens: Annotated[str, typer.Option("--output-tokens", help="Length of the answers.")] = "128",
    context_length: Annotated[
        str | None, typer.Option("--context", help="Context to serve with (Ollama), like 8k. Default: what is loaded.")
    ] = None,
    api: Annotated[ApiChoice, typer.Option("--api", help="How to talk to the server.")] = ApiChoice.AUTO,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", help="Environment variable that holds the API key.")
    ] = API_KEY_VARIABLE,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File for the result.")] = None,
    fail_below: Annotated[
        float | None,
        typer.Option("--fail-below", help="Exit with 7 when a level's median user gets fewer tokens/s than this."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Hold the measurement against this plan's prediction and ceiling.")
    ] = None,
    machine: where.MachineFile = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="USER@HOST", help="The host that the server runs on, behind a tunnel or not."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Measure this client's own error against a server with known times.")
    ] = False,
) -> Result:
    """Measure how fast a running server answers one user, and several at once.

    What one user gets is kept as a measurement of the machine that the server runs on (this one for an address of this
    machine, else --host, --machine or the plan's): plan and estimate then go by it.

    \b
    Examples:
      provision bench http://127.0.0.1:11434 --model llama3.1:8b --users 1,4,8
      provision bench http://gpu1:11434 --model llama3.1:8b --host admin@gpu1
    """
    screen: Screen = context.obj
    if self_test:
        return _self_test(screen)

    if fail_below is not None and not math.isfinite(fail_below):
        raise UsageError(f"--fail-below {fail_below} is no speed", hint="--fail-below 20")

    from provision.bench.run import run_bench
    from provision.records import write_json

    expected = None
    if plan is not None:
        from provision.cli.remote import read_plan

        expected = read_plan(plan)
    api_key = os.environ.get(api_key_env)
    if api_key is None and api_key_env != API_KEY_VARIABLE:
        raise UsageError(f"the environment variable {api_key_env} is not set", hint=f"export {api_key_env}=...")
    started_at = datetime.now(UTC)
    path = output
    identity: HardwareIdentity | None = None
    candidate: Candidate | None = None

    def check(model: str) -> None:
        """Finds out before anything is measured whether the result can be judged and kept."""
        nonlocal path, candidate, identity
        candidate = _planned(expected, model) if expected else None
        identity = _identity(url, machine, host, expected)
        if path is None:
            path = _default_path(model, started_at, screen)
        else:
            _refuse_unwritable(path)

    def save(result: BenchResult) -> None:
        assert path is not None
        write_json(path, replace(result, machine=identity))

    with screen.progress() as progress, _naming_what_is_kept(lambda: path):
        result = run_bench(
            url,
            model,
            users=_user_counts(users),
            requests_per_user=requests,
            prompt_tokens=_tokens("--prompt-tokens", prompt_tokens),
            output_tokens=_tokens("--output-tokens", output_tokens),
            context_tokens=None if context_length is None else _tokens("--context", context_length),
            api=api.value,
            api_key=api_key,
            on_start=check,
            on_progress=lambda step: _tell(progress, step),
            save=save,
        )
    result = replace(result, machine=identity)
    screen.note(f"saved to {path}")
    if identity is None:
        screen.note("no measurement of a machine: which one the server runs on, --host or --machine tells")
    elif fault := remember(result, path):
        screen.note(fault)
    return _outcome(result, fail_below, candidate)


def _identity(url: str, machine: str | None, host: str | None, plan: Plan | None) -> HardwareIdentity | None:
    """What the server runs on, as far as anybody says; None: not known, so that the run is of no machine.

    Raises as `where.one_machine`. An address of this machine that a tunnel listens on needs --host to be told apart.
    """
    from provision.catalog import load_catalog
    from provision.sizing.local import identity_of

    if machine or host:
        chosen = where.Where(hosts=(host,) if host else (), machine_file=machine)
        return identity_of(where.one_machine(chosen, load_catalog()))
    if plan is not None and plan.machine.origin is Origin.DETECTED:
        return identity_of(plan.machine)
    if not _is_here(url):
        return None
    try:
        return identity_of(where.one_machine(where.Where(), load_catalog()))
    except ProvisionError:  # nobody asked for it
        return None


def _is_here(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        name = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return False
    return name in ("localhost", "::1") or name.startswith("127.")


def _default_path(model: str, started_at: datetime, screen: Screen) -> Path:
    """In the user's data folder, or in a temporary one where that cannot be written (no home, read-only home)."""
    from provision.bench.run import default_result_path

    try:
        path = default_result_path(model, started_at)
        _try_writing(path.parent)
    except OSError as error:
        import tempfile

        path = Path(tempfile.mkdtemp(prefix="provision-results-")) / "result.json"
        screen.note(f"cannot write to the data folder ({error.strerror}), so the result goes to {path}")
    return path


def _refuse_unwritable(path: Path) -> None:
    """Raises InvalidFile for a file that the result could not be written to after all the measuring."""
    hint = "-o result.json"
    if path.is_dir():
        raise InvalidFile(f"cannot write {path}: it is a folder", hint=hint)
    if str(path) == "-":
        raise InvalidFile("-o takes a file; --json prints the result", hint="provision bench --json")
    if path.exists() and not path.is_file():
        return  # a device or a pipe: nothing is put beside it
    try:
        _try_writing(path.resolve().parent)
    except OSError as error:
        raise InvalidFile(f"cannot write {path}: {error.strerror}", hint=hint) from error


def _try_writing(folder: Path) -> None:
    """Raises OSError. Permission bits do not tell of read-only and full disks."""
    import tempfile

    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"1")


@contextmanager
def _naming_what_is_kept(path: Callable[[], Path | None]) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        kept = path()
        if kept is None or not kept.exists():
            raise
        raise Interrupted(f"{error.message}; they are kept in {kept}") from None


def show_bench(screen: Screen, result: BenchResult, planned: Candidate | None = None) -> None:
    """The table of a result, with the prediction below it where there is a plan."""
    engine = " ".join(filter(None, (result.engine, result.engine_version)))
    memory = "" if result.size_bytes is None else f", {format_bytes(result.size_bytes)} loaded"
    screen.print(
        f"{result.model} on {engine} at {result.url}: prompts of {result.prompt_tokens} tokens, answers of "
        f"{result.output_tokens}, context {format_tokens(result.context_tokens)}{memory}"
    )
    columns = ("users", "TTFT p50", "decode tok/s per user p50", "system tok/s", "prefill tok/s", "errors", "requests")
    table = screen.table(*columns, right=columns)
    for level in result.levels:
        table.add_row(
            str(level.users),
            format_seconds(_p50(level.ttft_s)),
            format_tokens_per_s(_p50(level.decode_tokens_per_s)) + ("" if level.valid else " (void)"),
            format_tokens_per_s(level.system_output_tokens_per_s),
            format_tokens_per_s(_p50(level.prefill_tokens_per_s)),
            f"{level.error_rate:.0%}",
            str(len(level.requests)),
        )
    screen.print(table)
    if planned and planned.speed:
        from provision.output.views import rate

        decode = planned.speed.decode_tokens_per_s
        screen.print(f"planned for one user: {rate(decode)} tokens/s, ceiling {format_tokens_per_s(decode.ceiling)}")


def _p50(distribution: Distribution | None) -> float | None:
    return None if distribution is None else distribution.p50


def _planned(plan: Plan, model: str) -> Candidate:
    """The plan's candidate for the model that was measured. Raises UsageError."""
    for candidate in plan.candidates:
        if candidate.id in plan.selected and model in (candidate.ollama_tag, candidate.model):
            return candidate
    names = ", ".join(sorted({c.ollama_tag or c.model for c in plan.candidates if c.id in plan.selected}))
    raise UsageError(f"the plan does not install {model}, but {names or 'nothing'}", hint="leave out --plan")


def _outcome(result: BenchResult, fail_below: float | None, planned: Candidate | None) -> Result:
    from provision.bench.compare import explain, single_stream_tokens_per_s

    findings = (*result.findings, *(finding for level in result.levels for finding in level.findings))
    alone = single_stream_tokens_per_s(result)
    if planned and planned.speed and alone:
        findings += explain(alone, planned.speed.decode_tokens_per_s)
    errors: list[Finding] = []
    exit_code = ExitCode.DONE
    if all(level.decode_tokens_per_s is None for level in result.levels):
        exit_code = ExitCode.UNREACHABLE
        errors.append(Finding(code="nothing-measured", message=f"{result.url} gave no answer that could be measured"))
    elif fail_below is not None:
        for level in result.levels:
            speed = level.decode_tokens_per_s.p50 if level.decode_tokens_per_s else 0.0
            if speed < fail_below:
                exit_code = ExitCode.BELOW_THRESHOLD
                who = f"{level.users} user{'s' if level.users > 1 else ''}"
                errors.append(
                    Finding(
                        code="below-threshold",
                        message=f"{who}: {speed:.1f} tokens/s per user is below {fail_below:g}",
                    )
                )
    return Result(
        data=result,
        warnings=findings,
        errors=tuple(errors),
        exit_code=exit_code,
        show=lambda screen: show_bench(screen, result, planned),
    )


def _self_test(screen: Screen) -> Result:
    from provision.bench.self_test import run_self_test

    with screen.progress() as progress:
        test = run_self_test(on_progress=lambda step: _tell(progress, step))

    errors = tuple(
        Finding(
            code="client-inaccurate",
            message=f"{row.figure} with {row.users} users is {row.error_s * 1e3:+.1f} ms off {row.true_s * 1e3:.1f} ms",
            hint="run bench on a machine with an idle core",
        )
        for row in test.rows
        if not row.within_tolerance
    )
    return Result(
        data=test,
        errors=errors,
        exit_code=ExitCode.BELOW_THRESHOLD if errors else ExitCode.DONE,
        show=lambda screen: _show_self_test(screen, test),
    )


def _show_self_test(screen: Screen, test: SelfTest) -> None:
    table = screen.table("users", "figure", "true", "client's error", "", right=("users", "true", "client's error"))
    for row in test.rows:
        verdict = "good" if row.within_tolerance else "too much"
        table.add_row(str(row.users), row.figure, f"{row.true_s * 1e3:.2f} ms", f"{row.error_s * 1e3:+.2f} ms", verdict)
    screen.print(table)


def _tell(progress: Progress, step: BenchProgress) -> None:
    who = "1 user" if step.users == 1 else f"{step.users} users"
    progress.update(f"{who}, {step.phase}", step.done, step.total)


def _user_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UsageError(f"--users '{text}' is not a list of numbers from 1", hint="--users 1,4,8")
    return counts


def _tokens(option: str, text: str) -> int:
    try:
        tokens = parse_tokens(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if tokens < 1:
        raise UsageError(f"{option} must be at least 1", hint=f"{option} 512")
    return tokens
