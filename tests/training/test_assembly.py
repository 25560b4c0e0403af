"""A plan becomes a run, or one clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny_model import CONTEXT_LENGTH, build_folder

from tiermesh.errors import BadSpec
from tiermesh.kernel.training.assembly import assemble
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training import TrainingSpec


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
