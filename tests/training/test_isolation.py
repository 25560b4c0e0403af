from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import tiny_model
from tests.tiny_model import Kind
from tests.training.datasets import corpus_of

from tiermesh.kernel.training.data.batches import MicroBatch, PackedSource
from tiermesh.kernel.training.data.isolation import leakage
from tiermesh.kernel.training.data.plan import plan_rows

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gpt2")
BOUND = 1e-5
LENGTHS = (37, 20, 5, 1, 2, 60, 3, 41, 64, 12, 9, 33)
SEQ_LEN = 64


def logits(model: Any, batch: MicroBatch, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=batch.tokens_BT, position_ids=batch.positions_BT, **{"use_cache": False} | more)
    return torch.as_tensor(found.logits)


def sources(tmp_path: Any) -> tuple[PackedSource, PackedSource]:
    """The same documents, packed and each alone."""
    import numpy as np

    corpus = corpus_of(tmp_path, LENGTHS, vocabulary=tiny_model.VOCABULARY)
    documents = np.arange(len(LENGTHS))
    packed, alone = (
        PackedSource(corpus, plan_rows(corpus, documents, SEQ_LEN, long="cut", packing=packing), padding=0)
        for packing in (True, False)
    )
    return packed, alone


def worst(model: Any, packed: PackedSource, alone: PackedSource, **more: Any) -> float:
    """The largest difference of any document's logits between its packed row and a row of its own; all rows at once."""
    together = logits(model, packed.micro(range(packed.rows)), **more)
    differences = []
    for row in range(packed.rows):
        at = 0
        for item in packed.plan.items_of(row):
            length = int(packed.plan.lengths[item])
            single = logits(model, alone.micro([int(item)]))[0, :length]
            differences.append(float((together[row, at : at + length] - single).abs().max()))
            at += length
    assert len(differences) == packed.plan.lengths.size
    return max(differences)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_computed_as_if_each_were_alone(kind: Kind, tmp_path: Any) -> None:
    model = tiny_model.build_model(kind).eval()
    packed, alone = sources(tmp_path)
    assert 1 < packed.rows < len(LENGTHS)
    assert worst(model, packed, alone) <= BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_ones_or_a_cache_would_leak(kind: Kind, tmp_path: Any) -> None:
    """Why batches carry no mask: the test above can fail."""
    model = tiny_model.build_model(kind).eval()
    packed, alone = sources(tmp_path)
    ones = torch.ones_like(packed.micro(range(packed.rows)).tokens_BT)
    assert worst(model, packed, alone, attention_mask=ones) > 0.01
    assert worst(model, packed, alone, use_cache=True) > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_asked_whether_it_keeps_documents_apart(kind: Kind, dtype: torch.dtype) -> None:
    model = tiny_model.build_model(kind).to(dtype).train()
    before = torch.get_rng_state()
    assert leakage(model) == 0.0
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_looks_at_everything_before_is_found_out() -> None:
    class Summing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 50)
            self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=50))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=self.embedding(input_ids).cumsum(dim=1))

    assert leakage(Summing()) > 0.01


def test_a_model_without_positions_can_keep_nothing_apart() -> None:
    class Deaf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=50))

        def forward(self, input_ids: torch.Tensor) -> Any:
            raise AssertionError("is never reached: it takes no position_ids")

    assert leakage(Deaf()) == float("inf")
