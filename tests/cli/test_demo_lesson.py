"""The demo's second act with a mesh that is made up: what it shows must be so, or it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tiermesh.cli.demo.lesson import teach
from tiermesh.cli.demo.story import MODEL, DemoNode, StepFailed
from tiermesh.client import RemoteClient
from tiermesh.errors import Unavailable
from tiermesh.protocol.jobs import JobReport, TriedReport
from tiermesh.protocol.training_events import StepDone, TrainingEvent

UNLEARNT = "Heap is a word that means a pile"
LEARNT = "Push item onto heap, maintaining the heap invariant"


@dataclass
class Mesh:
    """What the job comes to, and what is answered before it and after it."""

    before: str = UNLEARNT
    after: str = LEARNT
    losses: tuple[float | None, float | None] = (4.0, 3.0)
    state: str = "completed"
    killed: list[str] = field(default_factory=list)

    async def learn(self) -> None:
        """The act, from its first question to its last."""
        nodes = {name: cast("DemoNode", Node(name, self.killed)) for name in ("laptop", "gaming-pc", "server")}
        await teach(nodes, {name: cast("RemoteClient", Client(self)) for name in nodes})

    def report(self, state: str) -> JobReport:
        before, after = self.losses
        return JobReport(
            id="01J",
            name="docstrings",
            state=state,  # type: ignore[arg-type]
            node="gaming-pc",
            model=MODEL,
            method="lora",
            reason="as the script says",
            result={"held_out_loss_before": before, "held_out_loss": after},
            attempts=[TriedReport(number=1, node="gaming-pc", state="completed", cause="first")],
        )


@dataclass
class Node:
    name: str
    killed: list[str]

    def kill(self) -> None:
        self.killed.append(self.name)


@dataclass
class Job:
    mesh: Mesh
    report: JobReport
    id: str = "01J"
    name: str = "docstrings"
    after: int = 0

    async def refresh(self) -> JobReport:
        return self.report

    async def events(self) -> AsyncIterator[TrainingEvent | JobReport]:
        for step in (1, 2):
            yield StepDone(step=step, steps=2, epoch=1.0, loss=3.0, learning_rate=1e-4)
        self.report = self.mesh.report(self.mesh.state)


@dataclass
class Client:
    mesh: Mesh

    async def train(self, *_: object, **__: object) -> Job:
        return Job(self.mesh, self.mesh.report("running"))

    async def job(self, _: str) -> Job:
        return Job(self.mesh, self.mesh.report("running"))

    async def models(self) -> list[Any]:
        return [SimpleNamespace(id="docstrings")]

    async def cluster(self) -> None:
        raise Unavailable("nobody is asked")

    def stream(self, _: str, *, model: str, **__: object) -> Answer:
        return Answer(self.mesh.before if model == MODEL else self.mesh.after)


class Answer:
    """As it streams, word for word."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.result = SimpleNamespace(node="server", tier=2)

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[str]:
        for word in self._text.split(" "):
            yield f"{word} "


async def test_a_lesson_that_was_learnt_shows_in_the_loss_and_in_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    mesh = Mesh()
    await mesh.learn()
    assert mesh.killed == ["gaming-pc"]
    told = capsys.readouterr().out
    assert "4.000 before, 3.000 after" in told
    assert told.index(UNLEARNT) < told.index(LEARNT) < told.index("the answer is another one than before")


@pytest.mark.parametrize("again", [UNLEARNT, "heap is a word,  that means\na PILE."])
async def test_an_answer_that_says_the_same_as_before_fails_the_demo(again: str) -> None:
    with pytest.raises(StepFailed, match="the answer is the same as before"):
        await Mesh(after=again).learn()


@pytest.mark.parametrize("losses", [(3.0, 3.0), (3.0, 3.5), (None, 3.0), (3.0, None), (3.0, float("nan"))])
async def test_a_held_out_loss_that_did_not_fall_fails_the_demo(losses: tuple[float | None, float | None]) -> None:
    with pytest.raises(StepFailed, match="the held-out loss was"):
        await Mesh(losses=losses).learn()


async def test_a_job_that_did_not_complete_fails_the_demo() -> None:
    with pytest.raises(StepFailed, match="job docstrings failed: as the script says"):
        await Mesh(state="failed").learn()
