"""Routing as a table: who is asked, in which order, for which request."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tiermesh.core.routing import Refusal, Route, RouteRequest, RoutingPolicy, models_of, plan_route
from tiermesh.types import (
    Ballot,
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
) -> Member:
    status = Status(
        name=name,
        addresses=(),
        state="draining" if draining else "up",
        tier=models[0].tier if models else None,
        models=models,
        load=Load(active, slots, 0),
        latency_ms=latency_ms,
    )
    return Member(NodeId(name), SessionId("s"), status, joined=0, state=state)


def view(*members: Member) -> View:
    return View(Ballot(1, ME), 1, ME, {m.id: m for m in (member("me"), *members)})


def order(
    view: View, request: RouteRequest = ASK_ANY, policy: RoutingPolicy | None = None, **options: object
) -> list[str]:
    """Names of the candidates, best first; a refusal is its kind."""
    active = options.get("active")
    assert active is None or isinstance(active, dict)
    plan = plan_route(view, request, policy or RoutingPolicy(), me=ME, active=active)
    return [plan.kind] if isinstance(plan, Refusal) else [c.node_name for c in plan.candidates]


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
