"""The repeated layers, compiled: faster steps, after a wait at the start.

They are compiled for one kind of micro-batch, the one that most are of. What is of another kind (a smaller micro-batch,
another width, an evaluation) is computed as it comes: to compile in the middle of a run would take as long again, and
could fail there. Whatever a compiler fails at costs speed and never the run.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import torch

from tiermesh.kernel.training.data.batches import Batch, MicroBatch, PairBatch, Source
from tiermesh.kernel.training.failures import translate
from tiermesh.kernel.training.state import Randomness

if TYPE_CHECKING:
    from tiermesh.kernel.training.data.order import Order
    from tiermesh.kernel.training.loss import Objective
    from tiermesh.kernel.training.models import Trainee

log = logging.getLogger(__name__)

LOOKED_AT = 64
"""Micro-batches that are looked at for the commonest kind: a few milliseconds, and a share to some percent."""
MAX_REASON_CHARACTERS = 300
"""Of what the compiler says; all of it is in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Seconds: `first_s` of the pass that compiled, `then_s` of the next one. `was_kept`: nothing was compiled anew,
    because an earlier process on this machine had left it all."""

    first_s: float
    then_s: float
    was_kept: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is compiled, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Commonest(Generic[Batch]):
    """A micro-batch of the kind that most are of, and the share of those."""

    batch: Batch
    share: float


def commonest(source: Source[Batch], order: Order, micro_batch: int) -> Commonest[Batch]:
    """Among the first micro-batches of a run."""
    found: dict[object, Batch] = {}
    counted: Counter[object] = Counter()
    for first in range(0, min(LOOKED_AT * micro_batch, max(micro_batch, source.rows)), micro_batch):
        batch = source.micro(order.rows_at(first, micro_batch))
        counted[_kind(batch)] += 1
        found.setdefault(_kind(batch), batch)
    [(kind, count)] = counted.most_common(1)
    return Commonest(found[kind], count / counted.total())


def compile_blocks(trainee: Trainee, objective: Objective, batch: Any) -> Compiled | Refused:
    """Compile the repeated layers for batches of this kind, and compile nothing more in this process afterwards.

    Weights, their names and random numbers are what they were.
    """
    before, randomness = _compiled_anew(), Randomness.now()
    for block in trainee.blocks():
        block.compile(dynamic=False)
    try:
        first_s, then_s = _pass_s(trainee, objective, batch), _pass_s(trainee, objective, batch)
    except Exception as error:  # what is no fault of the compiler's comes again in the first step
        log.warning("layers can't be compiled", exc_info=error)
        for block in trainee.blocks():
            block._compiled_call_impl = None  # noqa: SLF001  # torch has no other way back
        trainee.compiled = None
        return Refused(_reason(error))
    finally:
        torch.compiler.set_stance("eager_on_recompile")
        randomness.put_back()
    trainee.compiled = Compiled(first_s=first_s, then_s=then_s, was_kept=_compiled_anew() == before)
    return trainee.compiled


def compile_again(trainee: Trainee, objective: Objective, batch: Any) -> Compiled | Refused:
    """As a later process on this machine will, with what this one leaves."""
    torch.compiler.reset()
    torch.compiler.set_stance("default")
    return compile_blocks(trainee, objective, batch)


def _kind(batch: MicroBatch | PairBatch) -> object:
    """Compiled code is for one shape, and for attention with a mask or without: one is made where positions restart."""
    match batch:
        case PairBatch():
            return _kind(batch.chosen), _kind(batch.rejected)
        case MicroBatch():
            follows = batch.positions_BT[:, 1:] == batch.positions_BT[:, :-1] + 1
            return tuple(batch.tokens_BT.shape), bool(follows.all())


def _pass_s(trainee: Trainee, objective: Objective, batch: Any) -> float:
    began = time.monotonic()
    try:
        objective.summed(trainee, batch).backward()  # type: ignore[no-untyped-call]
    finally:
        trainee.model.zero_grad(set_to_none=True)
    return time.monotonic() - began


def _compiled_anew() -> int:
    """How many graphs this process compiled that were not kept from an earlier one."""
    from torch._dynamo.utils import counters  # a second to import, which a run that compiles nothing is spared

    return counters["inductor"]["fxgraph_cache_miss"]


def _reason(error: Exception) -> str:
    from torch._inductor.exc import InvalidCxxCompiler

    cause = getattr(error, "inner_exception", error)  # torch wraps what its compilers raise
    if isinstance(cause, InvalidCxxCompiler):
        return "there is no C++ compiler (g++, or what CXX names)"
    return " ".join(str(translate(cause)).split())[:MAX_REASON_CHARACTERS]
