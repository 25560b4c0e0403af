"""`mesh route`: who would answer, and why. Nobody is asked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tiermesh.cli import connect, render
from tiermesh.errors import InvalidConfig, Unavailable
from tiermesh.types import TIERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiermesh.protocol.route import CandidateReport, ComplexityReport, RouteReport
    from tiermesh.types import Tier


def route(
    prompt: Annotated[str, typer.Argument(help="The question; `-` reads it from standard input.")],
    model: Annotated[str | None, typer.Option(help="A model, an alias, tier:N or auto. [default: auto]")] = None,
    tier: Annotated[int | None, typer.Option(metavar="N", min=0, max=2, help="0 fast, 1 medium, 2 powerful.")] = None,
    as_json: connect.JsonOption = False,
    url: connect.UrlOption = None,
) -> None:
    """Show who would answer a prompt, best first, and why. It runs nothing."""
    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise InvalidConfig("the question is empty", param="prompt")
    report = connect.run(_fetch(url, question, model, None if tier is None else TIERS[tier]))
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        _show(report)
    if report.refusal is not None:
        raise Unavailable(report.refusal.message)


async def _fetch(url: str | None, question: str, model: str | None, tier: Tier | None) -> RouteReport:
    async with connect.open_mesh(url) as mesh:
        return await mesh.route(question, model=model, tier=tier)


def _show(report: RouteReport) -> None:
    print(headline(report))
    columns = ("", "node", "model", "score", "why")
    if report.candidates:
        render.table(columns, [(str(place), *row) for place, row in enumerate(_rows(report.candidates), 1)])
    if report.left_out:
        print("left out:")
        render.table(columns, [("", *row) for row in _rows(report.left_out)])


def headline(report: RouteReport) -> str:
    """What was wanted, and who said so."""
    complexity = report.complexity
    if complexity is not None and complexity.used:
        return f"{report.model}: tier {complexity.tier}, by the prompt's complexity, {_said(complexity)}"
    wanted = "" if report.tier is None else f": tier {report.tier}, as asked"
    return f"{report.model}{wanted}" + (f" (complexity {_said(complexity)}, not used)" if complexity else "")


def _said(complexity: ComplexityReport) -> str:
    signals = ", ".join(f"{name} {value:.2f}" for name, value in complexity.signals.items() if value)
    return f"{complexity.score:.2f} of about {complexity.tokens} tokens" + (f": {signals}" if signals else "")


def _rows(candidates: Sequence[CandidateReport]) -> list[tuple[str, str, str, str]]:
    return [(c.node, c.model, "–" if c.score is None else f"{c.score:.1f}", c.reason) for c in candidates]
