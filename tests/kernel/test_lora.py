"""Adapters beside one base, several in one batch. What each adds is what peft adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests import tiny_model

from tiermesh.kernel.inference import linear
from tiermesh.kernel.inference.lora import CONFIG_FILE, WEIGHTS_FILE, InvalidAdapter, LoraLinear, Rows, attach

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks

KINDS: tuple[tiny_model.Kind, ...] = ("llama", "qwen2", "gpt2")
TOKENS = torch.arange(5, 25).view(1, -1)


def by_peft(kind: tiny_model.Kind, folder: Path, tokens_BT: torch.Tensor = TOKENS) -> torch.Tensor:
    model = PeftModel.from_pretrained(tiny_model.build_model(kind), folder).eval()
    with torch.inference_mode():
        return logits(model, tokens_BT)


def logits(model: Any, tokens_BT: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.inference_mode():
        logits_BTV: torch.Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return logits_BTV


def with_adapters(kind: tiny_model.Kind, **folders: Path) -> tuple[Any, Rows]:
    model, rows = tiny_model.build_model(kind).eval(), Rows()
    for name, folder in folders.items():
        attach(model, rows, name, folder)
    return model, rows


def every(tokens_BT: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens_BT.numel())


def close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_adds_what_peft_adds(tmp_path: Path, kind: tiny_model.Kind, rslora: bool) -> None:
    folder = tiny_model.build_adapter(tmp_path, kind, seed=1, use_rslora=rslora)
    model, rows = with_adapters(kind, mine=folder)
    rows.set({"mine": every(TOKENS)})
    assert close(logits(model), by_peft(kind, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_adapter_the_base_answers_bit_for_bit(tmp_path: Path, kind: tiny_model.Kind) -> None:
    model, rows = with_adapters(kind, mine=tiny_model.build_adapter(tmp_path, kind, seed=1))
    expected = logits(tiny_model.build_model(kind).eval())
    assert torch.equal(logits(model), expected)
    rows.set({"mine": torch.tensor([], dtype=torch.long)})
    assert torch.equal(logits(model), expected)


def test_adapters_on_other_layers_and_of_other_ranks_share_a_batch(tmp_path: Path) -> None:
    """Two adapters and the base, in rows that are mixed with one another; each is answered as if it were alone."""
    one = tiny_model.build_adapter(tmp_path / "one", "llama", seed=1)
    two = tiny_model.build_adapter(tmp_path / "two", "llama", seed=2, r=2, target_modules=["q_proj", "up_proj"])
    model, rows = with_adapters("llama", one=one, two=two)
    tokens_BT = torch.arange(40).view(4, 10)
    numbers_BT = every(tokens_BT).view(4, 10)
    rows.set({"one": numbers_BT[[0, 2]].flatten(), "two": numbers_BT[3]})
    got_BTV = logits(model, tokens_BT)
    for answered, folder in ((0, one), (2, one), (3, two)):
        assert close(got_BTV[answered], by_peft("llama", folder, tokens_BT[[answered]])[0])
    assert close(got_BTV[1], logits(tiny_model.build_model().eval(), tokens_BT[[1]])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_were_joined_and_packed_take_adapters(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tiny_model.build_adapter(tmp_path, "qwen2", seed=1)
    model = tiny_model.build_model("qwen2").eval().to(dtype)
    with torch.inference_mode():
        assert linear.join(model) == 2 * tiny_model.LAYERS
        linear.pack(model)
    rows = Rows()
    attach(model, rows, "mine", folder)
    rows.set({"mine": every(TOKENS)})
    expected = by_peft("qwen2", folder)
    error = (logits(model).float() - expected).abs().mean() / expected.abs().mean()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("numbers", [[2, 3, 4], [0, 2, 5], [5]])
def test_only_its_own_rows_are_touched(tmp_path: Path, numbers: list[int]) -> None:
    model, rows = with_adapters("llama", mine=tiny_model.build_adapter(tmp_path, "llama", seed=1))
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    x = torch.randn(1, 6, tiny_model.HIDDEN)
    with torch.inference_mode():
        base = layer(x)
        rows.set({"mine": torch.arange(6)})
        adapted = layer(x)
        rows.set({"mine": torch.tensor(numbers), "nobody": torch.tensor([1])})
        mixed = layer(x)
    others = [number for number in range(6) if number not in numbers]
    assert torch.allclose(mixed[0, numbers], adapted[0, numbers], atol=1e-6)
    assert torch.equal(mixed[0, others], base[0, others])


def test_only_layers_with_an_adapter_are_wrapped_and_each_once(tmp_path: Path) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1, target_modules=["q_proj"])
    model, _ = with_adapters("llama", one=folder, two=folder)
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert wrapped == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(tiny_model.LAYERS)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("trainable_token_indices", [3]),
        ("of_a_later_version", {"kind": "new"}),
    ],
)
def test_a_setting_that_would_change_the_result_is_refused_by_name(tmp_path: Path, setting: str, value: Any) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1)
    edit_config(folder, **{setting: value})
    with pytest.raises(InvalidAdapter, match=setting):
        with_adapters("llama", mine=folder)


def test_other_kinds_of_adapters_are_refused(tmp_path: Path) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1)
    edit_config(folder, peft_type="IA3")
    with pytest.raises(InvalidAdapter, match="IA3: only LORA"):
        with_adapters("llama", mine=folder)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"]])
def test_the_first_and_the_last_layer_can_not_be_adapted(tmp_path: Path, targets: list[str]) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1, target_modules=targets)
    with pytest.raises(InvalidAdapter, match=targets[0]):
        with_adapters("llama", mine=folder)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = tiny_model.build_adapter(tmp_path, "gpt2", seed=1)
    with pytest.raises(InvalidAdapter, match="another model: this one has no transformer"):
        with_adapters("llama", mine=folder)


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    """Qwen's keys are narrower here than Llama's, under the same name."""
    folder = tiny_model.build_adapter(tmp_path, "qwen2", seed=1, target_modules=["k_proj"])
    with pytest.raises(InvalidAdapter, match=r"k_proj is \(32, 32\) here and \(32, 16\) there"):
        with_adapters("llama", mine=folder)


def test_an_adapter_that_is_refused_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """What fits comes first in it."""
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1, target_modules=["q_proj", "up_proj"])
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name.replace("up_proj", "zz_proj"): tensor for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    model = tiny_model.build_model().eval()
    with pytest.raises(InvalidAdapter, match="zz_proj"):
        attach(model, Rows(), "mine", folder)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_without_a_file_is_refused_and_the_file_named(tmp_path: Path, missing: str) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1)
    (folder / missing).unlink()
    with pytest.raises(InvalidAdapter, match=missing):
        with_adapters("llama", mine=folder)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [b"", b"[1]", b'{"peft_type": "LORA", "r": "4"}'])
def test_a_broken_file_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1)
    (folder / file).write_bytes(content)
    with pytest.raises(InvalidAdapter):
        with_adapters("llama", mine=folder)


def test_weights_that_do_not_fit_their_own_description_are_refused(tmp_path: Path) -> None:
    folder = tiny_model.build_adapter(tmp_path, "llama", seed=1)
    tensors = load_file(folder / WEIGHTS_FILE)
    half = next(name for name in tensors if "lora_B" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != half}, folder / WEIGHTS_FILE)
    with pytest.raises(InvalidAdapter, match="another kind"):
        with_adapters("llama", mine=folder)
    save_file(tensors, folder / WEIGHTS_FILE)
    edit_config(folder, r=8)
    with pytest.raises(InvalidAdapter, match="says r=8"):
        with_adapters("llama", mine=folder)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))
