"""How hard a prompt is, judged by its looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tiermesh.types import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplexityRule:
    """Where the tiers begin; defaults as in the policy document."""

    medium: float = 0.25
    powerful: float = 0.55
    medium_tokens: int = 2000
    powerful_tokens: int = 4000


@dataclass(frozen=True, slots=True)
class Complexity:
    """How hard a prompt seems, 0 to 1, and the tier that it gets for that. `signals` say why, each 0 to 1."""

    score: float
    tier: Tier
    tokens: int = 0
    """Of all messages, estimated."""
    signals: Mapping[str, float] = field(default_factory=dict)


def assess(messages: object, rule: ComplexityRule | None = None) -> Complexity:
    """The complexity of a conversation. Never raises, whatever the messages are."""
    return Complexity(0, 0)
