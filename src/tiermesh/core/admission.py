"""May a training job run on a machine at all? By a lower bound, reckoned from the model's size alone, and by its
estimate, where there is one: so that what can't fit is refused in words before it is killed in deed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB = 1 << 30
RESERVE_SHARE = 0.1
"""Of the free memory, left to the rest of the machine."""
RUNTIME_BYTES = 600 << 20
"""Python, torch and transformers before anything is loaded."""
BYTES_A_PARAMETER: Mapping[str, float] = {"lora": 2.0, "qlora": 0.6, "full_finetune": 16.0}
"""At the very least: frozen weights in bf16 or in 4 bits with their scales; trained ones with gradient and two moments,
all in fp32."""

Verdict = Literal["fits", "wait", "never"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory of the machine; None is unknown, and no reason to refuse."""

    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reason` is for a person; empty when it fits."""

    verdict: Verdict
    reason: str = ""


def least_bytes(parameters: int, method: str) -> int:
    """Less than this no run of the method takes. It is 16 bits at least that a frozen weight has."""
    return RUNTIME_BYTES + int(parameters * BYTES_A_PARAMETER[method])


def judge_memory(needed_bytes: int, machine: Machine, limit_bytes: int | None) -> Judgement:
    """`limit_bytes` is the job's own (`memory_limit`)."""
    needs = f"needs at least {_gib(needed_bytes)}"
    if limit_bytes is not None and needed_bytes > limit_bytes:
        return Judgement("never", f"{needs}, and memory_limit is {_gib(limit_bytes)}")
    if machine.total_bytes is not None and needed_bytes > machine.total_bytes:
        return Judgement("never", f"{needs}, and this machine has {_gib(machine.total_bytes)}")
    if machine.free_bytes is not None and needed_bytes > machine.free_bytes:
        return Judgement("wait", f"{needs}, and {_gib(machine.free_bytes)} are free now")
    return Judgement("fits")


def judge_free(needed_bytes: int, machine: Machine) -> Judgement:
    """Is what an estimate says free now, and the reserve besides? Never `never`: another moment may be better."""
    if machine.free_bytes is None:
        return Judgement("fits")
    free = int(machine.free_bytes * (1 - RESERVE_SHARE))
    if needed_bytes <= free:
        return Judgement("fits")
    return Judgement("wait", f"needs about {_gib(needed_bytes)}, and {_gib(free)} are free now, besides the reserve")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
