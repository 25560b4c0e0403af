"""An adapter put into its base answers as both of them together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiermesh.kernel.training import merging
from tiermesh.kernel.training.merging import UNFIT, merged

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks

TOKENS = torch.arange(5, 25).view(1, -1)


def test_the_merged_model_computes_what_base_and_adapter_do(tmp_path: Path) -> None:
    base = tiny_model.build_folder(tmp_path / "base")
    adapter = tiny_model.build_adapter(tmp_path / "adapter", seed=1)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    merged(base, adapter, tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    both = PeftModel.from_pretrained(tiny_model.build_model(), adapter).eval()
    with torch.inference_mode():
        torch.testing.assert_close(whole(TOKENS).logits, both(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("the fox").input_ids
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]


def test_what_does_not_go_together_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model.build_folder(tmp_path / "base")
    stranger = tiny_model.build_adapter(tmp_path / "stranger", "gpt2")
    monkeypatch.setattr("sys.argv", ["merging", str(base), str(stranger), str(tmp_path / "merged")])
    with pytest.raises(SystemExit) as ended:
        merging.main()
    assert ended.value.code == UNFIT
    assert capsys.readouterr().err.splitlines()[-1].startswith("they can't be merged: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "stranger"]
