"""`POST /api/route`: what a prompt would do, told by a node of a real mesh; and nothing is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.daemon.still_mesh import StillMesh, still_mesh

from tiermesh.protocol.route import RouteReport
from tiermesh.types import Health

HELLO = [{"role": "user", "content": "hello"}]
THEOREM = "Prove that the algorithm is optimal, analyse its complexity, and compare it with a greedy heuristic."
HARD = [{"role": "user", "content": THEOREM}]


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "small": 0, "big": 2}, {"small": ("s",), "big": ("b",)}) as mesh:
        yield mesh


async def route(mesh: StillMesh, **body: Any) -> RouteReport:
    status, answer, _ = await mesh.post("desk", "/api/route", {"messages": HELLO, **body})
    assert status == 200, answer
    report = RouteReport.model_validate(answer)
    assert report.model_dump(mode="json") == answer
    return report


async def test_it_shows_candidates_with_scores_and_reasons_and_asks_nobody(mesh: StillMesh) -> None:
    report = await route(mesh, model="tier:2")
    assert [(c.node, c.model, c.tier) for c in report.candidates] == [("big", "b", 2), ("small", "s", 0)]
    assert report.tier == 2
    first, second = report.candidates
    assert first.score is not None
    assert second.score is not None
    assert 100 == first.score > second.score > 0
    assert first.reason.startswith("tier 2, warm, 0 of ")
    for node in mesh.nodes.values():
        assert node.fake is None or node.fake.requests == []


@pytest.mark.parametrize(("messages", "node", "tier"), [(HELLO, "small", 0), (HARD, "big", 2)])
async def test_the_words_choose_the_tier_for_auto(mesh: StillMesh, messages: Any, node: str, tier: int) -> None:
    report = await route(mesh, messages=messages)
    assert report.candidates[0].node == node
    assert report.complexity is not None
    assert (report.complexity.tier, report.tier, report.complexity.used) == (tier, tier, True)
    assert list(report.complexity.signals) == ["length", "keywords", "context", "code", "question"]


@pytest.mark.parametrize("body", [{"tier": 2}, {"model": "tier:2"}, {"model": "b"}])
async def test_the_request_overrides_it_and_it_is_still_shown(mesh: StillMesh, body: dict[str, Any]) -> None:
    report = await route(mesh, **body)
    assert report.candidates[0].node == "big"
    assert report.complexity is not None
    assert (report.complexity.tier, report.complexity.used) == (0, False)


async def test_the_policy_can_switch_it_off(mesh: StillMesh) -> None:
    mesh.set_policy({"routing": {"complexity": {"enabled": False}}})
    report = await route(mesh)
    assert report.complexity is None
    assert report.candidates[0].node == "big"


@pytest.mark.parametrize(("messages", "node", "told"), [(HELLO, "small", "tier=0"), (HARD, "big", "tier=2")])
async def test_the_prompt_takes_the_route_that_was_shown_and_its_answer_says_why(
    mesh: StillMesh, messages: Any, node: str, told: str
) -> None:
    for path in ("/v1/chat/completions", "/api/complete"):
        status, _, headers = await mesh.post("desk", path, {"messages": messages})
        assert (status, headers["X-Mesh-Node"]) == (200, node)
        assert headers["X-Mesh-Complexity"].endswith(f"; {told}")
    _, _, headers = await mesh.post("desk", "/v1/chat/completions", {"messages": messages, "model": "b"})
    assert "X-Mesh-Complexity" not in headers


async def test_ill_nodes_come_after_well_ones(mesh: StillMesh) -> None:
    mesh.mark("small", "up", health=Health(score=40), models=mesh.view.members[mesh.nodes["big"].id].status.models)
    report = await route(mesh, model="b")
    assert [(c.node, c.health) for c in report.candidates] == [("big", None), ("small", 40)]


async def test_nobody_to_ask_is_an_answer_and_an_unknown_model_an_error(mesh: StillMesh) -> None:
    mesh.mark("big", "down")
    report = await route(mesh, model="b")
    assert report.candidates == []
    assert report.refusal is not None
    assert "big (down)" in report.refusal.message
    status, body, _ = await mesh.post("desk", "/api/route", {"messages": HELLO, "model": "nope"})
    assert (status, body["error"]["type"], body["error"]["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": HELLO, "tier": 3}, "tier"),
        ({"messages": [7]}, "messages[0]"),
    ],
)
async def test_what_is_wrong_is_said(mesh: StillMesh, body: dict[str, Any], param: str) -> None:
    status, answer, _ = await mesh.post("desk", "/api/route", body)
    assert (status, answer["error"]["param"]) == (400, param)
