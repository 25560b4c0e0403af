"""`mesh train`: fine-tune a model, by the mesh or, without a daemon, on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tiermesh.cli import connect
from tiermesh.cli.outcome import FAILED, INTERRUPTED, say_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiermesh.adapters.trainer import Ending, Launch, Mode
    from tiermesh.cli.run_view import Show
    from tiermesh.protocol.run_folder import RunFolder, RunPlan
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_problems import Problem


class RunByDefault(TyperGroup):
    """`mesh train SPEC` is `mesh train run SPEC`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunByDefault, help="Fine-tune a model on your own data.", no_args_is_help=True, rich_markup_mode=None
)

RUNS = Path("runs")
"""Where runs go that are told no --out: below the folder that the command is called in."""

SpecFile = Annotated[Path | None, typer.Argument(help="A training spec, YAML or JSON. Options win over it.")]
Model = Annotated[str | None, typer.Option("--model", help="model_name: see `mesh model list`.")]
Data = Annotated[str | None, typer.Option("--data", help="dataset_path: JSONL, JSON, CSV, Parquet or text.")]
EvalData = Annotated[str | None, typer.Option("--eval-data", help="eval_path: held-out records.")]
Task = Annotated[str | None, typer.Option("--task", help="finetune, pretrain or preference.")]
Method = Annotated[str | None, typer.Option("--method", help="lora, qlora or full_finetune.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="num_epochs.")]
Steps = Annotated[int | None, typer.Option("--max-steps", help="max_steps.")]
Batch = Annotated[int | None, typer.Option("--batch", help="micro_batch_size.")]
Accumulate = Annotated[int | None, typer.Option("--accumulate", help="gradient_accumulation_steps.")]
Rate = Annotated[float | None, typer.Option("--lr", help="learning_rate.")]
Length = Annotated[int | None, typer.Option("--seq-len", help="seq_len, in tokens.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field of the spec, e.g. lora.r=8.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with. [default: all cores]")]


@app.command()
def run(
    spec_file: SpecFile = None,
    local: Annotated[bool, typer.Option("--local", help="On this machine, without a daemon.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="The job's name. [default: job_DATE_TIME]")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="With --local: the run's folder. [default: runs/SPEC'S NAME]")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With --local: begin a new run; refuse a folder that holds one.")
    ] = False,
    model: Model = None,
    data: Data = None,
    eval_data: EvalData = None,
    task: Task = None,
    method: Method = None,
    epochs: Epochs = None,
    max_steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    seq_len: Length = None,
    settings: Settings = None,
    threads: Threads = None,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Train. The spec and its data go to a node of the mesh, which does it as a job; Ctrl-C lets go of it.

    With --local this machine does it at once. A run that was stopped or died goes on from its last checkpoint when the
    same is called again. Ctrl-C stops it after a checkpoint; a second one stops it at once.
    """
    from tiermesh.adapters.run_events import completion
    from tiermesh.adapters.run_plan import check_libraries, plan_of
    from tiermesh.adapters.trainer import Launch
    from tiermesh.cli.run_plan import begun_plan
    from tiermesh.errors import InvalidSpec
    from tiermesh.protocol.run_folder import RunFolder
    from tiermesh.protocol.training_problems import read_spec

    given = {
        "model_name": model,
        "dataset_path": data,
        "eval_path": eval_data,
        "task": task,
        "method": method,
        "num_epochs": epochs,
        "max_steps": max_steps,
        "micro_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": lr,
        "seq_len": seq_len,
    }
    if not local:
        if out is not None or fresh or threads is not None:
            raise InvalidSpec("--out, --fresh and --threads go with --local: a node of the mesh decides itself")
        _submit(_spec_data(spec_file, given, settings), name=name, url=url, as_json=as_json)
        return
    begun = None if out is None else begun_plan(RunFolder(out.absolute()))
    spec = read_spec(_spec_data(spec_file, given, settings, begun))
    folder = RunFolder((out or _default_out(spec_file, spec)).absolute())
    begun = begun or begun_plan(folder)
    if fresh and begun is not None:
        raise InvalidSpec(f"{folder.path} holds a run; delete it, or take another --out", param="fresh")
    check_libraries()
    plan = plan_of(spec)
    if plan == begun and folder.result.exists() and completion(folder.events):
        _say_done_already(folder, as_json=as_json)
        return
    launch = Launch(folder=folder, plan=plan, threads=threads, memory_limit_bytes=spec.memory_limit)
    ending = _train(launch, as_json=as_json)
    if begun is not None and _is_refusal(ending):
        folder.write_plan(begun)  # the run that is there is as it was
    _exit(ending, folder, f"mesh train run --local --out {shlex.quote(str(folder.path))}")


@app.command()
def validate(
    spec_file: SpecFile = None,
    settings: Settings = None,
    as_json: connect.JsonOption = False,
) -> None:
    """List everything that is wrong with a spec, and the lines of its data that can't be used. Nothing is written."""
    problems, left_out = _problems(_spec_data(spec_file, {}, settings))
    if as_json:
        print(json.dumps({"valid": not problems, "problems": _plain(problems), "left_out": _plain(left_out)}, indent=2))
    elif problems:
        print("\n".join(map(str, problems)))
    else:
        print("nothing is wrong with it")
        print("".join(f"left out: {problem}\n" for problem in left_out), end="")
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def estimate(
    spec_file: SpecFile = None,
    settings: Settings = None,
    threads: Threads = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Say how much memory and time a run will take here. Loads the model and tries a few steps; trains nothing."""
    import tempfile

    from tiermesh.adapters.run_plan import check_libraries, plan_of
    from tiermesh.cli.estimate_view import show_estimate
    from tiermesh.protocol.run_folder import RunFolder
    from tiermesh.protocol.training_problems import read_spec

    spec = read_spec(_spec_data(spec_file, {}, settings))
    check_libraries()
    plan = plan_of(spec)
    with tempfile.TemporaryDirectory(prefix="mesh-estimate-") as name:
        folder = RunFolder(Path(name))
        found = _ask_worker(folder, plan, "estimate", folder.estimate, threads)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_estimate(found)


@app.command("eval")
def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder, done or on its way.")],
    threads: Threads = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Look at the held-out records with a run's newest checkpoint, and answer its samples."""
    from tiermesh.adapters.run_plan import check_libraries
    from tiermesh.cli.estimate_view import show_evaluation
    from tiermesh.cli.run_plan import begun_plan
    from tiermesh.errors import InvalidSpec
    from tiermesh.protocol.run_folder import RunFolder

    folder = RunFolder(run_folder.absolute())
    plan = begun_plan(folder) if folder.path.exists() else None
    if plan is None:
        raise InvalidSpec(f"{run_folder} holds no run", param="run")
    check_libraries()
    found = _ask_worker(folder, plan, "evaluate", folder.evaluation, threads)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_evaluation(found)


def _submit(given: dict[str, Any], *, name: str | None, url: str | None, as_json: bool) -> None:
    """The spec goes as its author wrote it; what is wrong in itself is told before anybody is asked."""
    from tiermesh.cli import submit
    from tiermesh.protocol.training_problems import read_spec

    submit.submit(read_spec(given), given, name=name, url=url, as_json=as_json)


def _spec_data(
    file: Path | None, options: Mapping[str, object], settings: list[str] | None, begun: RunPlan | None = None
) -> dict[str, Any]:
    """Without a file, what is changed is changed of the run that has begun."""
    from tiermesh.cli.spec_file import spec_data

    of_run = begun.spec.model_dump(mode="json") if begun is not None and file is None else {}
    return spec_data(file, options, settings or (), of_run)


def _default_out(file: Path | None, spec: TrainingSpec) -> Path:
    return RUNS / (file.stem if file else f"{Path(spec.dataset_path).stem}-{spec.method}")


def _problems(data: Mapping[str, Any]) -> tuple[list[Problem], list[Problem]]:
    """Of the document, of this machine, and of the data when all else is right; and the records to be left out."""
    from tiermesh.adapters.run_plan import data_problems, machine_problems, trainable_model
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_problems import spec_problems

    found = spec_problems(data)
    if isinstance(found, TrainingSpec):
        lacking = machine_problems(found)
        return (lacking, []) if lacking else data_problems(found, trainable_model(found.model_name).path)
    # What the document names can be looked for all the same.
    names = {name: data[name] for name in ("model_name", "dataset_path", "eval_path") if data.get(name)}
    named = spec_problems(names)
    return found + (machine_problems(named) if isinstance(named, TrainingSpec) else []), []


def _plain(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"path": problem.path, "message": problem.message} for problem in problems]


def _train(launch: Launch, *, as_json: bool) -> Ending:
    from tiermesh.cli.run_view import run_view

    with run_view(as_json=as_json) as show:
        return connect.run(_follow(launch, show))


async def _follow(launch: Launch, show: Show) -> Ending:
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


def _ask_worker(folder: RunFolder, plan: RunPlan, mode: Mode, answer: Path, threads: int | None) -> Mapping[str, Any]:
    """What a worker wrote down as its answer. Ends the command when there is none."""
    from tiermesh.adapters.trainer import Launch

    launch = Launch(folder=folder, plan=plan, mode=mode, threads=threads, memory_limit_bytes=plan.spec.memory_limit)
    ending = connect.run(_follow(launch, lambda _: None))
    if ending.how != "done":
        _exit(ending, folder, None)
    found: Mapping[str, Any] = json.loads(answer.read_bytes())
    return found


def _is_refusal(ending: Ending) -> bool:
    """Did the worker find that the run in the folder can't go on as the spec now has it?"""
    from tiermesh.protocol.training_events import Failed

    return isinstance(ending.last, Failed) and ending.last.kind in ("checkpoint_unusable", "bad_spec")


def _exit(ending: Ending, folder: RunFolder, again: str | None) -> None:
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


def _say_done_already(folder: RunFolder, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "completed", "result": str(folder.result)}))
    else:
        print(f"this run is done; its result is {folder.result}. --fresh with another --out begins a new one")
