"""What each method trains, of several architectures, and what it leaves."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_model
from tests.training.runs import Rows, run_of, spec_of

from tiermesh.adapters.lora_folder import read_adapter
from tiermesh.errors import BadSpec, ModelUnusable
from tiermesh.kernel.training import evaluation, low_rank, models, result
from tiermesh.kernel.training.layers import report
from tiermesh.kernel.training.loss import TokenLoss
from tiermesh.kernel.training.run import Run
from tiermesh.protocol.run_folder import RunPlan

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's

KINDS: tuple[tiny_model.Kind, ...] = ("llama", "qwen2", "gpt2")
METHODS = ("lora", "qlora", "full_finetune")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_masters_are_fp32_and_all_of_them_learn(folder: Path, tmp_path: Path, method: str, precision: str) -> None:
    rate = 3e-3 if method == "full_finetune" else 1e-2
    run, _ = run_of(tmp_path, folder, spec_of(method=method, precision=precision, learning_rate=rate), steps=25)
    before = {name: tensor.detach().clone() for name, tensor in run.trainee.trainables.items()}
    first = evaluation.held_out(run.trainee, TokenLoss(), Rows(), 8)
    run.go()
    last = evaluation.held_out(run.trainee, TokenLoss(), Rows(), 8)
    assert first is not None
    assert last is not None
    assert last.loss < 0.8 * first.loss
    assert {tensor.dtype for tensor in run.trainee.trainables.values()} == {torch.float32}
    still = [name for name, tensor in run.trainee.trainables.items() if bool((tensor == before[name]).all())]
    assert not still


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_memory_and_no_gradient(folder: Path, method: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        trainee = models.load(spec_of(method=method, checkpointing=checkpointing, lora={"dropout": 0.1}), folder)
        with torch.no_grad():
            for tensor in trainee.trainables.values():
                tensor.add_(0.01)
        torch.manual_seed(3)
        TokenLoss().summed(trainee, Rows().micro(range(4))).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: one.grad for name, one in trainee.trainables.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_ours_computes_what_peft_computes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for modules in (low_rank.MODULES, {}):
        monkeypatch.setattr(low_rank, "MODULES", modules)
        trainee = models.load(spec_of(), folder)
        with torch.no_grad():
            for tensor in trainee.trainables.values():
                tensor.add_(0.01)
        trainee.model.eval()
        TokenLoss().summed(trainee, Rows().micro(range(4))).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: one.grad for name, one in trainee.trainables.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=1e-3, msg=name)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 500)
    kept = low_rank._kept(x, 0.05)
    assert 0.049 < 1 - kept.float().mean() < 0.051
    assert low_rank._kept(x, 0.05) is kept
    assert not torch.equal(low_rank._kept(x.clone(), 0.05), kept)
    narrow = x.to(torch.bfloat16) * -3
    assert torch.equal(low_rank._only(narrow, kept), narrow * kept)


class TestResult:
    def test_an_adapter_is_what_the_inference_worker_serves_and_what_peft_loads(
        self, folder: Path, tmp_path: Path
    ) -> None:
        run = trained(tmp_path, folder, method="lora")
        told = write(run, tmp_path, folder)
        assert read_adapter("tiny", str(told)).size_bytes > 0
        assert json.loads((told / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
        ours = logits_of(run.trainee.model)
        theirs = logits_of(with_peft(folder, told))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        assert (ours - logits_of(causal(folder))).abs().max() > 0.1

        from tiermesh.kernel.inference.loading import load

        load(folder, threads=1, precision="fp32", adapters={"tiny": told})

    @pytest.mark.parametrize("method", ["lora", "qlora"])
    def test_merged_is_a_model_that_answers_like_the_adapter(self, llama: Path, tmp_path: Path, method: str) -> None:
        run = trained(tmp_path, llama, method=method, merge=True)
        adapter = write(run, tmp_path / "adapter", llama, merge=False)
        merged = write(run, tmp_path / "merged", llama, merge=True)
        assert not (merged / "adapter_config.json").exists()
        torch.testing.assert_close(
            logits_of(causal(merged)), logits_of(with_peft(llama, adapter)), atol=1e-3, rtol=1e-3
        )

    def test_a_whole_model_is_safetensors_that_load(self, folder: Path, tmp_path: Path) -> None:
        run = trained(tmp_path, folder, method="full_finetune")
        told = write(run, tmp_path, folder)
        torch.testing.assert_close(logits_of(causal(told)), logits_of(run.trainee.model), atol=1e-4, rtol=1e-4)
        assert (told / "tokenizer.json").exists()

    def test_the_card_says_where_it_comes_from_and_no_path(self, llama: Path, tmp_path: Path) -> None:
        run = trained(tmp_path, llama, method="lora")
        card = (write(run, tmp_path, llama) / "README.md").read_text()
        for part in ("base_model: tiny", "sha256:data", "rows", '"data.jsonl"', "| Steps | 12 |", "torch 2."):
            assert part in card
        assert str(tmp_path) not in card

    def test_an_older_result_is_replaced_whole(self, llama: Path, tmp_path: Path) -> None:
        run = trained(tmp_path, llama, method="lora")
        (tmp_path / "result").mkdir()
        (tmp_path / "result" / "old").touch()
        write(run, tmp_path, llama)
        assert sorted(file.name for file in (tmp_path / "result").iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "origin.json",
        ]

    def test_the_umask_says_who_may_read_it(self, llama: Path, tmp_path: Path) -> None:
        run = trained(tmp_path, llama, method="lora")
        (tmp_path / "any").touch()
        expected = (tmp_path / "any").stat().st_mode
        assert {file.stat().st_mode for file in write(run, tmp_path, llama).iterdir()} == {expected}


class TestRefusals:
    def test_targets_that_are_not_there(self, llama: Path) -> None:
        with pytest.raises(BadSpec, match=r"no linear layer c_attn; it has down_proj, gate_proj"):
            models.load(spec_of(lora={"targets": ["c_attn"]}), llama)

    def test_files_that_are_not_whole(self, llama: Path, tmp_path: Path) -> None:
        folder = tiny_model.build_folder(tmp_path)
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelUnusable, match=r"no model\.norm\.weight"):
            models.load(spec_of(), folder)

    def test_weights_that_hold_nan(self, llama: Path, tmp_path: Path) -> None:
        shutil.copytree(llama, tmp_path / "spoiled")
        file = tmp_path / "spoiled" / "model.safetensors"
        tensors = load_file(file)
        next(one for name, one in tensors.items() if "q_proj" in name).view(-1)[0] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ModelUnusable, match="NaN or Inf"):
            models.load(spec_of(), tmp_path / "spoiled")

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelUnusable, match="can't be loaded"):
            models.load(spec_of(), tmp_path)

    def test_scores_that_are_scaled_behind_the_output_layer(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM, GraniteConfig

        config = GraniteConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            logits_scaling=8.0,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        with pytest.raises(ModelUnusable, match="behind the output layer"):
            models.load(spec_of(), tmp_path)


def test_the_layer_report_counts_what_is_there(folder: Path) -> None:
    found = report(folder, rank=4)
    model = causal(folder)
    assert found.parameters == sum(one.numel() for one in model.parameters())
    assert sum(layer.parameters for layer in found.layers) == found.parameters
    for method in ("lora", "full_finetune"):
        trainee = models.load(spec_of(method=method, lora={"r": 4}), folder)
        told = next(one for one in found.methods if one.method == method)
        assert told.trained == sum(one.numel() for one in trainee.trainables.values())
        assert math.isclose(told.share, told.trained / sum(one.numel() for one in trainee.model.parameters()))
    assert found.blocks == tiny_model.LAYERS


def test_the_layer_report_as_a_process(llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tiermesh.kernel.training.layers"]
    done = subprocess.run([*command, str(llama)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["architecture"] == "LlamaForCausalLM"
    failed = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 3
    assert "holds no language model" in failed.stderr.splitlines()[-1]


def trained(folder: Path, model: Path, **fields: object) -> Run:
    run, _ = run_of(folder / "run", model, spec_of(learning_rate=1e-2, **fields), steps=12)
    run.go()
    run.trainee.model.eval()
    return run


def write(run: Run, folder: Path, model: Path, **changed: object) -> Path:
    spec = run.spec.model_copy(update=changed)
    plan = RunPlan(spec=spec, model_path=str(model), data_path="/somewhere/data.jsonl", data_digest="sha256:data")
    folder.mkdir(exist_ok=True)
    told = result.Provenance(plan, run.progress, "rows", {}, run.trainee.precision)
    return result.write(folder / "result", run.trainee, models.load_tokenizer(model), told)


def causal(folder: Path) -> torch.nn.Module:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def with_peft(folder: Path, adapter: Path) -> torch.nn.Module:
    from peft import PeftModel

    model = PeftModel.from_pretrained(causal(folder), adapter)
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=torch.arange(3, 40)[None], use_cache=False).logits.float())
