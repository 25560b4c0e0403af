"""From documents to rows of tensors: what is shown, what must be predicted, and what is counted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.training.datasets import corpus_of

from tiermesh.kernel.training.data import plan as plans
from tiermesh.kernel.training.data.augment import TokenMasking
from tiermesh.kernel.training.data.batches import NOTHING, MicroBatch, PackedSource, PairSource
from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.data.plan import Long, Plan, cached_plan, plan_rows

SEQ_LEN = 16


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=30))
    learned = draw(st.lists(st.integers(0, 1), min_size=sum(lengths), max_size=sum(lengths)))
    return corpus_of(Path(), lengths, vocabulary=60_000, learned=learned)


def planned(corpus: Corpus, long: Long = "cut", *, packing: bool = True) -> Plan:
    return plan_rows(corpus, np.arange(corpus.documents), SEQ_LEN, long=long, packing=packing)


def batch_of(corpus: Corpus, plan: Plan) -> MicroBatch:
    return PackedSource(corpus, plan, padding=1).micro(range(plan.rows))


def expected_targets(corpus: Corpus, reach: int) -> list[tuple[int, int]]:
    """(token it follows, target) for every token that is learnt and is not a document's first."""
    places = (at for start, end in pairwise(corpus.bounds) for at in range(start + 1, min(end, start + reach)))
    return sorted((int(corpus.tokens[at - 1]), int(corpus.tokens[at])) for at in places if corpus.learned[at])


def predicted(batch: MicroBatch) -> list[tuple[int, int]]:
    shown = batch.labels_BT != NOTHING
    return sorted(zip(batch.tokens_BT[shown].tolist(), batch.labels_BT[shown].tolist(), strict=True))


@settings(deadline=None)
@given(corpora())
def test_split_documents_lose_no_target(corpus: Corpus) -> None:
    plan = planned(corpus, "split")
    if plan.rows:
        assert predicted(batch_of(corpus, plan)) == expected_targets(corpus, reach=10**9)


@settings(deadline=None)
@given(corpora())
def test_cut_documents_keep_their_beginning_and_are_counted(corpus: Corpus) -> None:
    plan = planned(corpus, "cut")
    assert plan.cut == int((corpus.lengths > SEQ_LEN).sum())
    if plan.rows:
        assert predicted(batch_of(corpus, plan)) == expected_targets(corpus, reach=SEQ_LEN)


@settings(deadline=None)
@given(corpora(), st.booleans())
def test_positions_restart_with_each_document_and_padding_is_nobodys(corpus: Corpus, packing: bool) -> None:
    plan = planned(corpus, packing=packing)
    if not plan.rows:
        return
    batch = batch_of(corpus, plan)
    assert batch.tokens_BT.shape == batch.positions_BT.shape == batch.labels_BT.shape
    assert batch.tokens_BT.dtype == batch.positions_BT.dtype == batch.labels_BT.dtype == torch.int64
    for row in range(plan.rows):
        lengths = [int(plan.lengths[item]) for item in plan.items_of(row)]
        used = sum(lengths)
        assert used <= SEQ_LEN
        assert batch.positions_BT[row, :used].tolist() == [at for length in lengths for at in range(length)]
        assert batch.positions_BT[row, used:].eq(0).all()
        assert batch.tokens_BT[row, used:].eq(1).all()
        assert batch.labels_BT[row, used:].eq(NOTHING).all()


@settings(deadline=None)
@given(corpora(), st.data())
def test_targets_are_counted_without_reading_tokens(corpus: Corpus, data: st.DataObject) -> None:
    plan = planned(corpus, data.draw(st.sampled_from(["cut", "split"])))
    if not plan.rows:
        return
    source = PackedSource(corpus, plan, padding=0)
    rows = data.draw(st.lists(st.integers(0, plan.rows - 1), min_size=1, max_size=6))
    batch = source.micro(rows)
    assert batch.targets == source.targets(rows) == float((batch.labels_BT != NOTHING).sum())
    assert source.tokens(rows) == sum(int(plan.lengths[plan.items_of(row)].sum()) for row in rows)


def test_a_row_is_no_wider_than_it_needs() -> None:
    corpus = corpus_of(Path(), [200, 3, 40])
    source = PackedSource(corpus, plan_rows(corpus, np.arange(3), 512, long="cut", packing=False), padding=0)
    assert [source.micro([row]).tokens_BT.shape[1] for row in range(3)] == [224, 32, 64]


def test_documents_without_a_target_in_a_row_are_left_out_and_counted() -> None:
    learned = [0] * 20 + [1] * 5 + [0] * 5
    corpus = corpus_of(Path(), [25, 5], learned=learned)
    cut = planned(corpus)
    assert (cut.rows, cut.unlearnable, cut.cut) == (0, 2, 1)
    split = planned(corpus, "split")
    assert (split.rows, split.unlearnable) == (1, 1)


def test_a_weight_scales_the_targets_of_its_record() -> None:
    corpus = corpus_of(Path(), [5, 4])
    corpus.weights[:] = (0.5, 2.0)
    plan = planned(corpus)
    batch = batch_of(corpus, plan)
    assert batch.weights_BT is not None
    assert batch.targets == 4 * 0.5 + 3 * 2.0 == float(batch.weights_BT.sum())
    assert sorted(batch.weights_BT[batch.labels_BT != NOTHING].tolist()) == [0.5] * 4 + [2.0] * 3
    corpus.weights[:] = 1
    assert batch_of(corpus, planned(corpus)).weights_BT is None


