"""The folder of one training run: what lies where in it, and the document that says what is run.

spec.json            what is run: the spec, and which files it was resolved to (`RunPlan`)
events.jsonl         what happened, appended to; never rewritten
worker.log           what the worker wrote besides; `worker.log.1` is what came before, of one that wrote much
lock                 held (flock) while a worker trains here
pause                while it is there, the worker waits at the end of its step
checkpoints/         step-00000120/ and so on; `latest` holds the name of the newest whole one
result/              the adapter or the model, once the run is done
tensorboard/         curves, when asked for
crash/               one folder for each failure
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from tiermesh.protocol.training import Part, TrainingSpec

DONE, FAILED, STOPPED = 0, 3, 75
"""How a worker exits: with a result; failed, and the last event says why; stopped after a checkpoint, to be taken up
again (EX_TEMPFAIL). Anything else is a crash, or a kill."""


class RunPlan(Part):
    """`spec.json`: the spec with every path absolute, and the digests of what it names."""

    spec: TrainingSpec
    """As validated."""
    model_path: str = Field(min_length=1)
    """Folder of the model on this machine."""
    model_digest: str = ""
    """As the model cache has it."""
    data_path: str = Field(min_length=1)
    """The data on this machine."""
    data_digest: str = ""
    """SHA-256 of the file, hexadecimal, after `sha256:`."""
    eval_path: str | None = None
    """The held-out data, where it is a file of its own."""
    eval_digest: str | None = None
    """As `data_digest`."""
    canary: bool = False
    """Are the fixed prompts of `core.evaluation` answered before and after?"""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Names of the files of the run at `path`; makes none of them."""

    path: Path

    @property
    def plan(self) -> Path:
        """The document `RunPlan`."""
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        """Lines of `TrainingEvent`."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """For people."""
        return self.path / "worker.log"

    @property
    def older_log(self) -> Path:
        """What `log` was until it had grown too long."""
        return self.path / "worker.log.1"

    @property
    def lock(self) -> Path:
        """Of whoever trains."""
        return self.path / "lock"

    @property
    def pause(self) -> Path:
        """Whoever makes it pauses the run, and goes on by removing it."""
        return self.path / "pause"

    @property
    def checkpoints(self) -> Path:
        """One folder each."""
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """A file with the name of the newest whole checkpoint."""
        return self.checkpoints / "latest"

    @property
    def result(self) -> Path:
        """Appears whole or not at all."""
        return self.path / "result"

    @property
    def estimate(self) -> Path:
        """What a worker estimated, as JSON."""
        return self.path / "estimate.json"

    @property
    def evaluation(self) -> Path:
        """What a worker found when it evaluated the newest checkpoint, as JSON."""
        return self.path / "evaluation.json"

    @property
    def tensorboard(self) -> Path:
        """Curves."""
        return self.path / "tensorboard"

    @property
    def crash(self) -> Path:
        """One folder for each failure."""
        return self.path / "crash"

    def read_plan(self) -> RunPlan:
        """Raises `OSError` and `ValueError` (pydantic's) for what is no plan."""
        return RunPlan.model_validate_json(self.plan.read_bytes())

    def write_plan(self, plan: RunPlan) -> None:
        """Whole or not at all. The folder is made when it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)
        staged = self.plan.with_name(f".{self.plan.name}.{os.getpid()}")
        staged.write_text(plan.model_dump_json(indent=1) + "\n", "utf-8")
        staged.replace(self.plan)


def checkpoint_name(step: int) -> str:
    """Names sort as steps do."""
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint's name, `.2` for one that was saved twice; None for any other name."""
    found = re.fullmatch(r"step-(\d{8,})(?:\.\d+)?", name)
    return int(found[1]) if found else None
