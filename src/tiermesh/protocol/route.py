"""`POST /api/route`: who would answer a prompt, and why. Nobody is asked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from tiermesh.protocol.openai import ChatMessage
from tiermesh.protocol.validation import Wire
from tiermesh.types import ModelState, Tier


class RouteAsk(Wire):
    """The body of a chat completion, or of `/api/complete`: what routing doesn't read is ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field("auto", min_length=1, max_length=512)
    tier: Tier | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None


class ComplexityReport(Wire):
    """How hard the prompt seems, 0 to 1. `signals` are 0 to 1 each; `used`: it chose the tier."""

    score: float
    tier: Tier
    tokens: int
    signals: dict[str, float]
    used: bool


class CandidateReport(Wire):
    """One that may answer. `score` is 100 for the tier wanted, free, warm, healthy, idle, quick; None if left out."""

    node: str
    node_id: str
    model: str
    digest: str
    engine: str
    tier: Tier
    state: ModelState
    score: float | None = None
    reason: str
    active: int
    slots: int
    latency_ms: float | None = None
    health: int | None = None
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    breaker: Literal["closed", "open", "half_open"] = "closed"
    retry_after_s: float = 0.0
    local: bool = False
    preferred: bool = False
    """The conversation was there before."""


class RefusalReport(Wire):
    """Why nobody would be asked now."""

    message: str
    retry_after_s: float | None = None


class RouteReport(Wire):
    """`candidates` best first, each asked once until one has answered. `left_out` have breakers that are open."""

    model: str
    tier: Tier | None = None
    """The tier wanted; None: any, or a model by its name."""
    complexity: ComplexityReport | None = None
    """None where the policy has it switched off."""
    candidates: list[CandidateReport] = Field(default_factory=list)
    left_out: list[CandidateReport] = Field(default_factory=list)
    refusal: RefusalReport | None = None
