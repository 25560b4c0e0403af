"""`mesh train`: fine-tune a model, by the mesh or, without a daemon, on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tiermesh.cli import connect, names
from tiermesh.cli.outcome import FAILED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tiermesh.protocol.run_folder import RunPlan
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_problems import Problem


class RunByDefault(TyperGroup):
    """`mesh train SPEC` is `mesh train run SPEC`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


HELP = """Fine-tune a model on your own data.

\b
mesh train --model NAME --data FILE    options: mesh train run --help
mesh train SPEC.yaml                   what is wrong with it: mesh train validate SPEC.yaml
mesh train "fine-tune smollm2 with LoRA on data.jsonl for 3 epochs"

All of them are `mesh train run`.
"""

app = typer.Typer(cls=RunByDefault, help=HELP, no_args_is_help=True, rich_markup_mode=None)

RUNS = Path("runs")
"""Where runs go that are told no --out: below the folder that the command is called in."""

SpecFile = Annotated[Path | None, typer.Argument(help="A training spec, YAML or JSON. Options win over it.")]
What = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SPEC | SENTENCE]",
        help="A training spec, YAML or JSON; or a sentence in quotes, such as "
        '"fine-tune smollm2 with LoRA on data.jsonl for 3 epochs". Options win over it.',
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="model_name: see `mesh model list`.", autocompletion=names.models)
]
Data = Annotated[str | None, typer.Option("--data", help="dataset_path: JSONL, JSON, CSV, Parquet or text.")]
EvalData = Annotated[str | None, typer.Option("--eval-data", help="eval_path: held-out records.")]
Task = Annotated[str | None, typer.Option("--task", help="finetune, pretrain or preference.")]
Method = Annotated[
    str | None, typer.Option("--method", help="lora, qlora or full_finetune.", autocompletion=names.methods)
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="num_epochs.")]
Steps = Annotated[int | None, typer.Option("--max-steps", help="max_steps.")]
Batch = Annotated[int | None, typer.Option("--batch", help="micro_batch_size.")]
Accumulate = Annotated[int | None, typer.Option("--accumulate", help="gradient_accumulation_steps.")]
Rate = Annotated[float | None, typer.Option("--lr", help="learning_rate.")]
Length = Annotated[int | None, typer.Option("--seq-len", help="seq_len, in tokens.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A local run's folder.")]
Merge = Annotated[bool, typer.Option("--merge", help="merge: a whole model instead of an adapter.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field of the spec, e.g. lora.r=8.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with. [default: all cores]")]


