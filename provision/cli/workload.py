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
PromptOption = Annotated[int | None, typer.Option("--prompt-tokens", help="Prompt length that speeds are given for.")]
OutputOption = Annotated[int | None, typer.Option("--output-tokens", help="Answer length that speeds are given for.")]
CacheOption = Annotated[str, typer.Option("--kv-cache", help="Type of the KV cache: f16; q8_0, q4_0; vLLM: fp8.")]

KV_CACHE_TYPES = ("f16", "q8_0", "q4_0", "fp8")
"""All engines' together; the engine says which of them it has."""
DEFAULT_PROMPT_TOKENS, DEFAULT_OUTPUT_TOKENS = 512, 256

_MIN_CONTEXT_TOKENS = 256
_MAX_USERS = 100_000


def workload(
    context: str, users: int, kv_cache: str = "f16", prompt: int | None = None, output: int | None = None
) -> Workload:
    """The workload asked for. Lengths that were not given are cut to what the context holds. Raises UsageError."""
    try:
        context_tokens = parse_tokens(context)
    except ValueError as error:
        raise UsageError(f"--context: {error}", hint="--context 8k") from None
    if context_tokens < _MIN_CONTEXT_TOKENS:
        message = f"--context {context} is too small: at least {_MIN_CONTEXT_TOKENS} tokens"
        raise UsageError(message, hint="--context 8k")
    if not 1 <= users <= _MAX_USERS:
        raise UsageError(f"--users {users}: from 1 to {_MAX_USERS:,}", hint="--users 8")
    if (prompt is not None and prompt < 1) or (output is not None and output < 2):
        raise UsageError("--prompt-tokens needs at least 1 and --output-tokens at least 2", hint="--prompt-tokens 512")
    if kv_cache not in KV_CACHE_TYPES:
        raise UsageError(f"--kv-cache {kv_cache} is not one of {', '.join(KV_CACHE_TYPES)}", hint="--kv-cache q8_0")
    answer = output or min(DEFAULT_OUTPUT_TOKENS, context_tokens // 2)
    question = prompt or min(DEFAULT_PROMPT_TOKENS, max(1, context_tokens - answer))
    if question + answer > context_tokens:
        raise UsageError(
            f"a prompt of {question} and an answer of {answer} tokens do not go into --context {context}",
            hint=f"--context {question + answer}",
        )
    return Workload(
        context_tokens=context_tokens,
        users=users,
        prompt_tokens=question,
        output_tokens=answer,
        kv_cache_type=kv_cache,  # type: ignore[arg-type]
    )
