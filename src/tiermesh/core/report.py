"""What is told of a job when somebody wants all of it: as Markdown for people, as plain data for programs.

What is not known is said to be unknown. Texts that came from elsewhere (names, reasons, prompts) can't break the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

UNKNOWN = "unknown"
TABLE_POINTS = 20
"""Of a curve in a table: enough to see its shape, few enough to be read."""
TIMELINE_LIMIT = 200
"""Entries of a timeline on the page; the plain data has them all."""

Points = tuple[tuple[int, float], ...]
"""(step, value), by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How a run went. Each step once, as it counted in the end."""

    losses: Points = ()
    held_out: Points = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An expected figure and the interval that it lies in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The page's beginning. None: unknown. Memory in bytes, durations in seconds."""

    model: str
    method: str
    status: str
    reason: str = ""
    estimated_usd: Range | None = None
    actual_usd: float | None = None
    estimated_memory: Range | None = None
    actual_memory: int | None = None
    estimated_seconds: Range | None = None
    actual_seconds: float | None = None
    final_loss: float | None = None
    held_out_loss: float | None = None
    held_out_loss_before: float | None = None
    served_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One attempt; `why` says for what reason it was made, `reason` how it ended."""

    number: int
    node: str
    state: str
    cause: str
    why: str = ""
    reason: str = ""
    failure: str | None = None
    ordered_at: float = 0.0
    seconds: float | None = None
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Something that happened, at a Unix time. `phase` is its kind in one word."""

    at: float
    phase: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it. `written_at` is Unix time; `picture` says where the curve can be seen, `no_picture` why it can't."""

    run_id: str
    name: str
    written_at: float
    summary: Summary
    spec: Mapping[str, Any] = field(default_factory=dict)
    gate: str = ""
    estimate_basis: str = ""
    timeline: tuple[Moment, ...] = ()
    attempts: tuple[Tried, ...] = ()
    evaluation_failures: tuple[str, ...] = ()
    curve: Curve = Curve()
    picture: str = ""
    no_picture: str = ""


def as_json(report: Report) -> dict[str, Any]:
    """Plain data, the same facts by the same names."""
    return asdict(report)


def as_markdown(report: Report) -> str:
    """A page for a person."""
    parts = [
        f"# Job {_plain(report.name)}",
        _rows([("Run id", report.run_id), ("Written", _time(report.written_at))]),
        "## Summary",
        _rows(_summary(report.summary)),
        "## Gate",
        _plain(report.gate) or "No decision was made yet.",
        *([f"The estimate rests on: {_plain(report.estimate_basis)}"] if report.estimate_basis else []),
        "## Attempts",
        _attempts(report.attempts),
        "## Evaluation",
        _evaluation(report),
        "## Loss",
        _curve(report),
        "## Timeline",
        _timeline(report.timeline),
        "## Spec",
        _code(json.dumps(dict(report.spec), indent=2, sort_keys=True, ensure_ascii=False)),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(summary: Summary) -> list[tuple[str, str]]:
    served = ", ".join(summary.served_on)
    return [
        ("Status", f"{summary.status}: {summary.reason}" if summary.reason else summary.status),
        ("Model", summary.model),
        ("Method", summary.method),
        ("Cost", _compared(summary.estimated_usd, summary.actual_usd, _usd)),
        ("Memory", _compared(summary.estimated_memory, summary.actual_memory, _size)),
        ("Duration", _compared(summary.estimated_seconds, summary.actual_seconds, _duration)),
        ("Final loss", _figure(summary.final_loss)),
        ("Held-out loss", _held_out(summary)),
        ("Served on", served or "no node"),
    ]


def _compared(estimated: Range | None, actual: float | None, told: Callable[[float], str]) -> str:
    expected = (
        UNKNOWN if estimated is None else f"{told(estimated.value)} ({told(estimated.low)} to {told(estimated.high)})"
    )
    return f"estimated {expected}, actual {UNKNOWN if actual is None else told(actual)}"


def _held_out(summary: Summary) -> str:
    if summary.held_out_loss is None:
        return UNKNOWN
    before = summary.held_out_loss_before
    return _figure(summary.held_out_loss) + ("" if before is None else f" (before: {_figure(before)})")


def _attempts(attempts: Sequence[Tried]) -> str:
    if not attempts:
        return "None was made."
    head = ("No.", "Node", "Began", "Cause", "State", "Steps", "Took", "Told")
    rows = [
        (
            str(tried.number),
            tried.node,
            _time(tried.ordered_at) if tried.ordered_at else UNKNOWN,
            f"{tried.cause}: {tried.why}" if tried.why else tried.cause,
            tried.state,
            f"{tried.step}/{tried.steps}" if tried.steps else "none",
            UNKNOWN if tried.seconds is None else _duration(tried.seconds),
            ": ".join(part for part in (tried.failure or "", tried.reason) if part),
        )
        for tried in attempts
    ]
    return _table(head, rows)


def _evaluation(report: Report) -> str:
    if report.evaluation_failures:
        return "\n".join(f"- failed: {_plain(text)}" for text in report.evaluation_failures)
    if report.summary.status == "completed":
        return "Every gate was passed."
    return "Nothing was evaluated."


def _curve(report: Report) -> str:
    if not report.curve.losses:
        return "No step was made."
    if report.picture:
        return f"![loss by step]({report.picture})"
    losses, held_out = dict(report.curve.losses), dict(report.curve.held_out)
    steps = sorted({*_thinned(list(losses)), *_thinned(list(held_out))})
    rows = [(str(step), _point(losses, step), _point(held_out, step)) for step in steps]
    why = f"There is no picture: {_plain(report.no_picture)}\n\n" if report.no_picture else ""
    return why + _table(("Step", "Loss", "Held-out loss"), rows)


def _point(points: Mapping[int, float], step: int) -> str:
    return _figure(points[step]) if step in points else ""


def _thinned(steps: Sequence[int]) -> list[int]:
    """Evenly, with the first and the last."""
    last, wanted = len(steps) - 1, min(len(steps), TABLE_POINTS)
    return [steps[round(index * last / max(1, wanted - 1))] for index in range(wanted)]


def _timeline(timeline: Sequence[Moment]) -> str:
    if not timeline:
        return "Nothing happened yet."
    told = [(_time(moment.at), moment.phase, moment.text) for moment in timeline]
    if len(told) <= TIMELINE_LIMIT:
        return _table(("When", "What", "Told"), told)
    half = TIMELINE_LIMIT // 2
    between = ("", "", f"{len(told) - 2 * half} more")
    return _table(("When", "What", "Told"), [*told[:half], between, *told[-half:]])


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- **{name}**: {_plain(value)}" for name, value in rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """One line, in which nothing is markup: neither of Markdown nor of HTML."""
    flat = " ".join(text.split())
    if flat == "---":
        return flat
    return re.sub(r"([\\`*\[\]<>|!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[#>+-](?= ))", r"\\\1", flat)


def _code(text: str) -> str:
    """Fenced by more backticks than the text has in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{text}\n{fence}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _usd(amount: float) -> str:
    return f"{amount:.2f} USD" if amount >= 0.1 or amount == 0 else f"{amount:.2g} USD"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"
