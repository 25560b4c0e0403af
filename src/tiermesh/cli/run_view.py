"""A training run for a person: a bar on a terminal, lines in a pipe or a file, or the events themselves as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tiermesh.cli.render import size
from tiermesh.protocol.training_events import (
    AttemptBegun,
    CheckpointSaved,
    Completed,
    Continued,
    DataReady,
    Evaluated,
    Failed,
    ModelReady,
    Paused,
    Phase,
    Planned,
    Relieved,
    Restarted,
    Resumed,
    RolledBack,
    Sampled,
    Started,
    StepDone,
    StepSkipped,
    Stopped,
    TrainingEvent,
    Warned,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Show = Callable[[TrainingEvent], None]

BAD_SHOWN = 5
"""Bad records whose lines are shown; the run's log and events name more of them."""
LINE_PAUSE_S = 5.0
"""Between two lines about steps, where nobody looks at each."""
PHASES = {
    "model": "loading the model",
    "data": "reading the data",
    "probe": "measuring a step",
    "train": "training",
    "evaluate": "looking at held-out records",
    "save": "saving",
    "result": "writing the result",
}


class View:
    """Where a run is shown; this one is for programs."""

    def show(self, event: TrainingEvent) -> None:
        """The next event of the run."""
        print(event.model_dump_json(), flush=True)

    def note(self, text: str) -> None:
        """A line for a person."""

    def waits(self, what: str) -> None:
        """What goes on while no step is done."""


@contextmanager
def run_view(*, as_json: bool, waits: str = "starting the worker") -> Iterator[View]:
    """Whom to tell of each event of a run."""
    if as_json:
        yield View()
    elif sys.stdout.isatty():
        with _bars(waits) as view:
            yield view
    else:
        yield _Lines()


def line_of(event: TrainingEvent) -> str | None:
    """One line for a person, and one more for each bad record; None for what says nothing new. Steps are shown by
    whoever has room for them."""
    match event:
        case DataReady():
            return _data_line(event)
        case ModelReady():
            share = f"{event.trainable / max(1, event.parameters):.2%}"
            trained = f"{event.trainable:,} of {event.parameters:,} parameters are trained ({share})"
            again = ", activations are computed again" if event.checkpointing else ""
            return f"model: {event.architecture}, {trained}, {event.precision}{again}"
        case Planned():
            return f"plan: {event.steps} steps of {event.effective_batch} rows, {event.micro_batch_size} at once"
        case Resumed():
            differences = f"; not as before: {'; '.join(event.differences)}" if event.differences else ""
            return f"going on after step {event.step} ({event.checkpoint}){differences}"
        case Evaluated():
            figures = f"loss {_figure(event.loss)}, perplexity {_short(event.perplexity)}"
            return f"held out after step {event.step}: {figures}{', the best so far' if event.best else ''}"
        case Sampled():
            return f"sample after step {event.step}: {_one_line(event.prompt)} → {_one_line(event.text)}"
        case StepSkipped():
            return f"step {event.step} left out: {event.where} ({event.in_a_row} in a row); nothing was changed"
        case RolledBack():
            jump = f"step {event.step}: the loss jumped to {_figure(event.loss)}"
            return f"{jump}; back to step {event.to_step}, past that data"
        case Relieved():
            share = "" if event.pressure is None else f" ({event.pressure:.0%} of the limit)"
            return f"step {event.step}: memory is {event.level}{share}: {event.action}"
        case CheckpointSaved():
            return f"saved {event.name} ({size(event.size_bytes)}, {event.seconds:.1f} s)"
        case Paused():
            return f"paused after step {event.step}: {event.reason}"
        case Continued():
            return "going on"
        case Warned():
            return f"note: {event.message}"
        case AttemptBegun():
            return f"attempt {event.number}"
        case Restarted():
            return f"{event.reason}; started again to take less (for the {event.attempt}. time)"
        case Phase(phase="probe", state="completed"):
            return event.detail or None
        case Phase() | StepDone() | Started() | Completed() | Failed() | Stopped():
            return None


