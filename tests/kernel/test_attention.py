"""A packed batch computes for each of its sequences what transformers computes for it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_model

from tiermesh.errors import EngineFailed
from tiermesh.kernel import rounding as rounding_module
from tiermesh.kernel.inference.attention import PackedBatch, Span, attention
from tiermesh.kernel.inference.cache import Cache
from tiermesh.kernel.inference.embedding import Embedding
from tiermesh.kernel.inference.loading import LoadedModel, load
from tiermesh.kernel.inference.slots import Slot

TOLERANCE = 2e-4
"""Rounding of fp32, after layers whose weights are made large on purpose."""
SHAPE = {"vocab_size": tiny_model.VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
KINDS: tuple[tiny_model.Kind, ...] = ("llama", "qwen2", "gpt2")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load(folder, threads=1, precision="fp32", memory_bytes=32 << 20)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(3, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def last_logits(model: LoadedModel, cache: Cache, spans: list[Span]) -> dict[int, torch.Tensor]:
    batch = PackedBatch(spans, cache, model.device)
    with torch.inference_mode():
        logits_NV = model.logits(batch, batch.last_tokens())
    return {span.slot: logits_V for span, logits_V in zip(batch.spans, logits_NV, strict=True)}


def expected(reference: Any, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits_V: torch.Tensor = reference(torch.tensor([prompt])).logits[0, -1]
    return logits_V


def test_prompts_in_pieces_next_tokens_and_whole_prompts_in_one_batch(loaded: LoadedModel, reference: Any) -> None:
    cache = Cache(loaded.size, loaded.shapes, loaded.dtype, loaded.device)
    prompts = {0: tokens(0, 40), 1: tokens(1, 41), 3: tokens(3, 9), 4: tokens(4, 200), 6: tokens(6, 77)}
    last_logits(loaded, cache, [Span(slot, 0, prompts[slot][:-1]) for slot in (0, 1, 3)])
    last_logits(loaded, cache, [Span(4, 0, prompts[4][:64])])
    spans = [Span(slot, len(prompts[slot]) - 1, prompts[slot][-1:]) for slot in (3, 0, 1)]
    spans += [Span(4, 64, prompts[4][64:]), Span(6, 0, prompts[6])]
    got = last_logits(loaded, cache, spans)
    for slot, prompt in prompts.items():
        torch.testing.assert_close(got[slot], expected(reference, prompt), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in bf16, whose own errors would hide others."""
    monkeypatch.setattr(rounding_module, "_compiles_each", lambda *_: True)


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("length", [5, 32, 33, 41, 48, 64, 150, 200])
def test_what_is_computed_for_round_numbers_is_nobodys(loaded: LoadedModel, reference: Any, length: int) -> None:
    """Beside a next token, in a slot that held something else before; in one piece and in two."""
    cache = Cache(loaded.size, loaded.shapes, loaded.dtype, loaded.device)
    one, other = tokens(1, length), tokens(2, 20)
    last_logits(loaded, cache, [Span(0, 0, other[:-1]), Span(1, 0, tokens(3, 220))])
    batch = PackedBatch([Span(0, 19, other[-1:]), Span(1, 0, one[:-1])], cache, loaded.device)
    assert batch.count == length
    assert batch.tokens_1T.shape[1] == (length if length <= 32 else -(-length // 16) * 16)
    got = last_logits(loaded, cache, [Span(0, 19, other[-1:]), Span(1, 0, one[: length // 2])])
    torch.testing.assert_close(got[0], expected(reference, other), atol=TOLERANCE, rtol=TOLERANCE)
    got = last_logits(loaded, cache, [Span(1, length // 2, one[length // 2 :])])
    torch.testing.assert_close(got[1], expected(reference, one), atol=TOLERANCE, rtol=TOLERANCE)
    text = Embedding(one, slot=Slot(2))
    assert text.advance(loaded, cache, 512)
    with torch.inference_mode():
        mean_H = reference.base_model(torch.tensor([one])).last_hidden_state[0].mean(0)
    vector_H = torch.tensor(text.vector.result(0))
    torch.testing.assert_close(vector_H, mean_H / mean_H.norm(), atol=TOLERANCE, rtol=TOLERANCE)


PROMPTS_OF_ALL_LENGTHS = """
import random, sys
import psutil, torch
from tiermesh.kernel.inference.attention import PackedBatch, Rule, Span
from tiermesh.kernel.inference.cache import Cache, Size

torch.set_num_threads(2)
chance = random.Random(0)
cache = Cache(Size(slots=1, capacity=2048), {0: (3, 64)}, torch.bfloat16, torch.device("cpu"))

def prompt(tokens, start):
    batch = PackedBatch([Span(0, start, range(tokens))], cache, torch.device("cpu"))
    heads = (torch.randn(n, tokens, 64, dtype=torch.bfloat16) for n in (9, 3, 3))
    batch.attend(0, *heads, Rule(0.125, None))

with torch.inference_mode():
    prompt(512, 1536)
    before = psutil.Process().memory_info().rss
    for _ in range(400):
        tokens = chance.randint(2, 512)
        prompt(tokens, chance.choice((0, chance.randint(0, 1500))))
    print(psutil.Process().memory_info().rss - before)
"""


def test_prompts_of_all_lengths_take_little_memory_for_ever() -> None:
    """A process of its own: what torch has compiled stays with one. Without rounding it is 270 MB with AMX."""
    ran = subprocess.run(
        [sys.executable, "-c", PROMPTS_OF_ALL_LENGTHS], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(ran.stdout) < 180 << 20


def test_what_a_slot_held_before_does_not_matter(loaded: LoadedModel, reference: Any) -> None:
    cache = Cache(loaded.size, loaded.shapes, loaded.dtype, loaded.device)
    last_logits(loaded, cache, [Span(0, 0, tokens(7, 100)), Span(1, 0, tokens(8, 100))])
    short, long = tokens(9, 5), tokens(10, 60)
    last_logits(loaded, cache, [Span(0, 0, short[:-1]), Span(1, 0, long[:-1])])
    got = last_logits(loaded, cache, [Span(0, 4, short[-1:]), Span(1, 59, long[-1:])])
    torch.testing.assert_close(got[0], expected(reference, short), atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(got[1], expected(reference, long), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("piece", [1, 7, 30])
def test_an_embedding_is_the_mean_of_the_last_states(loaded: LoadedModel, reference: Any, piece: int) -> None:
    prompt = tokens(11, 30)
    with torch.inference_mode():
        states_TH = reference.base_model(torch.tensor([prompt])).last_hidden_state[0]
        text = Embedding(prompt, slot=Slot(2))
        cache = Cache(loaded.size, loaded.shapes, loaded.dtype, loaded.device)
        while not text.advance(loaded, cache, piece):
            assert not text.vector.done()
    mean_H = states_TH.mean(0)
    vector_H = torch.tensor(text.vector.result(0))
    torch.testing.assert_close(vector_H, mean_H / mean_H.norm(), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_window_hides_what_is_further_back(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    tiny_model.build_folder(tmp_path)
    torch.manual_seed(0)
    config = MistralConfig(**SHAPE, sliding_window=16, initializer_range=0.3)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path, threads=1, precision="fp32", memory_bytes=32 << 20)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    cache = Cache(model.size, model.shapes, model.dtype, model.device)
    one, other = tokens(1, 50), tokens(2, 30)
    last_logits(model, cache, [Span(0, 0, one[:40]), Span(1, 0, other[:-1])])
    last_logits(model, cache, [Span(0, 40, one[40:-1])])
    got = last_logits(model, cache, [Span(0, 49, one[-1:]), Span(1, 29, other[-1:])])
    torch.testing.assert_close(got[0], expected(reference, one), atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(got[1], expected(reference, other), atol=TOLERANCE, rtol=TOLERANCE)


def test_an_attention_that_is_not_computed_here_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tiny_model.build_folder(tmp_path)
    Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8)).save_pretrained(tmp_path)
    with pytest.raises(EngineFailed, match="softcap"):
        load(tmp_path, threads=1, precision="fp32", memory_bytes=32 << 20)


def test_a_window_that_only_a_mask_would_tell_of_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    folder = tiny_model.build_folder(tmp_path)
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
    Qwen2MoeForCausalLM(Qwen2MoeConfig(**SHAPE, **experts, **window)).save_pretrained(folder)
    with pytest.raises(EngineFailed, match="do not say how long it is"):
        load(folder, threads=1, precision="fp32", memory_bytes=32 << 20)


def test_keys_and_values_of_different_sizes_are_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    folder = tiny_model.build_folder(tmp_path)
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    shape = SHAPE | {"num_key_value_heads": 4, "first_k_dense_replace": 2}
    DeepseekV3ForCausalLM(DeepseekV3Config(**shape, **latent)).save_pretrained(folder)
    with pytest.raises(EngineFailed, match="keys and values have different sizes"):
        load(folder, threads=1, precision="fp32", memory_bytes=32 << 20)


def test_a_mask_that_a_model_makes_itself_is_refused() -> None:
    rows_BHTD = torch.zeros(1, 2, 3, 8)
    with pytest.raises(NotImplementedError, match="a mask of its own"):
        attention(None, rows_BHTD, rows_BHTD, rows_BHTD, attention_mask=torch.zeros(1, 1, 3, 3))
