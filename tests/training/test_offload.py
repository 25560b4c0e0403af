"""A state in a file is the same state: the run's numbers don't change, its memory does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tiermesh.errors import DiskFull
from tiermesh.kernel.training.offload import MappedState, offload, state_bytes
from tiermesh.kernel.training.state import capture, restore


class Learner:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(64, 48)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, fused=True)

    def step(self) -> None:
        self.model(torch.randn(8, 64)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def weights_after(moved_at: int | None, folder: Path) -> torch.Tensor:
    learner, moved = Learner(), None
    for step in range(6):
        if step == moved_at:
            moved = offload(learner.optimizer, folder)
        learner.step()
    if moved is not None:
        moved.close()
    return learner.model.weight.detach()


def test_the_numbers_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    assert torch.equal(weights_after(3, tmp_path), weights_after(None, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_was_restored_is_moved_again(tmp_path: Path) -> None:
    learner = Learner()
    learner.step()
    moved = offload(learner.optimizer, tmp_path)
    assert isinstance(moved, MappedState)
    assert state_bytes(learner.optimizer) == 2 * (64 * 48 + 48) * 4
    snapshot = capture(
        dict(learner.model.named_parameters()), learner.optimizer, step=1, position=0, loss=None, facts={}
    )
    learner.step()
    expected = learner.model.weight.detach().clone()
    moved.close()
    restore(snapshot, dict(learner.model.named_parameters()), learner.optimizer)
    again = offload(learner.optimizer, tmp_path)
    assert isinstance(again, MappedState)
    learner.step()
    again.close()
    assert torch.equal(learner.model.weight, expected)


def test_a_full_disk_is_told_before_anything_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner()
    learner.step()
    before = [state["exp_avg"] for state in learner.optimizer.state.values()]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(DiskFull):
        offload(learner.optimizer, tmp_path)
    assert all(a is s["exp_avg"] for a, s in zip(before, learner.optimizer.state.values(), strict=True))


SPARED = """
import sys, torch
from pathlib import Path
from torch import nn
from tiermesh.kernel.training.memory import resident_bytes, trim
from tiermesh.kernel.training.offload import offload, state_bytes

model = nn.Linear(4096, 4096, bias=False)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
model.weight.grad = torch.ones_like(model.weight)
optimizer.step()
trim()
before, size = resident_bytes(), state_bytes(optimizer)
moved = offload(optimizer, Path(sys.argv[1]))
optimizer.step()
moved.close()
trim()
print((before - resident_bytes()) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps the pages as long as it likes")
def test_the_memory_is_free_between_two_steps(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", SPARED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(ran.stdout) > 0.9