def test_a_record_named_twice_is_trained_on_twice() -> None:
    corpus = corpus_of(Path(), [5, 4])
    plan = plan_rows(corpus, np.array([0, 1, 1]), SEQ_LEN, long="cut", packing=True)
    assert batch_of(corpus, plan).targets == 4 + 3 + 3


def test_counting_targets_a_stretch_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 60, 300).tolist()
    corpus = corpus_of(Path(), lengths, learned=random.integers(0, 2, sum(lengths)).tolist())
    shuffled = random.permutation(300)
    whole = plan_rows(corpus, shuffled, SEQ_LEN, long="split", packing=True)
    monkeypatch.setattr(plans, "STRETCH_TOKENS", 100)
    assert plan_rows(corpus, shuffled, SEQ_LEN, long="split", packing=True).digest == whole.digest
    assert whole.row_targets.sum() == len(expected_targets(corpus, reach=10**9))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(corpora())
def test_a_plan_is_made_once(tmp_path: Path, corpus: Corpus) -> None:
    made: list[Plan] = []

    def make() -> Plan:
        made.append(planned(corpus, "split"))
        return made[-1]

    key = str(corpus.tokens[:20]) + str(corpus.learned[:50])
    first, second = cached_plan(tmp_path, key, make), cached_plan(tmp_path, key, make)
    assert len(made) <= 1
    for name in plans.Plan.__dataclass_fields__:
        assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\0" * 1000], ids=["empty", "cut off", "zeros"])
def test_a_damaged_plan_is_made_again(tmp_path: Path, damage: bytes) -> None:
    corpus = corpus_of(tmp_path, [5, 4, 30])
    first = cached_plan(tmp_path, "k", lambda: planned(corpus))
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    assert cached_plan(tmp_path, "k", lambda: planned(corpus)).digest == first.digest
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


@pytest.mark.parametrize("change", ["seq_len", "packing", "documents", "weights"])
def test_a_digest_changes_with_what_is_trained_on(change: str) -> None:
    corpus = corpus_of(Path(), [9, 4, 12, 7])
    arguments: dict[str, Any] = {"documents": np.arange(4), "seq_len": 16, "long": "cut", "packing": True}
    before = plan_rows(corpus, **arguments).digest
    assert plan_rows(corpus, **arguments).digest == before
    if change == "weights":
        corpus.weights[0] = 3
    else:
        arguments[change] = {"seq_len": 15, "packing": False, "documents": np.arange(3)}[change]
    assert plan_rows(corpus, **arguments).digest != before


def test_pairs_have_one_shape_and_the_same_rows() -> None:
    """Records 0 to 2 as pairs of documents; the second one's worse answer has nothing within a row."""
    lengths = [6, 9, 5, 40, 7, 3]
    learned = [0, 0, 1, 1, 1, 1] + [0, 0] + [1] * 7 + [1] * 5 + [0] * 39 + [1] + [1] * 7 + [1] * 3
    corpus = corpus_of(Path(), lengths, learned=learned)
    better, worse = (plan_rows(corpus, np.arange(3) * 2 + side, SEQ_LEN, long="cut", packing=False) for side in (0, 1))
    source = PairSource(corpus, better, worse, padding=0)
    assert (source.rows, source.targets([0, 1]), source.tokens([0, 1])) == (2, 2.0, 6 + 9 + 7 + 3)
    pair = source.micro([1, 0])
    assert pair.chosen.tokens_BT.shape == pair.rejected.tokens_BT.shape
    assert pair.chosen.tokens_BT[1, :6].tolist() == corpus.tokens[:6].tolist()
    assert pair.rejected.tokens_BT[1, :9].tolist() == corpus.tokens[6:15].tolist()
    assert pair.rejected.tokens_BT[0, :3].tolist() == corpus.tokens[-3:].tolist()
    assert (pair.chosen.targets, pair.rejected.targets) == (6 + 4, 2 + 7)


class TestTokenMasking:
    CORPUS = corpus_of(Path(), [40, 60, 100, 100, 100])

    def shown(self, *, share: float = 0.3, epoch: int = 0, rows: tuple[int, ...] = (0, 1), **more: Any) -> Any:
        plan = plan_rows(self.CORPUS, np.arange(5), 128, long="cut", packing=True)
        masking = TokenMasking(share=share, seed=7, vocabulary=400, **more)
        return PackedSource(self.CORPUS, plan, 0, masking).micro(rows, epoch=epoch)

    def test_a_share_of_the_inputs_is_replaced_and_what_must_be_predicted_stays(self) -> None:
        plain, masked = self.shown(share=0.0), self.shown(mask=2)
        changed = plain.tokens_BT != masked.tokens_BT
        assert 0.2 < float(changed.float().mean()) < 0.4
        assert masked.tokens_BT[changed].eq(2).all()
        assert torch.equal(plain.labels_BT, masked.labels_BT)
        assert not changed[plain.positions_BT == 0].any()

    def test_it_is_the_same_for_a_row_and_epoch_and_another_one_for_others(self) -> None:
        first = self.shown().tokens_BT
        assert torch.equal(first, self.shown().tokens_BT)
        assert torch.equal(first[1], self.shown(rows=(1, 0)).tokens_BT[0])
        assert not torch.equal(first, self.shown(epoch=1).tokens_BT)

    def test_some_tokens_are_kept(self) -> None:
        plain = self.shown(share=0.0).tokens_BT
        kept = frozenset(plain[0, :50].tolist())
        masked = self.shown(share=0.9, kept=kept).tokens_BT
        assert torch.equal(masked[0, :50], plain[0, :50])
