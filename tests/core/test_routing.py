"""Routing as a table: who is asked, in which order, for which request."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace

import pytest

from tiermesh.core.complexity import Complexity, ComplexityRule
from tiermesh.core.routing import (
    CandidateKey,
    Fact,
    Refusal,
    Route,
    Router,
    RouteRequest,
    RoutingPolicy,
    assessed,
    models_of,
    names_of,
    plan_route,
)
from tiermesh.types import (
    Ballot,
    Health,
    Load,
    Member,
    MemberState,
    Model,
    ModelState,
    NodeId,
    SessionId,
    Status,
    Tier,
    View,
)

ME = NodeId("me")
ASK_ANY = RouteRequest()


def model(name: str, tier: Tier, state: ModelState = "warm", engine: str = "e") -> Model:
    return Model(name, f"digest of {name}", tier, engine, state)


def member(
    name: str,
    *models: Model,
    state: MemberState = "up",
    draining: bool = False,
    active: int = 0,
    slots: int = 4,
    latency_ms: float | None = 1.0,
    health: int | None = None,
) -> Member:
    status = Status(
        name=name,
        addresses=(),
        state="draining" if draining else "up",
        tier=models[0].tier if models else None,
        models=models,
        load=Load(active, slots, 0),
        latency_ms=latency_ms,
        health=Health(health),
    )
    return Member(NodeId(name), SessionId("s"), status, joined=0, state=state)


def view(*members: Member) -> View:
    return View(Ballot(1, ME), 1, ME, {m.id: m for m in (member("me"), *members)})


def order(
    view: View,
    request: RouteRequest = ASK_ANY,
    policy: RoutingPolicy | None = None,
    *,
    active: dict[NodeId, int] | None = None,
    facts: dict[str, Fact] | None = None,
    preferred: str | None = None,
) -> list[str]:
    """Names of the candidates, best first; a refusal is its kind. `facts` are told by node, of the model `big`."""
    plan = plan_route(
        view,
        request,
        policy or RoutingPolicy(),
        me=ME,
        active=active,
        facts={key(name): fact for name, fact in (facts or {}).items()},
        preferred=None if preferred is None else NodeId(preferred),
    )
    return [plan.kind] if isinstance(plan, Refusal) else [c.node_name for c in plan.candidates]


def key(node: str, model: str = "big") -> CandidateKey:
    return CandidateKey(NodeId(node), "e", model)


SMALL, MEDIUM, BIG = model("small", 0), model("medium", 1), model("big", 2)
LADDER = view(member("t0", SMALL), member("t1", MEDIUM), member("t2", BIG))
STRICT = RoutingPolicy(fallback_strategy="strict")


@pytest.mark.parametrize(
    ("tier", "graceful"), [(2, ["t2", "t1", "t0"]), (1, ["t1", "t2", "t0"]), (0, ["t0", "t1", "t2"])]
)
def test_the_fallback_chain_begins_with_the_tier_wanted(tier: Tier, graceful: list[str]) -> None:
    for request in (RouteRequest(f"tier:{tier}"), RouteRequest("auto", tier)):
        assert order(LADDER, request) == graceful
        assert order(LADDER, request, STRICT) == graceful[:1]


def test_strict_refuses_when_the_tier_has_nobody_and_says_what_there_is() -> None:
    two = view(member("t0", SMALL), member("t2", BIG))
    plan = plan_route(two, RouteRequest("tier:1"), STRICT, me=ME)
    assert isinstance(plan, Refusal)
    assert plan.kind == "unavailable"
    assert "tier 0, 2" in plan.message


def test_auto_wants_the_best_tier_there_is() -> None:
    assert order(LADDER) == ["t2", "t1", "t0"]
    assert order(view(member("t0", SMALL), member("t1", MEDIUM))) == ["t1", "t0"]
    assert order(LADDER, policy=STRICT) == ["t2"]


def test_auto_takes_a_free_slot_rather_than_a_queue_at_the_best() -> None:
    busy = view(member("t0", SMALL), member("t2", BIG, active=4))
    assert order(busy) == ["t0", "t2"]
    assert order(busy, RouteRequest("tier:2")) == ["t2", "t0"], "unless the tier was asked for"


def test_a_name_means_every_node_that_has_the_model() -> None:
    three = view(member("a", BIG), member("b", SMALL, BIG), member("c", SMALL))
    assert order(three, RouteRequest("big")) == ["a", "b"]


@pytest.mark.parametrize(
    ("asked", "served"), [("m:latest", "m"), ("m", "m:latest"), ("m:latest", "m:latest"), ("m:8b", "m:8b")]
)
def test_latest_is_dropped_on_both_sides(asked: str, served: str) -> None:
    assert order(view(member("a", model(served, 1))), RouteRequest(asked)) == ["a"]


@pytest.mark.parametrize("target", ["big", "big:latest", "tier:2", "auto"])
def test_an_alias_means_a_model_a_tier_or_auto(target: str) -> None:
    policy = RoutingPolicy(aliases={"gpt-4o": target})
    assert order(LADDER, RouteRequest("gpt-4o"), policy)[0] == "t2"


def test_an_alias_of_an_alias_is_not_followed() -> None:
    policy = RoutingPolicy(aliases={"a": "b", "b": "big"})
    assert order(LADDER, RouteRequest("a"), policy) == ["unknown"]


def test_a_tier_prefers_among_nodes_that_serve_one_name_in_different_tiers() -> None:
    two = view(member("a", model("m", 1)), member("b", model("m", 2)))
    assert order(two, RouteRequest("m", 2)) == ["b", "a"]
    assert order(two, RouteRequest("m", 1)) == ["a", "b"]
    assert order(two, RouteRequest("m", 2), STRICT) == ["b"]
    near = view(member("a", model("m", 1), latency_ms=1), member("b", model("m", 2), latency_ms=2))
    assert order(near, RouteRequest("m")) == ["a", "b"], "without one, tiers don't matter"


def test_warm_before_loading_before_cold() -> None:
    three = view(member("a", model("m", 1, "cold")), member("b", model("m", 1, "loading")), member("c", model("m", 1)))
    assert order(three, RouteRequest("m")) == ["c", "b", "a"]


def test_warm_stays_before_cold_while_it_has_a_free_slot_only() -> None:
    cold = member("cold", model("m", 1, "cold"))
    assert order(view(member("warm", model("m", 1), active=3), cold), RouteRequest("m")) == ["warm", "cold"]
    assert order(view(member("warm", model("m", 1), active=4), cold), RouteRequest("m")) == ["cold", "warm"]


def test_least_loaded_first_relative_to_slots() -> None:
    two = view(member("a", BIG, active=2, slots=4), member("b", BIG, active=3, slots=16))
    assert order(two) == ["b", "a"]
    assert order(two, policy=RoutingPolicy(load_balance=False)) == ["a", "b"]


def test_waiting_requests_count_as_load() -> None:
    a = member("a", BIG)
    a = replace(a, status=replace(a.status, load=Load(1, 4, 2)))
    assert order(view(a, member("b", BIG, active=2))) == ["b", "a"]


def test_what_is_known_locally_overrides_the_views_count() -> None:
    two = view(member("a", BIG), member("b", BIG))
    assert order(two) == ["a", "b"]
    assert order(two, active={NodeId("a"): 1}) == ["b", "a"]


def test_among_equals_the_asked_node_then_the_nearer_one() -> None:
    mine = member("me", BIG, latency_ms=50)
    three = view(
        mine, member("a", BIG, latency_ms=0.2), member("b", BIG, latency_ms=0.1), member("c", BIG, latency_ms=None)
    )
    assert order(three) == ["me", "b", "a", "c"]
    busy = view(member("me", BIG, active=1), member("a", BIG))
    assert order(busy) == ["a", "me"], "but an idle one before it"


def test_without_prefer_local_distance_decides_and_the_asked_node_is_at_none() -> None:
    two = view(member("me", BIG, latency_ms=9), member("a", BIG, latency_ms=0.1))
    assert order(two, policy=RoutingPolicy(prefer_local=False)) == ["me", "a"]


def test_nodes_that_are_down_or_draining_are_not_asked() -> None:
    three = view(member("a", BIG, state="down"), member("b", BIG, draining=True), member("c", BIG))
    assert order(three) == ["c"]


def test_the_asking_node_is_up_whatever_a_stale_view_says() -> None:
    assert order(view(member("me", BIG, state="down"))) == ["me"]
    assert order(view(member("me", BIG, draining=True))) == ["unavailable"]


def test_a_known_model_on_nodes_that_are_gone_is_unavailable_and_names_them() -> None:
    gone = view(member("a", BIG, state="down"), member("b", BIG, draining=True), member("c", SMALL))
    plan = plan_route(gone, RouteRequest("big"), RoutingPolicy(), me=ME)
    assert isinstance(plan, Refusal)
    assert plan.kind == "unavailable"
    assert "a (down), b (draining)" in plan.message


@pytest.mark.parametrize("asked", ["nope", "tier:3", "tier:x"])
def test_an_unknown_model_lists_what_exists(asked: str) -> None:
    plan = plan_route(LADDER, RouteRequest(asked), RoutingPolicy(aliases={"gpt-4o": "big"}), me=ME)
    assert isinstance(plan, Refusal)
    assert plan.kind == "unknown"
    assert "tier:0, tier:1, tier:2" in plan.message
    assert asked != "nope" or "big, medium, small, gpt-4o, auto" in plan.message


def test_an_empty_mesh_says_what_to_do() -> None:
    plan = plan_route(view(), ASK_ANY, RoutingPolicy(), me=ME)
    assert isinstance(plan, Refusal)
    assert plan.kind == "unavailable"
    assert "start an engine" in plan.message


def test_the_default_of_a_node_is_its_first_model_in_the_tier_a_warm_one_before() -> None:
    node = member("a", model("x", 2, "cold"), model("y", 2, "warm"), model("z", 2, "warm"), model("s", 0))
    plan = plan_route(view(node), RouteRequest("tier:2"), RoutingPolicy(), me=ME)
    assert isinstance(plan, Route)
    assert [c.model.name for c in plan.candidates] == ["y", "s"]


def test_one_model_on_two_engines_of_a_node_gives_two_candidates() -> None:
    node = member("a", model("m", 1, "cold", "e1"), model("m", 1, "warm", "e2"))
    plan = plan_route(view(node), RouteRequest("m"), RoutingPolicy(), me=ME)
    assert isinstance(plan, Route)
    assert [c.model.engine for c in plan.candidates] == ["e2", "e1"]


def test_a_candidate_says_why() -> None:
    plan = plan_route(LADDER, ASK_ANY, RoutingPolicy(), me=ME)
    assert isinstance(plan, Route)
    assert plan.candidates[0].reason == "tier 2, warm, 0 of 4 slots busy, 1.0 ms away"


def test_healthy_before_degraded_before_unhealthy_and_unknown_is_healthy() -> None:
    four = view(member("a", BIG, health=59), member("b", BIG, health=60), member("c", BIG, health=80), member("d", BIG))
    assert order(four) == ["c", "d", "b", "a"]
    ill = view(member("a", BIG, health=10), member("b", model("big", 2, "cold")))
    assert order(ill) == ["a", "b"], "but warm before healthy"


def test_whoever_trains_is_as_good_as_degraded() -> None:
    three = view(member("a", BIG), member("b", BIG, health=60), member("c", BIG), member("d", BIG, health=10))
    busy = three.members[NodeId("a")]
    trains = replace(busy, status=replace(busy.status, training="faq"))
    assert order(replace(three, members={**three.members, busy.id: trains})) == ["c", "a", "b", "d"]


SHUT = Fact(breaker="open", retry_after_s=7)


def test_whose_breaker_is_open_is_left_out() -> None:
    two = view(member("a", BIG), member("b", BIG))
    assert order(two, facts={"a": SHUT}) == ["b"]
    plan = plan_route(two, ASK_ANY, RoutingPolicy(), me=ME, facts={key("a"): SHUT})
    assert isinstance(plan, Route)
    assert [c.node_name for c in plan.left_out] == ["a"]
    assert plan.left_out[0].reason.endswith("breaker open, next try in 7 s, 1.0 ms away")


def test_half_open_is_asked_unless_a_probe_is_on_its_way() -> None:
    two = view(member("a", BIG), member("b", BIG))
    assert order(two, facts={"a": Fact(breaker="half_open")}) == ["a", "b"]
    assert order(two, facts={"a": Fact(breaker="half_open", retry_after_s=1)}) == ["b"]


def test_an_open_breaker_makes_way_for_the_next_tier() -> None:
    assert order(LADDER, RouteRequest("tier:2"), facts={"t2": SHUT}) == ["t1", "t0"]
    assert order(LADDER, RouteRequest("tier:2"), STRICT, facts={"t2": SHUT}) == ["unavailable"]
    assert order(LADDER, policy=STRICT, facts={"t2": SHUT}) == ["t1"], "nobody asked for tier 2"


def test_when_all_breakers_are_open_the_refusal_says_when_to_return() -> None:
    two = view(member("a", BIG), member("b", BIG))
    facts = {key("a"): SHUT, key("b"): Fact(breaker="open", retry_after_s=3)}
    plan = plan_route(two, RouteRequest("big"), RoutingPolicy(), me=ME, facts=facts)
    assert isinstance(plan, Refusal)
    assert (plan.kind, plan.retry_after_s) == ("unavailable", 3)
    assert [c.node_name for c in plan.left_out] == ["b", "a"]
    assert "b (again in 3 s), a (again in 7 s)" in plan.message


def test_of_idle_ones_the_one_measured_twice_as_quick_goes_first() -> None:
    two = view(member("a", BIG), member("b", BIG))
    assert order(two, facts={"a": Fact(0.1, 40), "b": Fact(0.1, 100)}) == ["b", "a"]
    assert order(two, facts={"a": Fact(0.1, 60), "b": Fact(0.1, 100)}) == ["a", "b"], "less is noise"
    assert order(two, facts={"a": Fact(9.0, 100), "b": Fact(0.1, 100)}) == ["b", "a"], "first tokens count"
    mine = view(member("me", BIG), member("a", BIG))
    assert order(mine, facts={"me": Fact(0.1, 10), "a": Fact(0.1, 100)}) == ["a", "me"], "before prefer_local"


def test_who_was_not_measured_yet_counts_as_quick() -> None:
    two = view(member("a", BIG), member("b", BIG))
    assert order(two, facts={"b": Fact(0.1, 100)}) == ["a", "b"]
    assert order(two, facts={"a": Fact(0.1, None), "b": Fact(0.1, 100)}) == ["a", "b"]


def test_a_quick_node_gets_more_requests_before_a_slow_one_gets_its_first() -> None:
    facts = {"a": Fact(0, 400), "b": Fact(0, 100)}
    for busy in range(4):
        assert order(view(member("a", BIG, active=busy), member("b", BIG)), facts=facts) == ["a", "b"]
    assert order(view(member("a", BIG, active=4), member("b", BIG)), facts=facts) == ["b", "a"]


def test_a_conversation_returns_to_where_its_cache_is() -> None:
    two = view(member("a", BIG), member("b", BIG, active=1))
    assert order(two) == ["a", "b"]
    assert order(two, preferred="b") == ["b", "a"]
    plan = plan_route(two, ASK_ANY, RoutingPolicy(), me=ME, preferred=NodeId("b"))
    assert isinstance(plan, Route)
    assert plan.candidates[0].preferred
    assert plan.candidates[0].score == plan.candidates[1].score
    assert "has the conversation in its cache" in plan.candidates[0].reason


def test_unless_that_node_is_half_as_busy_again() -> None:
    def at(active: int) -> list[str]:
        return order(view(member("a", BIG, slots=10), member("b", BIG, slots=10, active=active)), preferred="b")

    assert at(4) == ["b", "a"]
    assert at(5) == ["a", "b"]


@pytest.mark.parametrize(
    "other",
    [
        member("b", BIG, active=4),
        member("b", model("big", 2, "cold")),
        member("b", BIG, health=70),
        member("b", SMALL),
        member("b", BIG, state="down"),
    ],
    ids=["full", "cold", "degraded", "lower tier", "down"],
)
def test_nor_where_it_is_worse_in_what_matters_more(other: Member) -> None:
    assert order(view(member("a", BIG), other), preferred="b")[0] == "a"


HARD, MIDDLING, EASY = Complexity(0.8, 2), Complexity(0.4, 1), Complexity(0.1, 0)


@pytest.mark.parametrize(("complexity", "first"), [(HARD, "t2"), (MIDDLING, "t1"), (EASY, "t0")])
def test_auto_wants_the_tier_that_the_complexity_says(complexity: Complexity, first: str) -> None:
    for policy in (RoutingPolicy(), STRICT):
        assert order(LADDER, RouteRequest(complexity=complexity), policy)[0] == first


def test_what_the_request_says_goes_before_its_complexity() -> None:
    assert order(LADDER, RouteRequest("auto", 2, EASY))[0] == "t2"
    assert order(LADDER, RouteRequest("tier:2", complexity=EASY))[0] == "t2"
    assert order(LADDER, RouteRequest("big", complexity=EASY)) == ["t2"]


def test_a_tier_that_only_the_complexity_chose_gives_way_to_a_free_slot() -> None:
    busy = view(member("t0", SMALL), member("t1", MEDIUM), member("t2", BIG, active=4))
    assert order(busy, RouteRequest(complexity=HARD)) == ["t1", "t0", "t2"]


def test_strict_refuses_nobody_for_a_tier_that_only_the_complexity_chose() -> None:
    two = view(member("t0", SMALL), member("t2", BIG))
    assert order(two, RouteRequest(complexity=MIDDLING), STRICT) == ["t2"]


def test_the_route_tells_what_tier_was_wanted_and_who_said_so() -> None:
    wanted = []
    for request in (RouteRequest(complexity=EASY), RouteRequest("tier:1"), RouteRequest("big"), ASK_ANY):
        plan = plan_route(LADDER, request, RoutingPolicy(), me=ME)
        assert isinstance(plan, Route)
        wanted.append((plan.tier, plan.assessed))
    assert wanted == [(0, True), (1, False), (None, False), (None, False)]


@pytest.mark.parametrize(
    ("request_", "policy", "is_assessed"),
    [
        (ASK_ANY, RoutingPolicy(), True),
        (RouteRequest("gpt-4o"), RoutingPolicy(aliases={"gpt-4o": "auto"}), True),
        (RouteRequest("auto", 1), RoutingPolicy(), False),
        (RouteRequest("tier:1"), RoutingPolicy(), False),
        (RouteRequest("tier:9"), RoutingPolicy(), False),
        (RouteRequest("big"), RoutingPolicy(), False),
        (ASK_ANY, RoutingPolicy(complexity=None), False),
    ],
)
def test_a_prompt_is_assessed_only_where_that_chooses_the_tier(
    request_: RouteRequest, policy: RoutingPolicy, is_assessed: bool
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert (assessed(request_, body, policy).complexity is not None) == is_assessed
    assert assessed(request_, {"input": "hi"}, policy) == request_, "an embedding has no complexity"


def test_the_policy_says_where_the_tiers_begin() -> None:
    policy = RoutingPolicy(complexity=ComplexityRule(medium=0, powerful=0))
    asked = assessed(ASK_ANY, {"messages": [{"role": "user", "content": "hi"}]}, policy)
    assert order(LADDER, asked, policy) == ["t2", "t1", "t0"]


def test_equal_views_give_equal_routes_in_whatever_order_members_stand() -> None:
    members = [member(f"n{i}", BIG, latency_ms=None) for i in range(8)]
    routes = set()
    for seed in range(20):
        random.Random(seed).shuffle(members)
        routes.add(tuple(order(view(*members))))
    assert len(routes) == 1


def test_models_are_listed_with_the_nodes_that_are_up() -> None:
    two = view(member("b", model("m:latest", 1)), member("a", model("m", 1), SMALL), member("c", BIG, state="down"))
    assert models_of(two, ME) == {"m": ["a", "b"], "small": ["a"]}


def test_names_are_those_that_a_request_may_have() -> None:
    two = view(member("b", model("m:latest", 1)), member("a", model("m", 1), SMALL), member("c", BIG, state="down"))
    aliases = {"gpt": "m:latest", "large": "tier:2", "quick": "tier:0", "small": "m"}
    names = names_of(two, ME, aliases)
    assert list(names) == ["auto", "gpt", "quick", "small", "tier:0", "tier:1", "m"]
    assert (names["auto"], names["quick"], names["small"]) == (["a", "b"], ["a"], ["a", "b"])
    assert names_of(View(), ME, aliases) == {}


def random_mesh(rng: random.Random) -> tuple[View, dict[CandidateKey, Fact], dict[NodeId, int]]:
    states: list[ModelState] = ["warm", "loading", "cold"]
    tiers: list[Tier] = [0, 1, 2]
    members = [
        member(
            f"n{i}",
            model("big", rng.choice(tiers), rng.choice(states)),
            model("small", rng.choice(tiers), rng.choice(states)),
            active=rng.randrange(6),
            slots=rng.choice([1, 4, 16]),
            latency_ms=rng.choice([None, 0.3, 2.0]),
            health=rng.choice([None, 40, 70, 90]),
            state=rng.choice(["up", "up", "down"]),
        )
        for i in range(rng.randrange(1, 9))
    ]
    facts = {
        key(m.id, "big"): Fact(rng.random(), rng.choice([None, 5, 50, 500])) for m in members if rng.random() < 0.5
    }
    return view(*members), facts, {m.id: rng.randrange(20) for m in members if rng.random() < 0.3}


@pytest.mark.parametrize("seed", range(200))
def test_scores_fall_along_every_route_and_nobody_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    seen, facts, active = random_mesh(rng)
    router = Router(ME)
    for asked in (
        ASK_ANY,
        RouteRequest("big"),
        RouteRequest("tier:1"),
        RouteRequest("big", 0),
        RouteRequest(complexity=HARD),
    ):
        preferred = NodeId(rng.choice(list(seen.members)))
        plan = router.plan(seen, asked, RoutingPolicy(), active=active, facts=facts, preferred=preferred)
        if isinstance(plan, Refusal):
            assert all(m.state == "down" for m in seen.members.values() if m.status.models)
            continue
        scores = [candidate.score for candidate in plan.candidates]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 100 for score in scores)
        assert len({candidate.key for candidate in plan.candidates}) == len(plan.candidates)
        up = {m.id for m in seen.members.values() if m.state == "up" and m.status.models}
        assert {candidate.node for candidate in plan.candidates} == up
        again = plan_route(seen, asked, RoutingPolicy(), me=ME, active=active, facts=facts, preferred=preferred)
        assert isinstance(again, Route)
        assert list(again.candidates) == list(plan.candidates), "a router gives what a fresh one gives"


def test_a_router_sees_every_new_view() -> None:
    router = Router(ME)
    for name in ("a", "b", "a"):
        plan = router.plan(view(member(name, BIG)), ASK_ANY, RoutingPolicy())
        assert isinstance(plan, Route)
        assert plan.candidates[0].node_name == name


@pytest.mark.parametrize(
    "asked", [RouteRequest("big"), ASK_ANY, RouteRequest("tier:1"), RouteRequest(complexity=HARD)], ids=str
)
@pytest.mark.parametrize("new_views", [False, True], ids=["old view", "new view"])
def test_a_decision_among_64_nodes_takes_less_than_a_tenth_of_a_millisecond(
    asked: RouteRequest, new_views: bool
) -> None:
    """All of them measured, a third busier than the view knows, a conversation with a home, and, every 50 decisions, a
    view in which one node has changed. Whatever else the machine does, the best of twenty rounds is our own doing.
    """
    rng = random.Random(1)
    members = [
        member(f"{i:032x}", model("big", rng.choice([0, 1, 2])), active=rng.randrange(4), latency_ms=rng.random())
        for i in range(64)
    ]
    seen, router, policy = view(*members), Router(ME), RoutingPolicy()
    facts = {key(m.id): Fact(rng.random(), 20 + 80 * rng.random()) for m in members}
    active = {m.id: 1 for m in members[:20]}
    rounds = []
    for number in range(20):
        took_us = []
        for one in range(200):
            if new_views and one % 50 == 0:
                changed = replace(members[number], joined=one)
                seen = replace(seen, members={**seen.members, changed.id: changed})
            began = time.perf_counter_ns()
            plan = router.plan(seen, asked, policy, active=active, facts=facts, preferred=members[7].id)
            assert isinstance(plan, Route)
            assert plan.candidates[0]
            took_us.append((time.perf_counter_ns() - began) / 1000)
        rounds.append((statistics.median(took_us), sorted(took_us)[-3]))
    print(f"{asked.model}: p50 {min(rounds)[0]:.0f} us, p99 {min(p99 for _, p99 in rounds):.0f} us")
    assert min(p50 for p50, _ in rounds) < 100
