"""How good the model is on what it was not trained on, in figures and in a person's eyes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from tiermesh.kernel.training.memory import trim
from tiermesh.kernel.training.relieving import refusal

if TYPE_CHECKING:
    from tiermesh.kernel.training.data.batches import Source
    from tiermesh.kernel.training.loss import Objective
    from tiermesh.kernel.training.models import Trainee

ROWS = 512
"""Held-out rows looked at on the way, spread evenly, always the same: an evaluation stays short next to training."""
HIGHEST_PERPLEXITY_LOG = 700.0
"""The largest loss whose exponential is a number."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean loss over `targets`, in nats."""

    loss: float
    targets: float
    rows: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where no number is as large."""
    return math.exp(loss) if loss < HIGHEST_PERPLEXITY_LOG else math.inf


def held_out(
    trainee: Trainee,
    objective: Objective,
    source: Source[Any],
    micro_batch: int,
    *,
    limit: int | None = ROWS,
    stopping: Callable[[], bool] = lambda: False,
) -> HeldOut | None:
    """The mean loss over a source's rows, or over `limit` of them; None when it is to stop meanwhile. Changes nothing,
    no random number either."""
    chosen = _spread(source.rows, limit)
    total = 0.0
    with _asking(trainee):
        for first in range(0, len(chosen), micro_batch):
            if stopping():
                return None
            batch = moved(source.micro(chosen[first : first + micro_batch]), trainee.device)
            total += float(objective.summed(trainee, batch))
    targets = source.targets(chosen)
    return HeldOut(total / targets if targets else math.nan, targets, len(chosen))


def whole_held_out(
    trainee: Trainee,
    objective: Objective,
    source: Source[Any],
    micro_batch: int,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> HeldOut | None:
    """`held_out` over all rows, again with half of them at once as often as memory is refused."""
    while True:
        try:
            return held_out(trainee, objective, source, micro_batch, limit=None, stopping=stopping)
        except (RuntimeError, MemoryError) as error:
            refused = refusal(error)
        if micro_batch == 1:
            raise refused
        micro_batch //= 2
        trim()


def answers(
    trainee: Trainee,
    tokenizer: Any,
    prompts: Sequence[str],
    tokens: int,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, str]]:
    """Each prompt with the answer the model finds likeliest, of at most `tokens` tokens; fewer when it is to stop."""
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    for prompt in prompts:
        if stopping():
            return
        given = _encoded(tokenizer, prompt).to(trainee.device)
        with _asking(trainee), trainee.mixed():
            told = trainee.model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=padding,
                stopping_criteria=[lambda ids, _: torch.full((len(ids),), stopping())],
            )
        yield prompt, tokenizer.decode(told[0, given.shape[1] :], skip_special_tokens=True)


def moved(batch: Any, device: torch.device) -> Any:
    """The same batch where the model is."""
    if device.type == "cpu":
        return batch
    there = {}
    for one in fields(batch):
        value = getattr(batch, one.name)
        if isinstance(value, torch.Tensor):
            there[one.name] = value.to(device, non_blocking=True)
        elif one.name in ("chosen", "rejected"):
            there[one.name] = moved(value, device)
    return replace(batch, **there)


def _encoded(tokenizer: Any, prompt: str) -> torch.Tensor:
    """As a chat model's user says it, else as text to go on with."""
    if tokenizer.chat_template is None:
        return torch.as_tensor(tokenizer(prompt, return_tensors="pt").input_ids)
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return torch.as_tensor(told["input_ids"])


def _spread(rows: int, limit: int | None) -> list[int]:
    if limit is None or rows <= limit:
        return list(range(rows))
    return [index * rows // limit for index in range(limit)]


@contextmanager
def _asking(trainee: Trainee) -> Iterator[None]:
    """Without dropout, gradients, checkpointing or compiling, and then as before."""
    kept = trainee.checkpointing
    trainee.model.eval()
    trainee.checkpoint(on=False)
    try:
        # Answers of all lengths would each be compiled anew.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        trainee.checkpoint(on=kept)
        trainee.model.train()
