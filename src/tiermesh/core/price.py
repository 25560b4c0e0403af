"""What a second of a machine costs. Pure; what nobody said and no table has is unknown, never a guess.

| known of the node                        | price per second                     |
|------------------------------------------|--------------------------------------|
| its owner declared one                   | that, 0 included                     |
| its power and the tariff were declared   | watts x tariff / 3,600,000           |
| its accelerator's name is in the table   | that of a rented one                 |
| none of these                            | unknown                              |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Basis = Literal["declared", "energy", "cloud"]

CLOUD_USD_PER_S: Mapping[str, float] = {"a10g": 0.000306, "t4": 0.000126, "a100": 0.000793}
"""Rented by the second. Whoever owns such a card declares what it costs, or its power and the tariff."""
JOULES_PER_KWH = 3_600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a node's owner said of its costs; None was not said. `watts`: of the whole machine while it trains."""

    usd_per_second: float | None = None
    watts: float | None = None
    usd_per_kwh: float | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """`device` is what the price is of; `basis` is how it is known."""

    usd_per_second: float
    device: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars: the likeliest, and both ends of an interval."""

    usd: float
    usd_low: float
    usd_high: float


def price_of(declared: Declared, gpus: Sequence[str], cpu: str | None = None) -> Price | None:
    """Of a second of training on this machine: on its first accelerator, where it has one. None is unknown."""
    device = gpus[0] if gpus else cpu or "cpu"
    if declared.usd_per_second is not None:
        return Price(declared.usd_per_second, device, "declared")
    if declared.watts is not None and declared.usd_per_kwh is not None:
        return Price(declared.watts * declared.usd_per_kwh / JOULES_PER_KWH, device, "energy")
    rented = cloud_price(gpus[0]) if gpus else None
    return None if rented is None else Price(rented, device, "cloud")


def cloud_price(device: str) -> float | None:
    """By a whole word of the device's name as its driver tells it: `NVIDIA A100-SXM4-80GB` is an `a100`, `T400` is no
    `t4`, and `A10` is no `a10g`."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    return next((CLOUD_USD_PER_S[word] for word in words if word in CLOUD_USD_PER_S), None)


def cost_of(price: Price | None, seconds: float | None, low: float | None, high: float | None) -> Cost | None:
    """Of a run of so many seconds; None when the price or the time is unknown."""
    if price is None or seconds is None:
        return None
    each = price.usd_per_second
    return Cost(each * seconds, each * (seconds if low is None else low), each * (seconds if high is None else high))
