"""A model's folder becomes a model in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tiermesh.kernel.inference.chat import Encoder

DEFAULT_CONTEXT = 2048
"""For a model whose configuration does not say: what the smallest models in use were trained with."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model and what the generator must know of it.

    `encoder` and `decode` have a tokenizer each: they are used by different threads at the same time.
    """

    model: Any
    device: torch.device
    encoder: Encoder
    context_length: int
    end_tokens: frozenset[int]
    _decoder: Any

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of these tokens; tokens with a special meaning have none."""
        text = self._decoder.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def load(folder: Path, *, threads: int) -> LoadedModel:
    """Load weights and tokenizer from a local folder; raises what transformers raises when it is not a model.

    fp32 on a CPU: with one sequence at a time it is as fast as bf16, and equal requests get equal answers whatever
    computes them. A GPU gets bf16, which halves the memory.
    """
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    model.eval().to(device)
    _warm_up(model, device)
    context_length = _context_length(model.config, tokenizer)
    return LoadedModel(
        model=model,
        device=device,
        encoder=Encoder(tokenizer, context_length),
        context_length=context_length,
        end_tokens=_end_tokens(model, tokenizer),
        _decoder=copy.deepcopy(tokenizer),
    )


def _warm_up(model: Any, device: torch.device) -> None:
    """Touch every weight once, so that a model that can't run fails here and the first prompt pays for nothing."""
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)


def _context_length(config: Any, tokenizer: Any) -> int:
    """The smaller of what the weights and the tokenizer allow; a tokenizer without a limit says an absurd number."""
    known = [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
    limits = [value for value in (*known, tokenizer.model_max_length) if isinstance(value, int) and 0 < value < 10**9]
    return min(limits, default=DEFAULT_CONTEXT)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)
