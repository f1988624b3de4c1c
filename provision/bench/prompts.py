"""Synthetic prompts of a wanted length in tokens, without a tokenizer: the server's own counts calibrate them."""

from __future__ import annotations

import random
import secrets

_WORDS = [
    "water",
    "stone",
    "river",
    "light",
    "music",
    "garden",
    "window",
    "paper",
    "ocean",
    "winter",
    "summer",
    "morning",
    "evening",
    "city",
    "house",
    "road",
    "bridge",
    "train",
    "table",
    "chair",
    "letter",
    "story",
    "friend",
    "mother",
    "father",
    "child",
    "teacher",
    "doctor",
    "farmer",
    "market",
    "village",
    "forest",
    "mountain",
    "field",
    "horse",
    "dog",
    "bird",
    "fish",
    "bread",
    "apple",
    "sugar",
    "coffee",
    "green",
    "yellow",
    "silver",
    "golden",
    "heavy",
    "narrow",
    "early",
    "quiet",
    "strong",
    "simple",
    "open",
    "hidden",
    "broken",
    "careful",
    "different",
    "possible",
    "important",
    "together",
    "between",
    "under",
    "above",
    "behind",
    "against",
    "always",
    "never",
    "often",
    "almost",
    "perhaps",
    "because",
    "before",
    "after",
    "while",
    "until",
    "walk",
    "carry",
    "build",
    "follow",
    "remember",
    "forget",
    "listen",
    "speak",
    "write",
    "read",
    "learn",
    "teach",
    "travel",
    "return",
    "begin",
    "finish",
    "change",
    "believe",
    "notice",
    "wonder",
    "answer",
    "question",
    "number",
    "minute",
    "hour",
    "week",
    "month",
    "year",
    "history",
    "science",
    "language",
    "country",
    "island",
    "harbor",
    "engine",
    "machine",
    "metal",
    "glass",
]
_ENDING = "\nA very long story that uses all of these words:\n"
"""Keeps models that cannot be told to ignore the end of an answer from ending it early."""
_TOKENS_PER_WORD = 1.1
"""Until the server has counted twice."""


def prompt_of(words: int, seed: int) -> str:
    """`words` plain English words after a nonce. The nonce comes first, because caches match from the start: no two
    prompts, of this run or any other, share more than the chat template."""
    generator = random.Random(seed)
    return f"{secrets.token_hex(8)} " + " ".join(generator.choices(_WORDS, k=words)) + _ENDING


class Calibration:
    """Words needed for a prompt that the server counts as `target_tokens`, template and nonce included.

    A straight line through what has been seen; its slope is assumed until two lengths differ enough.
    """

    def __init__(self, target_tokens: int) -> None:
        self.target_tokens = target_tokens
        self._seen: dict[int, int] = {}
        # Less than the target: the template and the nonce take some, and the first prompt must not overflow.
        self.words = max(1, int((target_tokens - 30) / _TOKENS_PER_WORD * 0.9))

    def saw(self, words: int, prompt_tokens: int | None) -> None:
        """The server counted `prompt_tokens` for a prompt of `words`."""
        if not prompt_tokens:
            return
        self._seen[words] = prompt_tokens
        slope = _TOKENS_PER_WORD
        shortest, longest = min(self._seen), max(self._seen)
        if longest - shortest >= 16:
            measured = (self._seen[longest] - self._seen[shortest]) / (longest - shortest)
            slope = measured if 0.5 < measured < 4 else slope
        self.words = max(1, round(words + (self.target_tokens - prompt_tokens) / slope))
