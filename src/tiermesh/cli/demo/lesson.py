"""Second act: the mesh learns what functions of Python's standard library do, the machine that trains is killed half
way, and the answers change all the same."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

from tiermesh.cli.demo.docstrings import Described, described
from tiermesh.cli.demo.story import MODEL, DemoNode, StepFailed, answer_of, say, until
from tiermesh.client.data import Data
from tiermesh.errors import TiermeshError
from tiermesh.protocol.jobs import EstimateReport, JobReport
from tiermesh.protocol.training_events import StepDone, TrainingEvent

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.client.jobs import TrainingJob

MODULES = frozenset({"bisect", "calendar", "collections", "fractions", "heapq", "random", "shutil", "statistics"})
"""Some hundred questions of all kinds: a minute or two of learning on two cores."""
ANSWER_CHARS = (30, 300)
ASKED = "heapq.heappush"
"""One of the questions that are learnt; whether anything is learnt beyond them, the held-out loss says."""
SPEC = {
    "model_name": MODEL,
    "method": "lora",
    "num_epochs": 2,
    "seq_len": 256,
    "micro_batch_size": 4,
    "learning_rate": 5e-4,
    "eval_fraction": 0.1,
    "save_interval": 2,
}
GATES = {"max_final_loss": "any", "max_gap": "any", "canary": False}
"""What a model of this size comes to in a minute is no measure of quality; the figures are told instead."""
LEARN_LIMIT_S = 900.0
SERVED_LIMIT_S = 60.0
ANSWER_TOKENS = 24
"""Asked for before and after: of equal length, so that only what was learnt can make them differ."""


async def teach(nodes: Mapping[str, DemoNode], clients: Mapping[str, RemoteClient]) -> None:
    """Fine-tune through the laptop, kill whoever trains, and ask again. Raises `StepFailed`."""
    lessons = [one for one in described(MODULES) if ANSWER_CHARS[0] <= len(one.paragraph) <= ANSWER_CHARS[1]]
    asked = next((one for one in lessons if one.name == ASKED), lessons[0])
    data = _data(lessons)
    say(f"{len(lessons)} questions and answers were made of the docstrings of {', '.join(sorted(MODULES))}")
    unlearnt = await answer_of("laptop", clients["laptop"], asked.question, model=MODEL, tokens=ANSWER_TOKENS)

    started = time.monotonic()
    try:
        job = await clients["laptop"].train(SPEC, data, name="docstrings", gates=GATES)
        async with asyncio.timeout(LEARN_LIMIT_S):
            victim = await _killed_half_way(job, nodes)
            name, survivor = next((name, client) for name, client in clients.items() if name != victim)
            report = await _followed(await survivor.job(job.id), job.after)
    except (TiermeshError, TimeoutError) as error:
        raise StepFailed(f"the job could not be followed: {error or 'time is up'}") from error
    if report.state != "completed":
        raise StepFailed(f"job {report.name} {report.state}: {report.reason}")
    say(f"job {job.name} is done after {time.monotonic() - started:.0f} s in {len(report.attempts)} attempts")
    _judge_loss(report.result.get("held_out_loss_before"), report.result.get("held_out_loss"))
    _judge_answers(unlearnt, await _asked_again(job.name, name, survivor, asked))


async def _killed_half_way(job: TrainingJob, nodes: Mapping[str, DemoNode]) -> str:
    """Follow the job until half of the steps are done, and SIGKILL the node that trains; gives its name."""
    told = ""
    async with aclosing(job.events()) as events:
        async for event in events:
            told = _show(event, told)
            if isinstance(event, StepDone) and event.step * 2 >= event.steps:
                victim = (await job.refresh()).node
                say(f"killing {victim}, which trains, with SIGKILL after step {event.step} of {event.steps}")
                nodes[victim].kill()
                return victim
    raise StepFailed(f"job {job.name} {job.report.state} before anybody could be killed: {job.report.reason}")


async def _followed(job: TrainingJob, after: int) -> JobReport:
    """To its end, at another node: what was told already is not told again."""
    job.after, told = after, ""
    async with aclosing(job.events()) as events:
        async for event in events:
            told = _show(event, told)
    return job.report


async def _asked_again(model: str, name: str, client: RemoteClient, asked: Described) -> str:
    async def served() -> bool:
        return any(card.id == model for card in await client.models())

    started = time.monotonic()
    await until(served, SERVED_LIMIT_S, f"the mesh to serve {model}")
    say(f"the mesh serves {model} {time.monotonic() - started:.1f} s later")
    answer = await answer_of(name, client, asked.question, model=model, tokens=ANSWER_TOKENS)
    print(f"  (the docstring: {asked.paragraph})\n")
    return answer


def _judge_loss(before: float | None, after: float | None) -> None:
    if before is None or after is None or not after < before:
        raise StepFailed(f"nothing was learnt: the held-out loss was {before} and is {after}")
    say(f"loss on questions that were held out: {before:.3f} before, {after:.3f} after")


def _judge_answers(before: str, after: str) -> None:
    if _words(before) == _words(after):
        raise StepFailed(f"nothing was learnt: the answer is the same as before, {' '.join(after.split())!r}")
    say("the answer is another one than before")


def _words(text: str) -> list[str]:
    """What an answer says: not its capitals, white space and punctuation."""
    return re.findall(r"\w+", text.casefold())


def _show(event: TrainingEvent | JobReport, told: str) -> str:
    """Steps, and how the job is when that is not what was `told` last; gives what is told now."""
    if isinstance(event, StepDone):
        loss = "" if event.loss is None else f", loss {event.loss:.3f}"
        print(f"  step {event.step}/{event.steps}{loss}", flush=True)
    elif isinstance(event, JobReport) and not event.is_over and (said := _sentence(event)) != told:
        say(said)
        return said
    return told


def _sentence(job: JobReport) -> str:
    """How the job is, for a person."""
    if job.state == "running":
        return f"job {job.name} is trained on {job.node}{_expected(job.estimate)}"
    return f"job {job.name} is {job.state}{f': {job.reason}' if job.reason else ''}"


def _expected(estimate: EstimateReport | None) -> str:
    if estimate is None:
        return ""
    cost = "a price that nobody knows" if estimate.usd is None else f"{estimate.usd:.4f} USD"
    return f"; estimated {estimate.memory_bytes / 2**30:.1f} GiB, {estimate.seconds:.0f} s, {cost}"


def _data(lessons: list[Described]) -> Data:
    """Conversations, for the model is asked through its chat template."""
    rows = (
        {"messages": [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.paragraph}]}
        for one in lessons
    )
    return Data("".join(f"{json.dumps(row)}\n" for row in rows).encode(), "docstrings.jsonl")
