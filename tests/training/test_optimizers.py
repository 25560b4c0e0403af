"""What an optimizer keeps can be made before its first step, and its numbers are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tiermesh.kernel.training.offload import offload, state_bytes
from tiermesh.kernel.training.optimizers import adamw, adamw8bit, close_state, grouped, open_state, sgd

Make = Callable[[nn.Module], torch.optim.Optimizer]


def of(make: Callable[..., torch.optim.Optimizer], **options: object) -> Make:
    return lambda model: make(grouped(model.parameters(), 0.01), 0.01, **options)


KNOWN = {
    "adamw": of(adamw),
    "adamw, amsgrad": of(adamw, amsgrad=True),
    "adamw8bit": of(adamw8bit),
    "a plugin's Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


def trained(make: Make, opened: Callable[[torch.optim.Optimizer], object]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(64, 96)
    optimizer = make(model)
    opened(optimizer)
    for _ in range(4):
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    return [optimizer.state[parameter] for parameter in model.parameters()]


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_a_state_made_before_is_what_the_first_step_would_make(make: Make) -> None:
    model, optimizer = trained(make, open_state)
    other, others = trained(make, lambda _: None)
    assert torch.equal(model.weight, other.weight)  # type: ignore[arg-type]
    for ours, theirs in zip(states(model, optimizer), states(other, others), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_all_of_it_is_there_before_the_first_step(make: Make) -> None:
    model = nn.Linear(64, 96)
    optimizer = make(model)
    assert open_state(optimizer)
    before = state_bytes(optimizer)
    assert before > 0
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    assert state_bytes(optimizer) == before


def test_what_a_checkpoint_brought_is_left_alone() -> None:
    model, optimizer = trained(KNOWN["adamw"], open_state)
    kept = optimizer.state[next(model.parameters())]["exp_avg"].clone()
    open_state(optimizer)
    assert torch.equal(optimizer.state[next(model.parameters())]["exp_avg"], kept)


def test_one_made_in_a_file_takes_no_memory_on_the_way_and_gives_the_same_numbers(tmp_path: Path) -> None:
    def in_file(optimizer: torch.optim.Optimizer) -> None:
        assert open_state(optimizer, thin=True)
        for state in optimizer.state.values():
            assert all(t.untyped_storage().nbytes() <= 8 for t in state.values())
        moved.append(offload(optimizer, tmp_path))

    moved: list[object] = []
    model, _ = trained(KNOWN["adamw"], in_file)
    other, _ = trained(KNOWN["adamw"], lambda _: None)
    assert torch.equal(model.weight, other.weight)  # type: ignore[arg-type]


def test_of_others_nothing_is_known() -> None:
    class Own(torch.optim.Adam):
        """Keeps more than its parent."""

    model = nn.Linear(4, 4)
    momentum = of(sgd, momentum=0.9)(model)
    own = Own(model.parameters())
    assert not open_state(momentum)
    assert not open_state(own)
    assert not open_state(KNOWN["adamw8bit"](model), thin=True)  # type: ignore[no-untyped-call]
    assert not momentum.state
    assert not own.state


def test_closed_it_is_as_before() -> None:
    optimizer = KNOWN["adamw"](nn.Linear(4, 4))  # type: ignore[no-untyped-call]
    open_state(optimizer)
    close_state(optimizer)
    assert state_bytes(optimizer) == 0
    assert open_state(optimizer)
