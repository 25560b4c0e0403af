"""Moments in a server's life that an average hides: somebody comes late, somebody goes on talking."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.kernel.answer import Answer
from benchmarks.kernel.engines import Served
from benchmarks.kernel.prompts import SEED, prompts

EARLY_TOKENS = 160
"""Of the one that runs first: several times what the late one needs."""
LATE_TOKENS = 24
ARRIVES_AFTER = 24
"""Tokens of the first one."""
CONVERSATION_WORDS = 870
"""About a thousand tokens."""
TURN_TOKENS = 32


@dataclass(frozen=True, slots=True)
class LateArrival:
    """`first_s` of the one that came late, from its own arrival; `early_left_s`: how long the other still ran then.

    `slower`: how many times longer the first one's tokens took while both ran than before; its share would be 2.
    """

    first_s: float
    early_left_s: float
    slower: float


@dataclass(frozen=True, slots=True)
class SecondTurn:
    """Seconds to the first token of a conversation's first and second turn."""

    prompt_tokens: int
    first_s: float
    second_s: float


async def late_arrival(engine: Served, number: int) -> LateArrival:
    early_prompt, late_prompt = itertools.islice(prompts(), 300 + 2 * number, 302 + 2 * number)
    reached = asyncio.Event()
    began = time.perf_counter()
    early = asyncio.create_task(engine.chat(_asked(early_prompt), EARLY_TOKENS, (ARRIVES_AFTER, reached)))
    await asyncio.wait((early, asyncio.ensure_future(reached.wait())), return_when=asyncio.FIRST_COMPLETED)
    came_s = time.perf_counter() - began
    late = await engine.chat(_asked(late_prompt), LATE_TOKENS)
    left_s = came_s + late.last_s
    first = await early
    return LateArrival(late.first_s, first.last_s - came_s, _pace(first, came_s, left_s) / _pace(first, 0, came_s))


async def second_turn(engine: Served, number: int) -> SecondTurn:
    messages = _asked(_long_text(number) + "\nWhat is this text about?")
    first = await engine.chat(messages, TURN_TOKENS)
    messages += [{"role": "assistant", "content": first.text}, *_asked("Tell me more about the beginning.")]
    second = await engine.chat(messages, TURN_TOKENS)
    return SecondTurn(first.prompt_tokens, first.first_s, second.first_s)


def late_line(name: str, found: list[LateArrival]) -> str:
    """A row of the table, medians over what was found."""
    first_s = median(one.first_s for one in found)
    before_s = median(one.early_left_s for one in found) - first_s
    slower = median(one.slower for one in found)
    return (
        f"| late arrival, {name} | first token after {first_s * 1000:.0f} ms, {before_s:.1f} s before the other ends; "
        f"the other's tokens take {slower:.2f} times as long |"
    )


def turn_line(name: str, found: list[SecondTurn]) -> str:
    """A row of the table, medians over what was found."""
    first_s, second_s = median(one.first_s for one in found), median(one.second_s for one in found)
    return (
        f"| second turn after {found[0].prompt_tokens} tokens, {name} | first token after {second_s * 1000:.0f} ms, "
        f"{second_s / first_s:.2f} of the first turn's {first_s * 1000:.0f} ms |"
    )


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _pace(answer: Answer, since_s: float, until_s: float) -> float:
    """Seconds a token between two moments; the first token's, which is the prompt's, does not count."""
    within = [at for at in answer.arrivals if since_s <= at <= until_s]
    return (within[-1] - within[0]) / max(1, len(within) - 1)


def _long_text(number: int) -> str:
    words: Iterator[str] = itertools.chain.from_iterable(text.split() for text in _shuffled(number))
    return " ".join(itertools.islice(words, CONVERSATION_WORDS))


def _shuffled(number: int) -> list[str]:
    every = list(prompts())
    random.Random(f"{SEED} {number}").shuffle(every)
    return every
