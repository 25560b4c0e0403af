"""Was anything lost, repeated or made up where a stream moved from one machine to another?

In fp32 an answer must equal the undisturbed one. In bf16 it may differ from it, because sums depend on what else is
computed in the same step; it must still be what the model says after all tokens before. A token that is lost or
repeated leaves tokens after it that the model would hardly choose: how hardly is found with the same answers, each with
one token left out where it was cut. And the text must be that of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.failover.hearing import Heard
from benchmarks.kernel.answer import Answer
from benchmarks.kernel.engines import Piped
from tiermesh.kernel.inference.threads import default_threads


@dataclass(frozen=True, slots=True)
class Seams:
    """Of all answers of a trial. Gaps are of fp32 logits: how far a chosen token's is below the best one."""

    answers: int
    worded: int
    """Answers whose text is exactly that of their tokens."""
    worst_gap: float
    """The largest in any answer."""
    lacking_gap: float
    """The largest in an answer that lacks a token; the median of them all."""

    @property
    def clean(self) -> bool:
        """Nothing was lost, repeated or made up."""
        return self.worded == self.answers and self.worst_gap < self.lacking_gap / 2


async def judge(model: Path, asked: Sequence[str], answers: Sequence[Heard], cuts: Sequence[int], log: Path) -> Seams:
    """Hold every token against the fp32 model's logits at its place, computed alone by transformers. `cuts`: how many
    tokens each client had when the machine was harmed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    worded = sum(_shown(tokenizer.decode(heard.tokens)) == _shown(heard.text) for heard in answers)
    told = [_answer(text, heard.tokens) for text, heard in zip(asked, answers, strict=True)]
    lacking = [
        _answer(text, heard.tokens[:cut] + heard.tokens[cut + 1 :])
        for text, heard, cut in zip(asked, answers, cuts, strict=True)
        if cut + 1 < len(heard.tokens)
    ]
    reference = Piped("fp32", model, log, default_threads())
    await reference.start()
    try:
        gaps = [await reference.judge(each) for each in (told, lacking)]
    finally:
        await reference.close()
    worst, wrong = ([max(answer) for answer in each] for each in gaps)
    return Seams(len(answers), worded, max(worst), median(wrong))


def _answer(text: str, tokens: Sequence[int]) -> tuple[str, Answer]:
    return text, Answer("", tuple(tokens), len(tokens), 0, ())


def _shown(text: str) -> str:
    """Without the half of a character that the last token may have begun: it is never shown."""
    return text.rstrip("\ufffd")
