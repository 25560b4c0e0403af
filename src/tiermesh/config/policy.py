"""The part of the configuration that must be the same on every node: one document, kept and published by the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from tiermesh.config.explain import explain
from tiermesh.core.breaker import BreakerRule
from tiermesh.core.complexity import ComplexityRule
from tiermesh.core.evaluation import Gates, gates_of, parse_limit
from tiermesh.core.gate import Budget as BudgetRule
from tiermesh.core.job_rules import JobRules
from tiermesh.core.routing import RoutingPolicy, bare_name

ALIAS_LIMIT = 1000
"""More than any catalogue of models; the policy travels whole, between all nodes."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Most = Annotated[float | Literal["any"], PlainValidator(parse_limit)]
"""A limit, or none: a key without a value means its default."""


class Section(BaseModel):
    """A group of settings: frozen, no unknown keys, no silent conversions (`"8000"` is not a port, `yes` no tier)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ComplexityChoice(Section):
    """How the words of a prompt choose the tier, where `model` is `auto` and the request names no tier."""

    enabled: bool = True
    """Off, `auto` means the most powerful tier that has somebody."""
    medium: float = Field(0.25, ge=0, le=1)
    """Least score of a prompt for tier 1. Lower, and small machines are asked less often."""
    powerful: float = Field(0.55, ge=0, le=1)
    """Least score of a prompt for tier 2. Lower, and the powerful machines are asked more often, and wait more."""
    medium_tokens: int = Field(2000, ge=1)
    """A longer conversation (tokens, estimated) gets tier 1 at least: small models lose the thread."""
    powerful_tokens: int = Field(4000, ge=1)
    """A longer one than this gets tier 2."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.medium > self.powerful or self.medium_tokens > self.powerful_tokens:
            raise ValueError("the limits of tier 2 must not lie below those of tier 1")
        return self

    def rule(self) -> ComplexityRule | None:
        """As routing reads it; None: off."""
        if not self.enabled:
            return None
        return ComplexityRule(
            medium=self.medium,
            powerful=self.powerful,
            medium_tokens=self.medium_tokens,
            powerful_tokens=self.powerful_tokens,
        )


class Breaking(Section):
    """When a model on a node that fails is given a rest, and for how long. Every node judges by its own requests."""

    failures: int = Field(3, ge=1, le=1000)
    """In a row. Two may be chance; each one costs a request some time, but not its answer."""
    failure_rate: float = Field(0.5, gt=0, le=1)
    """Part of the last `rate_window` requests, once there are `rate_least`: finds those who fail now and then."""
    rate_window: int = Field(20, ge=1, le=1000)
    """Short enough to forget yesterday."""
    rate_least: int = Field(10, ge=1, le=1000)
    """With fewer requests a rate says nothing."""
    slow_first_token_s: float = Field(60.0, gt=0, le=3600)
    """A first token later than this is a failure. Lower, and long prompts on slow machines look like failures."""
    open_s: float = Field(10.0, gt=0, le=3600)
    """The first rest: a server restarts in about that."""
    open_most_s: float = Field(300.0, gt=0, le=86_400)
    """Rests double up to this: how late it may be noticed that a machine is well again."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.open_s > self.open_most_s:
            raise ValueError("open_s must be at most open_most_s")
        if self.rate_least > self.rate_window:
            raise ValueError("rate_least must be at most rate_window, or it is never reached")
        return self

    def rule(self) -> BreakerRule:
        """As the breakers read it."""
        return BreakerRule(**self.model_dump())


class Routing(Section):
    """How a prompt finds its machine."""

    prefer_local: bool = True
    """Between equals, the node that was asked answers itself: one hop less."""
    fallback_strategy: Literal["graceful", "strict"] = "graceful"
    """When the tier wanted has nobody: try the others (2>1>0, 1>2>0, 0>1>2), or refuse and say so."""
    load_balance: bool = True
    """Spread over the nodes of a tier by load; off, the best one gets everything until it is full."""
    aliases: Mapping[Name, Name] = Field(default_factory=dict, max_length=ALIAS_LIMIT)
    """Other names for models, so that a program asking for `gpt-4o` gets one of yours."""
    complexity: ComplexityChoice = ComplexityChoice()
    breaker: Breaking = Breaking()

    def policy(self) -> RoutingPolicy:
        """As routing reads it."""
        return RoutingPolicy(
            prefer_local=self.prefer_local,
            fallback_strategy=self.fallback_strategy,
            load_balance=self.load_balance,
            aliases={bare_name(alias): name for alias, name in self.aliases.items()},
            complexity=self.complexity.rule(),
        )


class Admission(Section):
    """What the coordinator demands before it takes new jobs."""

    min_members: int = Field(1, ge=1, le=1000)
    """Nodes that must be up. 1, because a home has two machines as often as twenty; raise it where a lone half of a
    split network must not start jobs."""


class Limits(Section):
    """Bounds that protect every node from its callers."""

    max_body_bytes: int = Field(2 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest request body read. 2 MiB of text is some 500,000 tokens: more than most contexts hold."""
    first_token_timeout_s: float = Field(60.0, ge=0.1, le=3600)
    """A stream that has not begun after this is asked of another node, when there is one that could begin it. A long
    prompt takes a slow machine a minute; a model that is being loaded is waited for."""
    stall_timeout_s: float = Field(10.0, ge=0.1, le=3600)
    """A stream that has begun and says nothing for this long goes on elsewhere, when there is a node that can go on
    with it. Lower, and a node that is merely busy loses its streams; higher, and readers wait longer."""
    queue_timeout_s: float = Field(30.0, ge=0, le=3600)
    """How long a request waits for a free slot, or for a node to come back, before it is refused. 0: not at all."""
    queue_length: int = Field(1000, ge=0, le=100_000)
    """Requests for one model that wait on one node. Past it the next one is refused at once: it would wait in vain."""


