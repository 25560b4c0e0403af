"""A plan becomes a run, or one clear refusal."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tests.tiny_model import CONTEXT_LENGTH, build_folder

from tiermesh.errors import BadSpec, CheckpointUnusable
from tiermesh.kernel.training.assembly import assemble, chosen
from tiermesh.kernel.training.checkpoints import Checkpoints, Snapshot
from tiermesh.kernel.training.data.corpus import NAMED_BAD
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec
from tiermesh.protocol.training_events import DataReady, TrainingEvent


@pytest.mark.parametrize("longer", [False, True])
def test_a_row_longer_than_the_model_was_made_for(tmp_path: Path, *, longer: bool) -> None:
    """What the data has counts, not what the spec would allow."""
    data = tmp_path / "data.jsonl"
    words = 4 * CONTEXT_LENGTH if longer else 4
    data.write_text("".join(json.dumps({"text": f"{n} " + "word " * words}) + "\n" for n in range(8)))
    model = build_folder(tmp_path / "model")
    spec = TrainingSpec(
        model_name="tiny", dataset_path=str(data), seq_len=2 * CONTEXT_LENGTH, precision="fp32", eval_fraction=0.0
    )
    plan = RunPlan(spec=spec, model_path=str(model), data_path=str(data))
    if longer:
        with pytest.raises(BadSpec, match=f"set seq_len: {CONTEXT_LENGTH}"):
            assemble(RunFolder(tmp_path / "run"), plan, lambda event: None)
    else:
        assert assemble(RunFolder(tmp_path / "run"), plan, lambda event: None).data.train.rows


def test_records_left_out_are_named_in_the_event_and_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first ones by their lines, all of them counted; and whether the tokens were there already."""
    data = tmp_path / "data.jsonl"
    good = [json.dumps({"text": f"the quick brown fox {n}"}) for n in range(8)]
    data.write_text("\n".join([*good, "no json", '{"text": 3}', *["[]"] * 30]))
    spec = TrainingSpec(model_name="tiny", dataset_path=str(data), precision="fp32", eval_fraction=0.0)
    plan = RunPlan(spec=spec, model_path=str(build_folder(tmp_path / "model")), data_path=str(data))
    said: list[TrainingEvent] = []
    with caplog.at_level(logging.WARNING, logger="tiermesh"):
        for _ in range(2):
            assemble(RunFolder(tmp_path / "run"), plan, said.append)
    first, again = (event for event in said if isinstance(event, DataReady))
    assert (first.records, first.bad_records, len(first.bad)) == (8, 32, NAMED_BAD)
    assert first.bad[0].startswith("line 9 is not JSON")
    assert first.bad[1] == "line 10 text: is a number, not a text"
    assert (first.cached, again.cached) == (False, True)
    assert again.bad == first.bad
    assert f"left out: {first.bad[1]}" in caplog.messages


def test_the_best_checkpoint_is_begun_with_where_it_is_asked_for(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step, loss in ((1, 3.0), (2, 1.0), (3, None)):
        kept.save(Snapshot(step=step, position=step, tensors={"one": torch.ones(1)}, facts={}, loss=loss))
    best, newest = chosen(kept, best=True), chosen(kept, best=False)
    assert best is not None
    assert best.step == 2
    assert newest is not None
    assert newest.step == 3


def test_without_an_evaluated_checkpoint_there_is_no_best(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(Snapshot(step=1, position=1, tensors={"one": torch.ones(1)}, facts={}))
    with pytest.raises(CheckpointUnusable, match="leave --best out"):
        chosen(kept, best=True)


def test_records_left_out_of_the_held_out_file_are_told_too(tmp_path: Path) -> None:
    data, held_out = tmp_path / "data.jsonl", tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps({"text": f"the quick brown fox {n}"}) + "\n" for n in range(8)))
    held_out.write_text('no json\n{"text": "a lazy dog, the quick fox"}')
    spec = TrainingSpec(model_name="tiny", dataset_path=str(data), eval_path=str(held_out), precision="fp32")
    model = build_folder(tmp_path / "model")
    plan = RunPlan(spec=spec, model_path=str(model), data_path=str(data), eval_path=str(held_out))
    said: list[TrainingEvent] = []
    assemble(RunFolder(tmp_path / "run"), plan, said.append)
    (ready,) = (event for event in said if isinstance(event, DataReady))
    assert (ready.bad_records, len(ready.bad)) == (1, 1)
    assert ready.bad[0].startswith("eval_path line 1 is not JSON")