@app.command()
def run(
    what: What = None,
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
    merge: Merge = False,
    settings: Settings = None,
    threads: Threads = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: a sentence is right, and the cost is approved.")
    ] = False,
    max_usd: Annotated[float | None, typer.Option("--max-usd", min=0.0, help="Refuse it if it may cost more.")] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", metavar="KEY=VALUE", help="What the result must reach: max_final_loss, max_gap, canary."
        ),
    ] = None,
    priority: Annotated[int, typer.Option("--priority", min=-100, max=100, help="A higher one goes first.")] = 0,
    open_data: Annotated[
        bool,
        typer.Option("--open-data", help="On a mesh without a token: data and result may go to any of its nodes."),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as the mesh has accepted it.")] = False,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Train. The spec and its data go to the mesh, which does it as a job where it fits; Ctrl-C lets go of it.

    With --local this machine does it at once. A run that was stopped or died goes on from its last checkpoint when the
    same is called again. Ctrl-C stops it after a checkpoint; a second one stops it at once.
    """
    from tiermesh.cli import local_run, submit, words
    from tiermesh.cli.spec_file import gates_of, name_of
    from tiermesh.errors import InvalidSpec
    from tiermesh.protocol.training_problems import read_spec

    given: dict[str, Any] = {
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
        "merge": merge or None,
    }
    if not local and (out is not None or fresh or threads is not None):
        raise InvalidSpec("--out, --fresh and --threads go with --local: a node of the mesh decides itself")
    sentence = words.sentence_of(what)
    file = None if sentence is not None or not what else Path(what[0])
    said = None if sentence is None else words.understand(sentence, as_json=as_json)
    if said is not None:
        given = said.spec() | {field: value for field, value in given.items() if value is not None}
    asked = _spec_data(file, given, settings, _begun(out) if local else None)
    spec, name, reach = read_spec(asked), name_of(name), gates_of(gates or ())
    if not local and not as_json:
        submit.show_spec(spec)
    if said is not None:
        words.confirm(said, yes=yes, as_json=as_json)
        name = name or said.value("name")
        max_usd = said.value("max_usd") if max_usd is None else max_usd
    if local:
        out = out or _default_out(file, spec)
        return local_run.run_here(spec, out, fresh=fresh, threads=threads, as_json=as_json)
    order = submit.Order(
        name=name,
        yes=yes,
        max_usd=max_usd,
        gates=reach,
        priority=priority,
        open_data=open_data,
        detach=detach,
    )
    return submit.submit(spec, asked, order, url=url, as_json=as_json)


@app.command()
def validate(
    spec_file: SpecFile = None,
    settings: Settings = None,
    as_json: connect.JsonOption = False,
) -> None:
    """List everything that is wrong with a spec, and the lines of its data that can't be used. Nothing is begun.

    Only a run can tell whether memory suffices, whether the model's weights are good, and whether plugins take their
    options and data of their formats.
    """
    from tiermesh.adapters.spec_check import check
    from tiermesh.hardware.profile import read_profile

    found = check(_spec_data(spec_file, {}, settings), has_gpu=bool(read_profile(Path()).gpus))
    if as_json:
        told = {"problems": _plain(found.problems), "left_out": _plain(found.left_out), "unseen": found.unseen}
        print(json.dumps({"valid": not found.problems, **told}, indent=2))
    else:
        lines = [str(problem) for problem in found.problems] or ["nothing is wrong with it"]
        lines += [f"left out: {record}" for record in found.left_out]
        print("\n".join([*lines, *(f"not looked at: {what}" for what in found.unseen)]))
    if found.problems:
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
    from tiermesh.cli import local_run
    from tiermesh.cli.estimate_view import show_estimate
    from tiermesh.protocol.run_folder import RunFolder
    from tiermesh.protocol.training_problems import read_spec

    spec = read_spec(_spec_data(spec_file, {}, settings))
    check_libraries()
    plan = plan_of(spec)
    with tempfile.TemporaryDirectory(prefix="mesh-estimate-") as name:
        folder = RunFolder(Path(name))
        found = local_run.ask_worker(folder, plan, "estimate", folder.estimate, threads)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_estimate(found)


@app.command("eval")
def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="A run's folder, done or stopped; not one where a worker trains.")],
    best: Annotated[bool, typer.Option("--best", help="Its checkpoint of the lowest held-out loss.")] = False,
    threads: Threads = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Look at the held-out records with a run's newest checkpoint, or its best one, and answer its samples."""
    from tiermesh.adapters.run_plan import check_libraries
    from tiermesh.cli import local_run
    from tiermesh.cli.estimate_view import show_evaluation
    from tiermesh.cli.run_plan import begun_plan
    from tiermesh.errors import InvalidSpec
    from tiermesh.protocol.run_folder import RunFolder

    folder = RunFolder(run_folder.absolute())
    plan = begun_plan(folder) if folder.path.exists() else None
    if plan is None:
        raise InvalidSpec(f"{run_folder} holds no run", param="run")
    check_libraries()
    found = local_run.ask_worker(folder, plan, "evaluate_best" if best else "evaluate", folder.evaluation, threads)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_evaluation(found)


@app.command()
def pause(run_folder: RunPath) -> None:
    """Let a run on this machine wait at the end of its step, with all that it has in memory."""
    from tiermesh.cli import pausing

    print(pausing.pause(run_folder))


@app.command()
def resume(run_folder: RunPath) -> None:
    """Let a run go on that was told to wait."""
    from tiermesh.cli import pausing

    print(pausing.resume(run_folder))


@app.command()
def script(
    spec_file: SpecFile = None,
    model: Model = None,
    data: Data = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it there instead of printing it.")] = None,
) -> None:
    """Print a Python script that trains as a spec says with torch, transformers and peft alone.

    It needs nothing of this project. Its first lines say what it does otherwise than a run of ours.
    """
    from tiermesh.errors import StateUnwritable
    from tiermesh.protocol.hf_script import hf_script
    from tiermesh.protocol.training_problems import read_spec

    text = hf_script(read_spec(_spec_data(spec_file, {"model_name": model, "dataset_path": data}, settings)))
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, "utf-8")
    except OSError as error:
        raise StateUnwritable(f"can't write {out}: {(error.strerror or 'unknown reason').lower()}") from error


def _begun(out: Path | None) -> RunPlan | None:
    """The plan of the run that is there."""
    from tiermesh.cli.run_plan import begun_plan
    from tiermesh.protocol.run_folder import RunFolder

    return None if out is None else begun_plan(RunFolder(out.absolute()))


def _spec_data(
    file: Path | None, options: Mapping[str, object], settings: list[str] | None, begun: RunPlan | None = None
) -> dict[str, Any]:
    """Without a file, what is changed is changed of the run that has begun."""
    from tiermesh.cli.spec_file import spec_data

    of_run = begun.spec.model_dump(mode="json") if begun is not None and file is None else {}
    return spec_data(file, options, settings or (), of_run)


def _default_out(file: Path | None, spec: TrainingSpec) -> Path:
    return RUNS / (file.stem if file else f"{Path(spec.dataset_path).stem}-{spec.method}")


def _plain(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [{"path": problem.path, "message": problem.message} for problem in problems]
