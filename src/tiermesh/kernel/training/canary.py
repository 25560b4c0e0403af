"""Fixed prompts, answered before the first step and after the last one, and how much of the training text an answer
tells word for word. What that means is decided elsewhere (`core.evaluation`).

Theory of operation. An answer tells training text where `LEAK_TOKENS` of its tokens in a row also stand in a record.
All windows of that width in the corpus are hashed in five additions (a window of 2n tokens is two of n), a block at a
time, and compared with the few windows of the answers. Windows that stand in many different records are phrases; and
records that hold the prompt itself are left out, because they ask for that answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiermesh.core.evaluation import CANARY_PROMPTS, CANARY_TOKENS, COMMON_RECORDS, COMMON_SHARE, LEAK_TOKENS
from tiermesh.kernel.training import evaluation
from tiermesh.protocol.training_events import CanaryAnswer

if TYPE_CHECKING:
    from tiermesh.kernel.training.data.corpus import Corpus
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.kernel.training.progress import Progress

assert LEAK_TOKENS & (LEAK_TOKENS - 1) == 0, "windows double"

BLOCK_TOKENS = 1 << 20
"""Hashed at once: 8 MiB a copy."""
FACTOR = 0x9E3779B97F4A7C15
"""Odd, with its bits well spread: a polynomial in it, modulo 2^64, tells windows apart."""
PROMPT_EDGE = 1
"""Tokens on both sides of a prompt that may be others where it stands in a text."""

Tokens = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Of one run. `corpus` None: nothing is known of the data, so nothing of leaks."""

    trainee: Trainee
    tokenizer: Any
    corpus: Corpus | None

    def is_due(self, progress: Progress) -> bool:
        """Before the first step, once."""
        return not (progress.step or progress.canary)

    def ask_before(self, progress: Progress, stopping: Callable[[], bool]) -> None:
        """Keep in `progress` what the model says as it came, unless it is to stop meanwhile."""
        told = self._answers(stopping)
        if not stopping():
            progress.canary = told

    def compared(self, progress: Progress, stopping: Callable[[], bool]) -> list[CanaryAnswer] | None:
        """What it says now, beside what it said before; nothing where it was not asked. None: it was to stop."""
        before = progress.canary
        if not before:
            return []
        after = self._answers(stopping)
        if stopping():
            return None
        copied = {prompt: self._copied(prompt, (before.get(prompt, ""), text)) for prompt, text in after.items()}
        return [
            CanaryAnswer(
                prompt=prompt,
                before=before.get(prompt, ""),
                after=text,
                copied_tokens_before=copied[prompt][0],
                copied_tokens=copied[prompt][1],
            )
            for prompt, text in after.items()
        ]

    def _answers(self, stopping: Callable[[], bool]) -> dict[str, str]:
        prompts = [prompt for prompt, _ in CANARY_PROMPTS]
        return dict(evaluation.answers(self.trainee, self.tokenizer, prompts, CANARY_TOKENS, stopping=stopping))

    def _copied(self, prompt: str, answers: Sequence[str]) -> list[int]:
        if self.corpus is None:
            return [0] * len(answers)
        return copied_tokens(self.corpus, self._encoded(prompt), [self._encoded(answer) for answer in answers])

    def _encoded(self, text: str) -> Tokens:
        return np.asarray(self.tokenizer(text, add_special_tokens=False).input_ids, dtype=np.uint64)


def copied_tokens(corpus: Corpus, prompt: Tokens, answers: Sequence[Tokens]) -> list[int]:
    """Of each answer to `prompt`, the longest run of tokens that records tell word for word; 0 when it is shorter than
    `LEAK_TOKENS`."""
    windows = [_hashes(answer) for answer in answers]
    wanted = np.unique(np.concatenate(windows)) if windows else np.zeros(0, dtype=np.uint64)
    if not len(wanted):
        return [0] * len(answers)
    records = _records_with(corpus, wanted)
    asking = _records_asking(corpus, prompt) if records else set()
    contents = np.asarray(corpus.hashes)
    most = max(COMMON_RECORDS, int(COMMON_SHARE * len(contents)))
    leaked = {
        window
        for window, found in records.items()
        if not found & asking and len(np.unique(contents[sorted(found)])) <= most
    }
    return [_longest(window in leaked for window in hashes.tolist()) for hashes in windows]


def _longest(leaked: Iterator[bool]) -> int:
    """Tokens of the longest row of windows that are."""
    runs = (sum(1 for _ in run) for is_leaked, run in groupby(leaked) if is_leaked)
    longest = max(runs, default=0)
    return LEAK_TOKENS + longest - 1 if longest else 0


def _records_with(corpus: Corpus, wanted: NDArray[np.uint64]) -> Mapping[int, set[int]]:
    """Of each hash that stands somewhere, the records in which it does. Windows across two documents are none."""
    found: dict[int, set[int]] = {}
    for start, block in _blocks(corpus, LEAK_TOKENS):
        hashes = _hashes(block)
        at = np.flatnonzero(np.isin(hashes, wanted))
        first, last = _documents(corpus, start + at), _documents(corpus, start + at + LEAK_TOKENS - 1)
        for window, record in zip(hashes[at[first == last]].tolist(), first[first == last].tolist(), strict=True):
            found.setdefault(window, set()).add(record // corpus.facts.documents_a_record)
    return found


def _records_asking(corpus: Corpus, prompt: Tokens) -> set[int]:
    """The records in which the prompt stands, but for its edges."""
    pattern = prompt[PROMPT_EDGE:-PROMPT_EDGE]
    if not len(pattern):
        return set()
    found: set[int] = set()
    for start, block in _blocks(corpus, len(pattern)):
        at = np.arange(len(block) - len(pattern) + 1)
        for offset, token in enumerate(pattern):
            at = at[block[at + offset] == token]
        found.update((_documents(corpus, start + at) // corpus.facts.documents_a_record).tolist())
    return found


def _blocks(corpus: Corpus, width: int) -> Iterator[tuple[int, Tokens]]:
    """Where each begins, and its tokens; every window of `width` is whole in one of them."""
    for start in range(0, max(0, len(corpus.tokens) - width + 1), BLOCK_TOKENS):
        yield start, np.asarray(corpus.tokens[start : start + BLOCK_TOKENS + width - 1]).astype(np.uint64)


def _documents(corpus: Corpus, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.searchsorted(corpus.bounds, positions, side="right") - 1
    return found


def _hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """Of each window of `LEAK_TOKENS`."""
    if len(tokens) < LEAK_TOKENS:
        return np.zeros(0, dtype=np.uint64)
    hashes, factor, width = tokens.astype(np.uint64) + np.uint64(1), FACTOR, 1
    with np.errstate(over="ignore"):
        while width < LEAK_TOKENS:
            hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
            factor, width = factor * factor % 2**64, 2 * width
    return hashes