def step_line(event: StepDone) -> str:
    """`step 12/120  loss 2.3451  lr 5.0e-05  312 tokens/s  1.4 GB  3 min left`."""
    told = [f"step {event.step}/{event.steps}", f"loss {_figure(event.loss)}", f"lr {event.learning_rate:.1e}"]
    if event.tokens_per_s is not None:
        told.append(f"{event.tokens_per_s:.0f} tokens/s")
    if event.memory_bytes is not None:
        told.append(size(event.memory_bytes))
    if event.eta_s is not None:
        told.append(f"{duration(event.eta_s)} left")
    return "  ".join(told)


def end_lines(event: Completed) -> list[str]:
    """What came of it."""
    lines = [f"done: {event.step} steps in {duration(event.seconds)}, {event.tokens:,} tokens"]
    if event.held_out_loss is not None:
        before = "" if event.held_out_loss_before is None else f", {_figure(event.held_out_loss_before)} before"
        lines.append(f"held-out loss: {_figure(event.held_out_loss)}{before}")
    if event.skipped_steps or event.rollbacks:
        lines.append(f"on the way: {event.skipped_steps} steps left out, {event.rollbacks} times back")
    return [*lines, *[f"result: {event.result}"] * bool(event.result)]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class _Lines(View):
    """One line an event, and of the steps one now and then."""

    def __init__(self) -> None:
        self._step_shown_at = 0.0
        self._phase: tuple[str, str] | None = None

    def note(self, text: str) -> None:
        print(text, flush=True)

    def show(self, event: TrainingEvent) -> None:
        match event:
            case StepDone():
                now = time.monotonic()
                if event.step == event.steps or now > self._step_shown_at + LINE_PAUSE_S:
                    self._step_shown_at = now
                    print(step_line(event), flush=True)
            case Phase(state="started") if (event.phase, event.state) != self._phase:
                self._phase = (event.phase, event.state)
                print(PHASES[event.phase], flush=True)
            case Completed():
                print("\n".join(end_lines(event)), flush=True)
            case _:
                if line := line_of(event):
                    print(line, flush=True)


@contextmanager
def _bars(waits: str) -> Iterator[View]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(highlight=False), transient=True) as bars:
        yield _Bar(bars, waits)


class _Bar(View):
    """A bar for the steps, one more for what else goes on, and above them a line for each thing that happened."""

    def __init__(self, bars: Progress, waits: str) -> None:
        self._bars = bars
        self._steps: TaskID | None = None
        self._phase: TaskID | None = bars.add_task(waits, total=None)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, soft_wrap=True)

    def waits(self, what: str) -> None:
        self._end_phase()
        self._phase = self._bars.add_task(what, total=None)

    def show(self, event: TrainingEvent) -> None:
        match event:
            case StepDone():
                self._end_phase()
                if self._steps is None:
                    self._steps = self._bars.add_task("", total=event.steps)
                description = step_line(event).partition("  ")[2]
                # A retry may have more steps than the attempt before it.
                self._bars.update(self._steps, description=description, completed=event.step, total=event.steps)
            case Phase(state="started", phase=phase) if phase != "train":
                self._end_phase()
                what = PHASES[phase] + (f" {event.detail}" if event.detail else "")
                self._phase = self._bars.add_task(what, total=event.total or None, completed=event.done)
            case Phase():
                self._end_phase()
                if line := line_of(event):
                    self.note(line)
            case Completed():
                self.note("\n".join(end_lines(event)))
            case _:
                if line := line_of(event):
                    self.note(line)

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._bars.remove_task(self._phase)
            self._phase = None


def _data_line(event: DataReady) -> str:
    told = [f"{event.records:,} records", f"{event.tokens:,} tokens in {event.rows:,} rows"]
    if event.utilisation is not None:
        told.append(f"{event.utilisation:.1%} of the positions used")
    if event.length_p50 is not None:
        told.append(f"lengths {event.length_p50} (half), {event.length_p95} (95 %), {event.length_max} (longest)")
    if event.held_out_records:
        told.append(f"{event.held_out_records:,} held out")
    if event.bad_records:
        told.append(f"{event.bad_records:,} bad ones left out")
    lines = [f"data: {', '.join(told)}{' (its tokens were there already)' if event.cached else ''}"]
    lines += [f"left out: {bad}" for bad in event.bad[:BAD_SHOWN]]
    if event.bad and event.bad_records > BAD_SHOWN:
        lines.append(f"left out: {event.bad_records - BAD_SHOWN:,} more")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
