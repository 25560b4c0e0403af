"""What the same model says when transformers itself generates."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


@cache
def reference(folder: Path) -> tuple[Any, Any]:
    """transformers' own tokenizer and model, on one thread because a worker uses the other core."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def greedy(folder: Path, messages: list[dict[str, str]], tokens: int) -> tuple[list[int], str]:
    """What transformers itself generates: the prompt's tokens, and the text that follows."""
    tokenizer, model = reference(folder)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    output = model.generate(prompt, max_new_tokens=tokens, do_sample=False)
    text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    return prompt[0].tolist(), text.rstrip("\N{REPLACEMENT CHARACTER}")
