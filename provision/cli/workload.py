"""Options that say what is asked of the hardware: shared by every sizing command."""

from __future__ import annotations

from typing import Annotated

import typer

from provision.domain.plan import Workload
from provision.errors import UsageError
from provision.units import parse_tokens

DEFAULT_CONTEXT = "8k"

ContextOption = Annotated[str, typer.Option("--context", help="Tokens per user: prompt, answer, history. E.g. 16k.")]
UsersOption = Annotated[int, typer.Option("--users", help="People served at the same time.")]
PromptOption = Annotated[int, typer.Option("--prompt-tokens", help="Prompt length that speeds are given for.")]
OutputOption = Annotated[int, typer.Option("--output-tokens", help="Answer length that speeds are given for.")]
CacheOption = Annotated[str, typer.Option("--kv-cache", help="Type of the KV cache: f16, q8_0 or q4_0.")]

_MIN_CONTEXT_TOKENS = 256


def workload(context: str, users: int, kv_cache: str = "f16", prompt: int = 512, output: int = 256) -> Workload:
    """The workload asked for; prompt and answer are cut to what the context holds. Raises UsageError."""
    try:
        context_tokens = parse_tokens(context)
    except ValueError as error:
        raise UsageError(f"--context: {error}", hint="--context 8k") from None
    if context_tokens < _MIN_CONTEXT_TOKENS:
        message = f"--context {context} is too small: at least {_MIN_CONTEXT_TOKENS} tokens"
        raise UsageError(message, hint="--context 8k")
    if users < 1:
        raise UsageError(f"--users {users}: at least one user is needed", hint="--users 1")
    if prompt < 1 or output < 2:
        raise UsageError("--prompt-tokens needs at least 1 and --output-tokens at least 2", hint="--prompt-tokens 512")
    if kv_cache not in ("f16", "q8_0", "q4_0"):
        raise UsageError(f"--kv-cache {kv_cache} is not known", hint="--kv-cache q8_0")
    output = min(output, context_tokens // 2)
    return Workload(
        context_tokens=context_tokens,
        users=users,
        prompt_tokens=min(prompt, context_tokens - output),
        output_tokens=output,
        kv_cache_type=kv_cache,  # type: ignore[arg-type]
    )
