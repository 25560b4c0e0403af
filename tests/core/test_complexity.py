"""How hard prompts are judged to be, by table and by a hundred labelled ones.

The labels in `tests/data/complexity` say where a person would have the prompt answered: 0 is a greeting, a fact or a
phrase; 1 an explanation, a short text or a simple function; 2 a proof, a design, an analysis or a bug hunt. Words and
weights were chosen with `seen.jsonl` in view; `unseen.jsonl` was written before and judged afterwards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.core.complexity import LOOK_CHARACTERS, WEIGHTS, Complexity, ComplexityRule, assess
from tiermesh.types import Tier

LABELLED = Path(__file__).parent.parent / "data" / "complexity"
SIGNALS = tuple(WEIGHTS)


def asked(prompt: str, *before: dict[str, Any], tools: bool = False) -> Complexity:
    return assess([*before, {"role": "user", "content": prompt}], tools=tools)


@pytest.mark.parametrize(("name", "least"), [("seen", 58), ("unseen", 33)])
def test_labelled_prompts_get_their_tier_mostly_and_are_never_two_off(name: str, least: int) -> None:
    labelled = [json.loads(line) for line in (LABELLED / f"{name}.jsonl").read_text("utf-8").splitlines()]
    off = [abs(asked(one["prompt"]).tier - one["tier"]) for one in labelled]
    print(f"{name}: {off.count(0)} of {len(off)}")
    assert off.count(0) >= least
    assert max(off) <= 1


@pytest.mark.parametrize(
    ("prompt", "tier"),
    [
        ("hello", 0),
        ("What is the capital of Portugal?", 0),
        ("Explain how a heat pump works.", 1),
        ("Prove that the algorithm is optimal, analyse its complexity, and compare it with a greedy heuristic.", 2),
        ("", 0),
    ],
)
def test_the_score_chooses_the_tier(prompt: str, tier: Tier) -> None:
    assert asked(prompt).tier == tier


def test_a_score_at_the_limit_is_above_it() -> None:
    score = asked("Explain how a heat pump works.").score
    messages = [{"role": "user", "content": "Explain how a heat pump works."}]
    assert assess(messages, ComplexityRule(medium=score, powerful=1)).tier == 1
    assert assess(messages, ComplexityRule(medium=score + 0.001, powerful=1)).tier == 0
    assert assess(messages, ComplexityRule(medium=0, powerful=score)).tier == 2


@pytest.mark.parametrize(("tokens", "tier"), [(2000, 0), (2001, 1), (4000, 1), (4001, 2)])
def test_long_conversations_get_a_higher_tier_whatever_they_say(tokens: int, tier: Tier) -> None:
    judged = assess(
        [{"role": "assistant", "content": "x" * 4 * (tokens - 1)}, {"role": "user", "content": "hm"}],
        ComplexityRule(medium=0.9, powerful=0.9),
    )
    assert (judged.tokens, judged.tier) == (tokens, tier)


def test_keywords_are_whole_words() -> None:
    assert asked("I approve of proverbs").signals["keywords"] == 0, "prove is in both"
    assert asked("Prove it").signals["keywords"] > 0
    assert asked("PROVE it").signals == asked("prove it").signals


def test_code_is_known_by_its_looks() -> None:
    fence = "Look:\n```\nx = 1\n```"
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1'
    assert [asked(text).signals["code"] for text in (fence, trace, "call parse_row() twice", "a plain text")] == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]


def test_how_to_say_a_word_is_no_deep_question() -> None:
    assert asked("How do you say please in Spanish?").signals["question"] == 0
    assert asked("How many legs has a spider?").signals["question"] == 0
    assert asked("Why do cats purr?").signals["question"] > 0.5


def test_the_last_question_counts_and_what_came_before_is_context() -> None:
    before = {"role": "user", "content": "Prove the theorem. " * 100}
    later = asked("thanks", before)
    assert later.signals["keywords"] == 0
    assert later.signals["context"] > 0
    assert later.score < asked("Prove the theorem. " * 100).score


def test_tools_are_context() -> None:
    assert asked("hi", tools=True).score > asked("hi").score


def test_parts_are_read_as_one_text_and_pictures_as_none() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    parts = [{"type": "text", "text": "Explain"}, picture, {"type": "text", "text": "this picture"}]
    judged = assess([{"role": "user", "content": parts}])
    assert judged == asked("Explain\nthis picture")


def test_other_scripts_are_measured_by_their_bytes() -> None:
    assert asked("你" * 400).tokens == 300


def test_a_book_is_looked_at_no_longer_than_a_page() -> None:
    page = "plain words here " * (LOOK_CHARACTERS // 17 + 1)
    assert asked(page[:LOOK_CHARACTERS] + " prove analyse derive" * 100_000).signals["keywords"] == 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", 7]), "content": ANYTHING})


@given(ANYTHING | st.lists(MESSAGE | ANYTHING))
def test_whatever_it_is_given_it_answers_within_bounds(messages: object) -> None:
    judged = assess(messages)
    assert 0 <= judged.score <= 1
    assert tuple(judged.signals) == SIGNALS
    assert all(0 <= value <= 1 for value in judged.signals.values())


def test_equal_prompts_are_judged_equally() -> None:
    assert asked("Why is the sky blue?") == asked("Why is the sky blue?")
