"""How busy the GPU is, where there is one; its driver is made up here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pynvml
import pytest
import torch
from tests import tiny_model
from tests.training.runs import run_of, spec_of

from tiermesh.kernel.training.gpu_use import gpu_use
from tiermesh.kernel.training.progress import Progress
from tiermesh.protocol.training_events import StepDone

CUDA = torch.device("cuda")


def test_a_driver_says_it_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 83 if device == CUDA else 0)
    assert gpu_use(CUDA) == 0.83


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("pynvml does not seem to be installed"),
        RuntimeError("cuda driver can't be loaded"),
        pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
    ],
)
def test_a_driver_that_does_not_say_is_no_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(device: torch.device) -> int:
        raise error

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert gpu_use(CUDA) is None


def test_without_a_gpu_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: pytest.fail("asked"))
    assert gpu_use(torch.device("cpu")) is None


def test_a_run_that_nobody_could_look_at_has_no_mean() -> None:
    progress = Progress()
    progress.looked_at_gpu(None)
    assert progress.gpu_use is None


def test_the_mean_of_a_run_goes_on_after_a_checkpoint() -> None:
    progress = Progress()
    for use in (0.5, None, 0.75):
        progress.looked_at_gpu(use)
    again = Progress.from_dict(asdict(progress))
    again.looked_at_gpu(1.0)
    assert (progress.gpu_use, again.gpu_use) == (0.625, 0.75)


def test_a_checkpoint_of_an_earlier_version_has_no_looks() -> None:
    before = {name: value for name, value in asdict(Progress(step=3)).items() if not name.startswith("gpu")}
    assert (Progress.from_dict(before).step, Progress.from_dict(before).gpu_use) == (3, None)


def test_each_step_that_is_told_says_it_and_the_run_its_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.5, None, 1.0, 0.75])
    monkeypatch.setattr("tiermesh.kernel.training.run.gpu_use", lambda device: next(told))
    run, events = run_of(tmp_path, tiny_model.build_folder(tmp_path / "tiny"), spec_of(), steps=4)
    assert run.go() == "done"
    assert [event.gpu_use for event in events if isinstance(event, StepDone)] == [0.5, None, 1.0, 0.75]
    assert run.progress.gpu_use == 0.75
