"""The short way through a model's layers leads to the same logits, or is not taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests import tiny_model

from tiermesh.kernel.inference.attention import IMPLEMENTATION, WholeSequence, attending
from tiermesh.kernel.inference.decoder import Decoder, recognise
from tiermesh.kernel.inference.linear import join
from tiermesh.kernel.inference.loading import load
from tiermesh.kernel.inference.trial import run_trial

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks

TOKENS_1T = torch.tensor([[5, 99, 7, 300, 12, 5, 5, 41]])
POSITIONS_1T = torch.arange(TOKENS_1T.shape[1])[None]


def joined(model: Any) -> Any:
    model.set_attn_implementation(IMPLEMENTATION)
    join(model)
    return model.eval()


def relative(kind: str) -> Any:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    shape = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    match kind:
        case "llama3":
            rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
            rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
            return LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope, max_position_embeddings=512))
        case "mistral":
            return MistralForCausalLM(MistralConfig(**shape, sliding_window=4))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**shape))
        case "wide heads":
            return LlamaForCausalLM(LlamaConfig(**shape, head_dim=16))
        case _:
            return LlamaForCausalLM(LlamaConfig(**shape))


@pytest.mark.parametrize("kind", ["llama", "llama3", "wide heads", "mistral", "qwen2"])
def test_the_logits_are_the_models_own(kind: str) -> None:
    model = joined(relative(kind))
    decoder = recognise(model, run_trial(model))
    assert isinstance(decoder, Decoder)
    with torch.inference_mode():
        with attending(WholeSequence()):
            expected_TV = model(input_ids=TOKENS_1T, position_ids=POSITIONS_1T, use_cache=False).logits[0]
        got_NV = decoder.logits(WholeSequence(), TOKENS_1T, POSITIONS_1T, [2, 7])
    torch.testing.assert_close(got_NV, expected_TV[[2, 7]], atol=1e-3, rtol=1e-3)


def test_the_highest_logits_of_bf16_are_not_rounded() -> None:
    """Rounded, some of the highest are equal, and the first of them is said."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=1.0,
        tie_word_embeddings=True,
    )
    model = joined(LlamaForCausalLM(config).to(torch.bfloat16))
    decoder = recognise(model, run_trial(model))
    assert decoder is not None
    with torch.inference_mode():
        got_NV = decoder.logits(WholeSequence(), TOKENS_1T, POSITIONS_1T, range(8))
        with attending(WholeSequence()):
            ends_TE = model.model(input_ids=TOKENS_1T, position_ids=POSITIONS_1T, use_cache=False).last_hidden_state[0]
        rounded_TV = model.lm_head(ends_TE).float()
        exact_TV = ends_TE.float() @ model.lm_head.weight.float().T
    top_N2 = rounded_TV.topk(2).values
    assert any(first == second for first, second in top_N2.tolist()), "nothing to tell apart"
    assert all(first > second for first, second in got_NV.topk(2).values.tolist())
    assert (got_NV - exact_TV).norm() < 0.1 * exact_TV.norm()


def test_a_model_that_computes_something_else_is_left_to_transformers() -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    model = joined(relative("llama"))
    assert recognise(model, run_trial(model)) is not None
    original = LlamaMLP.forward
    for layer in model.model.layers:
        layer.mlp.forward = lambda rows, mlp=layer.mlp: 2 * original(mlp, rows)
    assert recognise(model, run_trial(model)) is None


@pytest.mark.parametrize(("tokens", "recognised"), [(range(2, 3), True), (range(7), False)])
def test_rounding_that_is_large_at_a_token_does_not_decide(tokens: range, recognised: bool) -> None:
    """In bf16 it is, and transformers' own logits are then as far from the truth."""
    model = joined(relative("llama"))
    trial = run_trial(model)
    logits_TV = trial.logits_TV.clone()
    logits_TV[list(tokens)] *= -1
    assert (recognise(model, replace(trial, logits_TV=logits_TV)) is not None) == recognised


@pytest.mark.parametrize("kind", ["gpt2"])
def test_an_architecture_that_is_not_known_is_left_to_transformers(tmp_path: Path, kind: tiny_model.Kind) -> None:
    folder = tiny_model.build_folder(tmp_path, kind)
    assert load(folder, threads=1, precision="fp32", memory_bytes=32 << 20).decoder is None


@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj", "q_proj"], ["o_proj"], ["up_proj"], ["down_proj"], None])
def test_adapters_stand_beside_layers_that_were_joined(tmp_path: Path, targets: list[str] | None) -> None:
    """None: all of them, and two adapters and the base in one row."""
    settings = {"r": 3} | ({"target_modules": targets} if targets else {"target_modules": "all-linear"})
    one = tiny_model.build_adapter(tmp_path / "one", seed=1, **settings)
    two = tiny_model.build_adapter(tmp_path / "two", seed=2, target_modules=["k_proj", "gate_proj"])
    loaded = load(tiny_model.build_folder(tmp_path / "base"), threads=1, precision="fp32", memory_bytes=32 << 20)
    before = loaded.decoder
    assert before is not None
    rows_T = torch.arange(TOKENS_1T.shape[1])
    with torch.inference_mode():
        plain_NV = before.logits(WholeSequence(), TOKENS_1T, POSITIONS_1T, range(8))
        for name, folder in (("one", one), ("two", two)):
            loaded.install(name, loaded.fit(folder, ""))
        again_NV = before.logits(WholeSequence(), TOKENS_1T, POSITIONS_1T, range(8))
        assert torch.equal(plain_NV, again_NV)
        for name, folder in (("one", one), ("two", two)):
            loaded.adapter_rows.set({name: rows_T})
            got_NV = before.logits(WholeSequence(), TOKENS_1T, POSITIONS_1T, range(8))
            peft_model = PeftModel.from_pretrained(tiny_model.build_model(), folder).eval()
            expected_TV = peft_model(input_ids=TOKENS_1T, use_cache=False).logits[0]
            torch.testing.assert_close(got_NV, expected_TV, atol=1e-3, rtol=1e-3)
            loaded.remove(name)
            assert torch.equal(before.logits(WholeSequence(), TOKENS_1T, POSITIONS_1T, range(8)), plain_NV)