class Budget(Section):
    """What a training job may cost, in US dollars. The upper end of its estimate counts."""

    max_usd: float = Field(5.0, ge=0, le=1_000_000, allow_inf_nan=False)
    """Over this a job is refused, whoever approves it."""
    soft_usd: float = Field(2.0, ge=0, le=1_000_000, allow_inf_nan=False)
    """At or under this nobody is asked; between the two a person approves it, has it made cheaper, or cancels it."""
    allow_auto_approve: bool = True
    """Off: a person approves every job, whatever it costs."""
    unknown: Literal["approve", "wait"] = "approve"
    """For jobs on machines without a price, mostly one's own. `wait` where machines are rented."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.soft_usd > self.max_usd:
            raise ValueError("soft_usd must be at most max_usd")
        return self

    def rule(self) -> BudgetRule:
        """As the gate reads it."""
        return BudgetRule(**self.model_dump())


class Jobs(Section):
    """How training jobs are kept, watched and tried again."""

    replicas: int = Field(2, ge=1, le=10)
    """Nodes that have a job's record on their disk before its submitter is answered, as far as so many are up. With 1
    an accepted job is lost with its coordinator's disk."""
    checkpoint_replicas: int = Field(1, ge=0, le=10)
    """Other nodes that get a copy of every checkpoint, on a mesh with a token or for jobs with open data. With 0 a job
    whose node dies begins anew."""
    lease_s: float = Field(5.0, ge=0.5, le=3600)
    """A node that is down and has told nothing of its training for so long loses its job, which goes on elsewhere; one
    that is up is asked again then, and loses it after three times as long. Lower, and a node that is merely busy loses
    its work; higher, and a dead one's job waits."""
    max_retries: int = Field(3, ge=0, le=10)
    """Attempts after the first one that follow a failure of the job's own. A death of its node is none."""
    queue_length: int = Field(10_000, ge=1, le=100_000)
    """Jobs that are not over. The next one is refused; each costs every replica some kilobytes."""
    train_on_battery: bool = False
    """May nodes train that run on their battery? They would be empty within the hour."""


class Evaluation(Section):
    """What the result of a training job must reach, unless the job says otherwise. `any`: not asked for."""

    max_final_loss: Most = 2.0
    """Nats, of the training loss, averaged over the last steps. What is not a number never passes."""
    max_gap: Most = 1.0
    """Nats by which the held-out loss may lie above the training loss: more, and the data was learned by heart."""
    canary: bool = True
    """Are a few fixed prompts answered before and after, to see refusals, silence, and training text told to anybody?
    Costs some seconds of each run."""

    def gates(self, given: Mapping[str, object] | None = None) -> Gates:
        """As the evaluation reads them, with what a job says itself; its fields were checked by whoever took it."""
        return gates_of({**self.model_dump(), **(given or {})})


class PolicyDocument(Section):
    """The meaning of `types.Policy.body`."""

    routing: Routing = Routing()
    coordinator: Admission = Admission()
    limits: Limits = Limits()
    budget: Budget = Budget()
    jobs: Jobs = Jobs()
    evaluation: Evaluation = Evaluation()

    @classmethod
    def from_body(cls, body: Mapping[str, object]) -> PolicyDocument:
        """Read a body that another node wrote: keys of a newer version are ignored, missing ones are defaults.

        Raises `InvalidConfig` when a known key has a value that this version doesn't understand.
        """
        return _validated(body, strict_keys=False)

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> PolicyDocument:
        """Read a body that a person wrote: an unknown key is a mistake too. Raises `InvalidConfig`."""
        return _validated(body, strict_keys=True)

    def job_rules(self) -> JobRules:
        """As the coordinator leads jobs by."""
        return JobRules(
            lease_s=self.jobs.lease_s,
            max_retries=self.jobs.max_retries,
            replicas=self.jobs.replicas,
            waiting_limit=self.jobs.queue_length,
            min_members=self.coordinator.min_members,
            train_on_battery=self.jobs.train_on_battery,
            budget=self.budget.rule(),
        )

    def to_body(self) -> dict[str, object]:
        """The whole document as plain JSON data, defaults included."""
        return self.model_dump(mode="json")


def _validated(body: Mapping[str, object], *, strict_keys: bool) -> PolicyDocument:
    try:
        return PolicyDocument.model_validate(dict(body), extra="forbid" if strict_keys else "ignore")
    except ValidationError as error:
        raise explain(error, PolicyDocument, "policy") from error
