"""How hard a prompt is, judged by its looks: a cheap guess, so that small questions go to small machines.

Five signals, each 0 to 1, are weighed into a score:

    signal     what is looked at                                                                weight
    length     words of the last question                                                       0.30
    keywords   whole words that name a task: work (write, explain, ...), and thought (prove,
               design, trade-offs, ...), which counts more and adds up                          0.45
    context    what was said before and what came with it: earlier tokens, tools                0.10
    code       a fenced block, a traceback, names and signs as only code has them               0.15
    question   what is asked for: why and how, and how many things at once                      0.25

The weights add up to more than 1, since few prompts have all signals; the score ends at 1. Score and size then choose
the tier by `ComplexityRule`. Words are English: other languages are judged by length, context, code and punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from tiermesh.types import Tier

WEIGHTS: Mapping[str, float] = {"length": 0.30, "keywords": 0.45, "context": 0.10, "code": 0.15, "question": 0.25}

LOOK_CHARACTERS = 8000
"""How much of the last question is read word by word: its beginning tells enough, and a pasted book gets the highest
tier by its size. Bounds the work to some milliseconds: no expression here looks at a sign more than a few times."""

BYTES_PER_TOKEN = 4
"""Of UTF-8: about right for English text and code, and cautious for scripts of three bytes a sign."""

LONG_WORDS = 60
"""A question of so many words is as long as the signal can tell."""
LONG_CONTEXT_TOKENS = 2000
MANY_TASKS = 4
"""Things asked for at once: more than this makes no difference."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")

THOUGHT = frozenset(
    _WORD.findall("""
    algorithm analyse analysis analyze architecture argue argument assess assumption assumptions asymptotic benchmark
    compare comparison complexity concurrency concurrent consequences consistency counterexample counterexamples
    critically critique deadlock deadlocks debug defend derivation derive design develop discriminate distributed
    eigenvalues estimate evaluate evidence examine formalise formalize formulate generalise generalize heuristic
    hypotheses hypothesis implement implementation implications induction infer integral interleaving investigate
    justify leak lemma limitations lock methodology migration model objections optimal optimise optimize optimisation
    optimization partition plan premises probability proof propose prove race reconstruct redesign refactor rigorous
    rigorously risk risks scalability scenario scenarios schema semantics simulate specification statistical strategy
    systematic theorem trade tradeoff tradeoffs trial unit verify
    """)
)
"""Words of questions that take thought."""

WORK = frozenset(
    _WORD.findall("""
    advantages build caused causes code compose create describe difference differences disadvantages draft edit
    essay example explain feedback function generate guide help idea ideas improve instructions interview itinerary
    letter outline paragraph poem prepare query recommend regex regular rewrite script sentences steps story suggest
    summarise summarize summary teach tone tutorial write
    """)
)
"""Words of questions that take some work."""

_FENCE = re.compile(r"^[ \t]{0,8}(?:```|~~~)", re.MULTILINE)
_TRACE = re.compile(r"Traceback \(most recent call last\)|^[ \t]{1,8}at [\w.$<>]{1,99}\(|\bpanicked at\b", re.MULTILINE)
_CODE = re.compile(
    r"`[^`\n]{1,99}`|(?<=\w)\(\)|[;{}][ \t]{0,8}$|[=!]=|=>|->|::|(?<=[a-z])_(?=[a-z])|\\[dws][+*{]", re.MULTILINE
)
_WHY = re.compile(
    r"\bwhy\b|\bhow (?:do(?:es)?|did|is|are|can|could|would|should|to)\b(?! (?:you|i) (?:say|spell|call)\b)",
    re.IGNORECASE,
)
_PART = re.compile(r"[?;:]|,? (?:and|then|or) |, |\. ", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplexityRule:
    """Where the tiers begin; defaults as in the policy document."""

    medium: float = 0.25
    powerful: float = 0.55
    medium_tokens: int = 2000
    powerful_tokens: int = 4000


@dataclass(frozen=True, slots=True)
class Complexity:
    """How hard a prompt seems, 0 to 1, and the tier that it gets for that. `signals` say why, each 0 to 1."""

    score: float
    tier: Tier
    tokens: int = 0
    """Of all messages, estimated."""
    signals: Mapping[str, float] = field(default_factory=dict)


def assess(messages: object, rule: ComplexityRule | None = None, *, tools: bool = False) -> Complexity:
    """The complexity of a conversation in OpenAI's shape. Never raises: what has another shape says nothing."""
    said = list(_texts(messages))
    tokens = sum(_tokens(text) for _, text in said)
    question = next((text for role, text in reversed(said) if role == "user"), "")
    before = tokens - _tokens(question)
    signals = _signals(question[:LOOK_CHARACTERS], before, tools)
    score = round(min(1.0, sum(WEIGHTS[name] * value for name, value in signals.items())), 3)
    return Complexity(score, _tier(score, tokens, rule or ComplexityRule()), tokens, signals)


def _tier(score: float, tokens: int, rule: ComplexityRule) -> Tier:
    if score >= rule.powerful or tokens > rule.powerful_tokens:
        return 2
    return 1 if score >= rule.medium or tokens > rule.medium_tokens else 0


def _signals(question: str, before: int, tools: bool) -> dict[str, float]:
    words = [word.lower() for word in _WORD.findall(question)]
    kinds = set(words)
    thought, work = len(kinds & THOUGHT), len(kinds & WORK)
    return {
        "length": min(1.0, len(words) / LONG_WORDS),
        "keywords": min(1.0, (0.5 if work else 0.0) + 0.25 * thought),
        "context": min(1.0, before / LONG_CONTEXT_TOKENS + (0.3 if tools else 0.0)),
        "code": _code(question),
        "question": _asked(question),
    }


def _code(question: str) -> float:
    if _FENCE.search(question) or _TRACE.search(question):
        return 1.0
    return min(1.0, 0.5 * sum(1 for _ in islice(_CODE.finditer(question), 2)))


def _asked(question: str) -> float:
    """A why or how, and the number of things asked for at once."""
    parts = sum(1 for _ in islice(_PART.finditer(question.rstrip(" ?.!;:")), MANY_TASKS))
    deep = 0.8 if _WHY.search(question) else 0.0
    return min(1.0, deep + 0.6 * parts / MANY_TASKS)


def _tokens(text: str) -> int:
    size_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    return -(-size_bytes // BYTES_PER_TOKEN)


def _texts(messages: object) -> Iterator[tuple[object, str]]:
    """Role and text of each message; parts of one message are one text, and pictures none."""
    for message in messages if isinstance(messages, list | tuple) else ():
        if isinstance(message, Mapping):
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
            yield message.get("role"), "\n".join(text for text in texts if isinstance(text, str))
