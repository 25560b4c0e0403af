"""The loss that keeps no logits is the loss that does, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from tiermesh.kernel import rounding
from tiermesh.kernel.training import loss
from tiermesh.kernel.training.loss import NO_LABEL, Head, log_probabilities, summed_loss

B, T, E, V = 3, 150, 24, 97
"""More labels than fit in one chunk, and not a multiple of one."""


def inputs(*, biased: bool, trained: bool) -> tuple[torch.Tensor, Head, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    states_BTE = torch.randn(B, T, E, generator=chance).requires_grad_()
    weight_VE = torch.randn(V, E, generator=chance).requires_grad_(trained)
    bias_V = torch.randn(V, generator=chance).requires_grad_(trained) if biased else None
    labels_BT = torch.randint(0, V, (B, T), generator=chance)
    labels_BT[0, :40] = labels_BT[2, 100:] = NO_LABEL
    return states_BTE, Head(weight_VE, bias_V), labels_BT, torch.rand(B, T, generator=chance)


def plainly(states_BTE: torch.Tensor, head: Head, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_NV = linear(states_BTE, head.weight_VE, head.bias_V).view(-1, V)
    return cross_entropy(logits_NV, labels_BT.view(-1), reduction="none", ignore_index=NO_LABEL).view(B, T)


def gradients(total: torch.Tensor, states_BTE: torch.Tensor, head: Head) -> list[torch.Tensor]:
    wanted = [one for one in (states_BTE, head.weight_VE, head.bias_V) if one is not None and one.requires_grad]
    return list(torch.autograd.grad(total, wanted))


@pytest.fixture(params=["as many rows as there are", "filled up"])
def filling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are filled up in bf16 only, whose own errors would hide others."""
    if request.param == "filled up":
        monkeypatch.setattr(rounding, "_compiles_each", lambda *_: True)


@pytest.mark.usefixtures("filling")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_sum_and_its_gradients(biased: bool, trained: bool, weighted: bool) -> None:
    states_BTE, head, labels_BT, weights_BT = inputs(biased=biased, trained=trained)
    ours = summed_loss(states_BTE, head, labels_BT, weights_BT if weighted else None)
    each_BT = plainly(states_BTE, head, labels_BT)
    theirs = (each_BT * weights_BT if weighted else each_BT).sum()
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-6)
    for one, other in zip(gradients(ours / 7, states_BTE, head), gradients(theirs / 7, states_BTE, head), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.usefixtures("filling")
@pytest.mark.parametrize("trained", [False, True])
def test_each_label_may_have_a_gradient_of_its_own(trained: bool) -> None:
    states_BTE, head, labels_BT, factors_BT = inputs(biased=True, trained=trained)
    ours_BT, theirs_BT = log_probabilities(states_BTE, head, labels_BT), -plainly(states_BTE, head, labels_BT)
    torch.testing.assert_close(ours_BT, theirs_BT, atol=1e-5, rtol=1e-5)
    ours = gradients((ours_BT * factors_BT).sum(), states_BTE, head)
    theirs = gradients((theirs_BT * factors_BT).sum(), states_BTE, head)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_rows_are_filled_up_where_torch_keeps_what_it_compiles() -> None:
    for rows, spare in ((0, 0), (1, 31), (32, 0), (370, 14)):
        assert loss._spare_rows(torch.empty(rows, E, dtype=torch.bfloat16)) == spare
        assert loss._spare_rows(torch.empty(rows, E)) == 0


@pytest.mark.usefixtures("filling")
def test_no_label_at_all_is_no_loss_and_no_gradient() -> None:
    states_BTE, head, labels_BT, _ = inputs(biased=False, trained=True)
    total = summed_loss(states_BTE, head, torch.full_like(labels_BT, NO_LABEL))
    assert float(total.detach()) == 0.0
    assert all(not one.any() for one in gradients(total, states_BTE, head))


def test_logits_are_never_there_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_ROWS", 16)
    states_BTE, head, labels_BT, _ = inputs(biased=False, trained=False)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = summed_loss(states_BTE, head, labels_BT)
    total.backward()  # type: ignore[no-untyped-call]
    assert states_BTE.grad is not None
    assert max(kept, default=0) <= states_BTE.numel()
