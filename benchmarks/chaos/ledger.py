"""Every request that was sent, every byte that came back, and the verdict that is formed from them alone. Pure.

A request may end in four ways and in no other:

    whole     all of it came, equal to what is said when nothing is wrong, with the right number of tokens
    refused   an error in the API's shape with a reason; what came before it is a beginning of the whole
    cut       the very daemon that the client talked to died meanwhile; what came is a beginning of the whole
    left      the client itself went; what came is a beginning of the whole

Anything else (a hang, a stream that just ends, a word lost, repeated or changed) is a violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.dialects import DIALECTS, Reading, read_refusal

DIALECT_OF = {dialect.name: dialect for dialect in DIALECTS}
HANG_S = 60.0
"""More than everything that may be waited for, one after the other: a queue of 15 s, a stall, a worker's start."""

LEFT, CUT = "left", "cut with its node"
GONE = frozenset({LEFT, CUT})

Deaths = Mapping[str, Sequence[tuple[float, float]]]
"""By entry: the times in which there was no such daemon."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is said when nothing is wrong."""

    text: str
    tokens: int


@dataclass(slots=True)
class Entry:
    """One request. Times are monotonic seconds; `ended` is None while it runs. `trouble` is what its client's HTTP
    library said, `left` is set where the client went by itself."""

    id: str
    dialect: str
    through: str
    model: str
    question: str
    sent: float
    status: int | None = None
    received: bytearray = field(default_factory=bytearray)
    ended: float | None = None
    trouble: str = ""
    left: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ends` counts ways to end by model, with the reason where one was given."""

    requests: int
    ends: Counter[tuple[str, str]]
    longest_s: float
    violations: list[str]

    def share_whole(self, model: str) -> float:
        """Of the answers of this model, not counting those whose client or whose own node went."""
        ends = {end: count for (asked, end), count in self.ends.items() if asked == model and end not in GONE}
        return ends.get("whole", 0) / max(1, sum(ends.values()))

    @property
    def told(self) -> str:
        """For a person."""
        lines = [f"{self.requests} requests, the longest {self.longest_s:.1f} s"]
        for model in sorted({model for model, _ in self.ends}):
            ends = [f"{count} {end}" for (asked, end), count in self.ends.most_common() if asked == model]
            lines.append(f"{model}: {', '.join(ends)}")
        return "\n".join([*lines, f"{len(self.violations)} violations", *self.violations[:20]])


def judge(ledger: Iterable[Entry], expected: Mapping[str, Expected], deaths: Deaths) -> Verdict:
    """Of all entries, after the last one has ended."""
    entries, ends, violations = list(ledger), Counter[tuple[str, str]](), list[str]()
    for entry in entries:
        end, problem = _end_of(entry, expected[entry.question], deaths)
        ends[entry.model, end] += 1
        if problem:
            took = "never ended" if entry.ended is None else f"{entry.ended - entry.sent:.1f} s"
            where = f"{entry.id}, {entry.dialect} through {entry.through}, sent at {entry.sent:.2f}, {took}"
            violations.append(f"{where}: {problem}")
    longest_s = max((entry.ended - entry.sent for entry in entries if entry.ended is not None), default=0.0)
    return Verdict(len(entries), ends, longest_s, violations)


def _end_of(entry: Entry, expected: Expected, deaths: Deaths) -> tuple[str, str]:
    """How it ended, and what is wrong with that."""
    if entry.ended is None or entry.ended - entry.sent > HANG_S:
        return "hung", "hung"
    if entry.status not in (None, 200) and not entry.trouble:
        return _refused(entry)
    try:
        reading = DIALECT_OF[entry.dialect].read(bytes(entry.received))
    except (ValueError, LookupError, TypeError) as error:
        return "unreadable", f"{type(error).__name__}: {error} in {bytes(entry.received[-300:])!r}"
    if reading.error is not None:
        return f"error ({_kind(reading.error)})", _partial(reading, expected) or _our_own_fault(reading.error)
    if reading.ended:
        return "whole", _changed(reading, expected)
    if entry.left:
        return LEFT, _partial(reading, expected)
    if _excused(entry, deaths):
        return CUT, _partial(reading, expected)
    return "torn", f"torn after {len(entry.received)} bytes: {entry.trouble or 'the stream just ends'}"


def _refused(entry: Entry) -> tuple[str, str]:
    reason = read_refusal(bytes(entry.received))
    if reason is None:
        return "refused", f"HTTP {entry.status} without a reason: {bytes(entry.received[:300])!r}"
    return f"HTTP {entry.status} ({_kind(reason)})", _our_own_fault(reason) if entry.status == 500 else ""


def _kind(reason: str) -> str:
    """Without what differs from one to the next."""
    head, colon, _ = reason.partition(":")
    return head if colon and " " not in head else "told"


def _our_own_fault(reason: str) -> str:
    return f"a bug of the node: {reason}" if "internal error" in reason else ""


def _changed(reading: Reading, expected: Expected) -> str:
    if reading.text != expected.text:
        return _difference(reading.text, expected.text)
    return "" if reading.tokens == expected.tokens else f"usage says {reading.tokens}, there are {expected.tokens}"


def _partial(reading: Reading, expected: Expected) -> str:
    return "" if expected.text.startswith(reading.text) else _difference(reading.text, expected.text)


def _difference(text: str, expected: str) -> str:
    pairs = zip(text, expected, strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(text), len(expected)))
    return f"other words from {at} of {len(expected)} on: {text[at:][:40]!r}, not {expected[at:][:40]!r}"


def _excused(entry: Entry, deaths: Deaths) -> bool:
    assert entry.ended is not None
    return any(entry.sent <= end and began <= entry.ended for began, end in deaths.get(entry.through, ()))
