"""A training worker run on this machine, watched by this command: what `mesh train run --local` and its kin do."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tiermesh.cli import connect
from tiermesh.cli.outcome import FAILED, INTERRUPTED, say_error

if TYPE_CHECKING:
    from tiermesh.adapters.trainer import Ending, Launch, Mode
    from tiermesh.protocol.run_folder import RunFolder, RunPlan
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import TrainingEvent
    from tiermesh.protocol.training_problems import Problem

TOLD_AT_ONCE = 4
"""Problems that a refused run names in its one line: what is wrong with the data, and its first lines."""


def run_here(spec: TrainingSpec, out: Path, *, fresh: bool, threads: int | None, as_json: bool) -> None:
    """Begin the run in `out`, or go on with it, as this command's work."""
    from tiermesh.adapters.run_events import completion
    from tiermesh.adapters.run_plan import check_libraries, plan_of
    from tiermesh.adapters.trainer import Launch
    from tiermesh.cli import pausing
    from tiermesh.cli.run_plan import begun_plan
    from tiermesh.errors import InvalidSpec
    from tiermesh.protocol.run_folder import RunFolder

    folder = RunFolder(out.absolute())
    begun = begun_plan(folder)
    if fresh and begun is not None:
        raise InvalidSpec(f"{folder.path} holds a run; delete it, or take another --out", param="fresh")
    check_libraries()
    plan = plan_of(spec)
    if begun is None:
        _refuse_hopeless(spec)
    if plan == begun and folder.result.exists() and completion(folder.events):
        say_done_already(folder, as_json=as_json)
        return
    if folder.pause.exists() and not pausing.is_training(folder):
        pausing.lift(folder)  # who calls it again wants it to go on
    launch = Launch(folder=folder, plan=plan, threads=threads, memory_limit_bytes=spec.memory_limit)
    ending = train(launch, as_json=as_json)
    if begun is not None and is_refusal(ending):
        folder.write_plan(begun)  # the run that is there is as it was
    end(ending, folder, f"mesh train run --local --out {shlex.quote(str(folder.path))}")


def train(launch: Launch, *, as_json: bool) -> Ending:
    """Run it to its end, shown."""
    from tiermesh.cli.run_view import run_view

    with run_view(as_json=as_json) as view:
        return connect.run(_follow(launch, view.show))


async def _follow(launch: Launch, show: Callable[[TrainingEvent], None]) -> Ending:
    """Ctrl-C, SIGTERM and a closed terminal stop the run after a checkpoint."""
    import asyncio
    import signal

    from tiermesh.adapters.trainer import Trainer

    trainer = Trainer(launch, show)
    asked = 0

    def interrupt() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            print("mesh: stopping after a checkpoint; once more ends it at once", file=sys.stderr, flush=True)
            trainer.stop()
        else:
            trainer.kill()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    return await trainer.run()


def ask_worker(folder: RunFolder, plan: RunPlan, mode: Mode, answer: Path, threads: int | None) -> Mapping[str, Any]:
    """What a worker wrote down as its answer. Ends the command when there is none."""
    from tiermesh.adapters.trainer import Launch

    launch = Launch(folder=folder, plan=plan, mode=mode, threads=threads, memory_limit_bytes=plan.spec.memory_limit)
    ending = connect.run(_follow(launch, lambda _: None))
    if ending.how != "done":
        end(ending, folder, None)
    found: Mapping[str, Any] = json.loads(answer.read_bytes())
    return found


def is_refusal(ending: Ending) -> bool:
    """Did the worker find that the run in the folder can't go on as the spec now has it?"""
    from tiermesh.protocol.training_events import Failed

    return isinstance(ending.last, Failed) and ending.last.kind in ("checkpoint_unusable", "bad_spec")


def end(ending: Ending, folder: RunFolder, again: str | None) -> None:
    """Say how it ended, as this command's end; `again` goes on with it."""
    from tiermesh.protocol.training_events import Failed

    if ending.how == "done":
        return
    if ending.how == "stopped":
        say_error(f"{ending.reason}{f'; to go on: {again}' if again else ''}")
        raise typer.Exit(INTERRUPTED)
    last = ending.last
    advice = f". {last.advice}" if isinstance(last, Failed) and last.advice else ""
    kind = f"{last.kind}: " if isinstance(last, Failed) else ""
    more = f". More in {folder.crash} and {folder.log}" if ending.how != "failed" else ""
    say_error(f"{kind}{ending.reason}{advice}{more}")
    raise typer.Exit(FAILED)


def say_done_already(folder: RunFolder, *, as_json: bool) -> None:
    """Nothing is left to do in this run."""
    if as_json:
        print(json.dumps({"event": "completed", "result": str(folder.result)}))
    else:
        print(f"this run is done; its result is {folder.result}. --fresh with another --out begins a new one")


def _refuse_hopeless(spec: TrainingSpec) -> None:
    """Before anything is written. Raises `InvalidSpec`."""
    from tiermesh.adapters.run_plan import trainable_model
    from tiermesh.adapters.spec_check import obstacles
    from tiermesh.errors import InvalidSpec
    from tiermesh.hardware.profile import read_profile

    if wrong := obstacles(spec, trainable_model(spec.model_name), has_gpu=bool(read_profile(Path()).gpus)):
        raise InvalidSpec(_one_line(wrong), param=wrong[0].path or None)


def _one_line(problems: Sequence[Problem]) -> str:
    """The first ones, where there are many."""
    more = len(problems) - TOLD_AT_ONCE
    rest = f"; and {more} more: `mesh train validate` lists them" if more > 0 else ""
    return "; ".join(map(str, problems[:TOLD_AT_ONCE])) + rest
