"""From the file that a spec names to the rows of a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.datasets import spec, tokenizer, write_jsonl

from tiermesh.errors import BadData
from tiermesh.kernel.training.data import dataset
from tiermesh.kernel.training.data.batches import NOTHING, PackedSource, PairSource
from tiermesh.kernel.training.data.dataset import Dataset, open_dataset
from tiermesh.kernel.training.data.splitting import held_out, repeated


def opened(data: Path, /, **fields: Any) -> Dataset:
    eval_data = fields.pop("eval_data", None)
    packing = fields.pop("pack", True)
    return open_dataset(
        spec(**fields), data, tokenizer(), cache=data.parent / "tokens", eval_data=eval_data, packing=packing
    )


def texts(source: Any) -> list[str]:
    """The documents of a source, in order."""
    assert isinstance(source, PackedSource)
    plan, corpus = source.plan, source._corpus
    return [
        tokenizer().decode(corpus.tokens[start : start + length], skip_special_tokens=True)
        for start, length in zip(plan.starts, plan.lengths, strict=True)
    ]


def numbered(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"the fox {at}", **more} for at in range(count)]


FORMS = ["jsonl", "json", "csv", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_says_the_same(form: str, tmp_path: Path) -> None:
    records = [{"prompt": f"a b {at}", "completion": f" fox\n{at}, é"} for at in range(20)]
    path = tmp_path / f"data.{form}"
    match form:
        case "jsonl":
            write_jsonl(path, records)
        case "json":
            path.write_text(json.dumps(records))
        case "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["prompt", "completion"])
                writer.writeheader()
                writer.writerows(records)
        case "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    found = opened(path, eval_fraction=0.0)
    assert found.report["format"] == form
    assert sorted(texts(found.train)) == sorted(r["prompt"] + r["completion"] for r in records)
    batch = found.train.micro(range(found.train.rows))
    assert isinstance(found.train, PackedSource)
    learnt = batch.labels_BT[batch.labels_BT != NOTHING]  # type: ignore[union-attr]
    assert tokenizer().decode(learnt, skip_special_tokens=True).count(" fox\n") == 20


def test_running_text_is_split_and_all_of_it_is_learnt(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over the lazy dog, " * 100
    (tmp_path / "a.txt").write_text(text)
    found = opened(tmp_path / "a.txt", task="pretrain", eval_fraction=0.0)
    tokens = tokenizer()(text.strip("\r\n"))["input_ids"]
    assert found.report["format"] == "text"
    assert found.train.targets(range(found.train.rows)) == len(tokens)  # One more for the end, one less for the start.
    assert found.report["cut"] == 0
    assert opened(tmp_path / "a.txt", eval_fraction=0.0).report["cut"] == 1


def test_held_out_records_are_nowhere_in_the_training_data(tmp_path: Path) -> None:
    records = numbered(200) + [{"text": f" the  fox {at}\n"} for at in range(0, 200, 3)]
    found = opened(write_jsonl(tmp_path / "d.jsonl", records), eval_fraction=0.1)
    trained = {" ".join(text.split()) for text in texts(found.train)}
    held = [" ".join(text.split()) for text in texts(found.held_out)]
    assert len(held) == len(set(held)) == 20
    assert trained.isdisjoint(held)
    assert len(trained) == 180
    assert (found.report["held_out"], found.report["duplicates"]) == (20, 67)


def test_the_same_records_are_held_out_at_each_start_and_others_with_another_seed(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", numbered(100))
    first, again, other = (texts(opened(data, eval_fraction=0.1, seed=seed).held_out) for seed in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)


def test_a_file_of_held_out_records_takes_its_records_from_the_training_data(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", numbered(30))
    away = write_jsonl(tmp_path / "e.jsonl", [{"text": "the  fox 7"}, {"text": "something else"}])
    found = opened(data, eval_data=away)
    assert sorted(texts(found.held_out)) == ["something else", "the  fox 7"]
    assert len(texts(found.train)) == 29
    assert "the fox 7" not in texts(found.train)
    assert found.report["withheld"] == 1


def test_one_record_alone_is_not_held_out(tmp_path: Path) -> None:
    found = opened(write_jsonl(tmp_path / "d.jsonl", numbered(1)), eval_fraction=0.5)
    assert (found.held_out, found.train.rows) == (None, 1)


def test_examples_are_repeated_by_their_weight(tmp_path: Path) -> None:
    records = [{"text": f"fox {at}", "times": times} for at, times in enumerate([0, 1, 3])]
    found = opened(write_jsonl(tmp_path / "d.jsonl", records), data={"fields": {"repeat": "times"}}, eval_fraction=0.0)
    assert texts(found.train) == ["fox 1", "fox 2", "fox 2", "fox 2"]


def test_packing_is_left_where_spec_or_model_say_so(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", numbered(40))
    rows = [opened(data, eval_fraction=0.0, **more).train.rows for more in ({}, {"packing": False}, {"pack": False})]
    assert rows[0] < 10
    assert rows[1:] == [40, 40]


def test_pairs_become_two_batches_of_one_shape(tmp_path: Path) -> None:
    records = [
        {"prompt": "a b", "chosen": " fox", "rejected": " dog dog"},
        {"prompt": [{"role": "user", "content": "x"}], "chosen": "yes", "rejected": "no"},
        {"prompt": "a" * 100, "chosen": "too far away", "rejected": "to be learnt"},
    ]
    found = opened(write_jsonl(tmp_path / "d.jsonl", records), task="preference", eval_fraction=0.0)
    assert isinstance(found.train, PairSource)
    assert (found.train.rows, found.report["unlearnable"], found.report["shapes"]) == (2, 2, {"pair": 3})
    pair = found.train.micro([0, 1])
    decode = tokenizer().decode
    learnt = [
        [decode(labels[labels != NOTHING], skip_special_tokens=True) for labels in side.labels_BT]
        for side in (pair.chosen, pair.rejected)
    ]
    assert learnt == [[" fox", "yes"], [" dog dog", "no"]]
    assert pair.chosen.tokens_BT.shape == pair.rejected.tokens_BT.shape


def test_tokens_are_masked_only_while_training(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", numbered(100))
    plain, masked = (opened(data, data={"token_masking": share}, eval_fraction=0.2) for share in (0.0, 0.5))
    assert (plain.train.micro([0]).tokens_BT != masked.train.micro([0]).tokens_BT).any()  # type: ignore[union-attr]
    assert plain.held_out is not None
    assert masked.held_out is not None
    assert (plain.held_out.micro([0]).tokens_BT == masked.held_out.micro([0]).tokens_BT).all()  # type: ignore[union-attr]


def test_data_that_is_all_held_out_is_an_error_that_says_so(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", numbered(4))
    held = write_jsonl(tmp_path / "held.jsonl", numbered(4))
    with pytest.raises(BadData, match=r"every record is also in the file of held-out ones \(eval_path\)"):
        opened(data, eval_data=held)


def test_data_without_a_target_within_a_row_is_an_error(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a b c " * 50, "completion": "x"}] * 3)
    with pytest.raises(BadData, match=r"no record has a target within 64 tokens \(seq_len\)"):
        opened(data)


def test_a_second_start_plans_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", numbered(100))
    first = opened(data)
    monkeypatch.setattr(dataset, "plan_rows", None)
    assert opened(data).train.digest == first.train.digest
    with pytest.raises(TypeError):
        opened(data, seq_len=32)


def test_what_is_told_of_a_data_set(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [*numbered(40), {"text": ""}, {"text": "the fox 1"}])
    told = opened(data, eval_fraction=0.1).report
    json.dumps(told)
    assert {name: told[name] for name in ("format", "unit", "records", "bad_records", "shapes", "held_out")} == {
        "format": "jsonl",
        "unit": "line",
        "records": 41,
        "bad_records": 1,
        "shapes": {"text": 41},
        "held_out": 4,
    }
    assert told["bad"] == [{"line": 41, "reason": "text: is empty"}]
    lengths = [len(tokenizer()(f"the fox {at}")["input_ids"]) + 1 for at in [*range(40), 1]]
    assert told["tokens"] == sum(lengths)
    assert told["lengths"]["max"] == max(lengths)
    assert 0.8 < told["fill"] <= 1


hashes = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=200).map(
    lambda found: np.array(found, dtype=np.uint64)
)


@settings(deadline=None)
@given(hashes, st.floats(0.001, 0.5), st.integers(0, 2**63 - 1))
def test_equal_records_are_on_one_side(found: Any, fraction: float, seed: int) -> None:
    held = held_out(found, fraction, seed)
    assert not set(found[held].tolist()) & set(found[~held].tolist())
    different = len(set(found.tolist()))
    count = len(set(found[held].tolist()))
    if different > 1:
        assert 1 <= count < different
        assert abs(count - fraction * different) <= 1
    # The order of the records changes nothing.
    assert set(found[::-1][held_out(found[::-1], fraction, seed)].tolist()) == set(found[held].tolist())


def test_a_fraction_of_a_repetition_is_for_that_share_of_the_records() -> None:
    count = 10_000
    found = np.random.default_rng(0).integers(0, 2**63, count).astype(np.uint64)
    seen = repeated(np.arange(count), np.full(count, 2.3, dtype=np.float32), found, seed=5)
    times = np.bincount(seen, minlength=count)
    assert set(times.tolist()) == {2, 3}
    assert abs((times == 3).mean() - 0.3) < 0.02
