"""Is anything learnt? A model is asked what functions of Python's standard library do, before and after fine-tuning.

Questions are names, answers the first paragraphs of their docstrings. Which ones are held out is decided by the hash of
the answer, so that an answer is never on both sides, whatever it is called; that is checked, too.

    python -m benchmarks.training.learning [--minutes 4] [--threads 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.training.docstrings import write
from benchmarks.training.workers import events, worker
from tiermesh.cli.demo.docstrings import Described, described, digest
from tiermesh.protocol.run_folder import DONE, RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import Completed, Evaluated, Sampled, StepDone

MODEL = "smollm2:135m"
HELD_OUT_IN = 20
"""One answer in so many is held out."""
ANSWER_CHARS = (30, 400)
ASKED = 96
"""Held-out questions that are evaluated, and three of which are answered."""
SAMPLES = 3
TOKENS_PER_S = 250
"""From which the number of steps is reckoned for the time that there is; a slower machine takes longer."""
STEP_TOKENS = 4 * 512
LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out question: what the docstring says, and what the model."""

    question: str
    truth: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Learnt:
    """Held-out losses in nats a token of the answers. `shown` of the `trained` questions came up in the time that there
    was. `overlap`: held-out answers or questions that are among the `trained`."""

    trained: int
    shown: int
    held_out: int
    overlap: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float
    samples: list[Sample]


def sides() -> tuple[list[Described], list[Described]]:
    """To learn, and held out."""
    least, most = ANSWER_CHARS
    fitting = [one for one in described() if least <= len(one.paragraph) <= most]
    held_out = [one for one in fitting if _is_held_out(one)]
    return [one for one in fitting if not _is_held_out(one)], held_out[:ASKED]


def overlap(trained: Sequence[Described], held_out: Sequence[Described]) -> int:
    """Held-out items of which the question's or the answer's hash is among those trained on."""
    known = {digest(text) for one in trained for text in (one.question, _plain(one))}
    return sum(digest(one.question) in known or digest(_plain(one)) in known for one in held_out)


def learn(folder: Path, model: Path, environment: Mapping[str, str], *, threads: int, minutes: float) -> Learnt:
    """Fine-tune for about so many minutes, and look."""
    trained, held_out = sides()
    path = write(folder / "learn.jsonl", map(_record, trained))
    asked = write(folder / "asked.jsonl", map(_record, held_out))
    chosen = held_out[:SAMPLES]
    spec = TrainingSpec(
        model_name=str(model),
        dataset_path=str(path),
        eval_path=str(asked),
        max_steps=max(4, round(minutes * 60 * TOKENS_PER_S / STEP_TOKENS)),
        micro_batch_size=4,
        learning_rate=5e-4,
        warmup=0.1,
        samples=tuple(one.question for one in chosen),
        sample_tokens=48,
    )
    run = RunFolder(folder / "learning")
    run.write_plan(RunPlan(spec=spec, model_path=str(model), data_path=str(path), eval_path=str(asked)))
    began = time.perf_counter()
    with worker(run, threads=threads, environment=environment) as child:
        code = child.wait(LONGEST_S)
    if code != DONE:
        raise RuntimeError(f"the worker ended with {code}:\n{run.log.read_text()[-3000:]}")
    seconds = time.perf_counter() - began
    told = events(run)
    losses = [one.loss for one in told if isinstance(one, Evaluated)]
    texts = [one.text for one in told if isinstance(one, Sampled)]
    done = next(one for one in told if isinstance(one, Completed))
    assert losses[0] is not None
    assert losses[-1] is not None
    epoch = next(one.epoch for one in reversed(told) if isinstance(one, StepDone))
    return Learnt(
        trained=len(trained),
        shown=round(min(1.0, epoch) * len(trained)),
        held_out=len(held_out),
        overlap=overlap(trained, held_out),
        steps=done.step,
        loss_before=losses[0],
        loss_after=losses[-1],
        seconds=seconds,
        samples=[
            Sample(one.question, one.paragraph, before.strip(), after.strip())
            for one, before, after in zip(chosen, texts[:SAMPLES], texts[-SAMPLES:], strict=True)
        ],
    )


def told(learnt: Learnt) -> str:
    """As Markdown."""
    lines = [
        f"about {learnt.shown:,} of {learnt.trained:,} questions learnt in {learnt.steps} steps, "
        f"{learnt.seconds / 60:.1f} minutes with start, evaluations and answers; held-out "
        f"loss over {learnt.held_out} others {learnt.loss_before:.3f} before, {learnt.loss_after:.3f} after; "
        f"{learnt.overlap} of them among the {learnt.trained:,}"
    ]
    for one in learnt.samples:
        lines += ["", f"**{one.question}** (held out)"]
        lines += [f"- the docstring: {one.truth}", f"- before: {one.before}", f"- after: {one.after}"]
    return "\n".join(lines)


def _record(one: Described) -> dict[str, Any]:
    asked = {"role": "user", "content": one.question}
    return {"messages": [asked, {"role": "assistant", "content": one.paragraph}]}


def _plain(one: Described) -> str:
    return one.paragraph.casefold()


def _is_held_out(one: Described) -> bool:
    return int(digest(_plain(one)), 16) % HELD_OUT_IN == 0


def main() -> None:
    """Learn, and tell."""
    from tiermesh.adapters.model_source import resolve
    from tiermesh.adapters.trainer import default_threads, environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--model", default=MODEL, help=f"a name or a folder; default: {MODEL}")
    parser.add_argument("--out", type=Path, help="folder for what was found, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tiermesh-bench-") as folder:
        settings = {**environment(options.threads), "TIERMESH_CACHE": folder}
        found = learn(
            Path(folder), resolve(options.model).path, settings, threads=options.threads, minutes=options.minutes
        )
    print(told(found))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "learning.json").write_text(json.dumps(asdict(found), indent=1) + "\n")
    sys.exit(0 if found.loss_after < found.loss_before and found.overlap == 0 else 1)


if __name__ == "__main__":
    main()
