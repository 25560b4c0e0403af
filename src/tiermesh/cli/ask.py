"""`mesh ask`: one question, one answer, as it comes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tiermesh.cli import connect
from tiermesh.errors import InvalidConfig
from tiermesh.types import TIERS

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.client.remote import Options
    from tiermesh.protocol.complete import CompleteResponse
    from tiermesh.types import Tier


def ask(
    prompt: Annotated[str, typer.Argument(help="The question; `-` reads it from standard input.")],
    model: Annotated[str | None, typer.Option(help="A model, an alias, tier:N or auto. [default: auto]")] = None,
    tier: Annotated[int | None, typer.Option(metavar="N", min=0, max=2, help="0 fast, 1 medium, 2 powerful.")] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="N", min=0, max=2, help="0 always takes the likeliest word.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End the answer after so many tokens.")
    ] = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: connect.JsonOption = False,
    url: connect.UrlOption = None,
) -> None:
    """Ask the mesh. The answer goes to stdout, who gave it to stderr."""
    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise InvalidConfig("the question is empty", param="prompt")
    options: Options = {
        "model": model,
        "tier": None if tier is None else TIERS[tier],
        "temperature": temperature,
        "max_tokens": max_tokens,
    }
    connect.run(_ask(url, question, options, whole=no_stream or as_json, as_json=as_json))


async def _ask(url: str | None, question: str, options: Options, *, whole: bool, as_json: bool) -> None:
    started = time.monotonic()
    from tiermesh.client.http import ANSWER_TIMEOUT_S

    async with connect.open_mesh(url, timeout_s=ANSWER_TIMEOUT_S) as mesh:
        answer = await mesh.complete(question, **options) if whole else await _stream(mesh, question, options)
    if as_json:
        print(answer.model_dump_json(indent=2))
        return
    if whole:
        print(answer.content or "")
    print(_served(answer, options.get("tier"), time.monotonic() - started), file=sys.stderr)


async def _stream(mesh: RemoteClient, question: str, options: Options) -> CompleteResponse:
    """Print the pieces as they come; the line is ended also when the answer is not."""
    stream = mesh.stream(question, **options)
    began = False
    try:
        async with stream:
            async for piece in stream:
                print(piece, end="", flush=True)
                began = True
    finally:
        if began:
            print(flush=True)
    return stream.result


def _served(answer: CompleteResponse, wanted: Tier | None, took_s: float) -> str:
    tokens = f", {answer.usage.completion_tokens} tokens" if answer.usage else ""
    cut = " (cut at the token limit)" if answer.finish_reason == "length" else ""
    instead = "" if wanted in (None, answer.tier) else f" in place of {wanted}"
    return f"— {answer.model} on {answer.node}, tier {answer.tier}{instead}{tokens}, {took_s:.1f} s{cut}"
