"""Where a job trains, and why not elsewhere: a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tiermesh.core.job_line import Line
from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.core.placement import NAMED, Place, place, unknown_node
from tiermesh.types import NodeId

GB = 10**9
SMALL = Place(id=NodeId("1"), name="laptop", tier=0, memory_bytes=4 * GB)
LARGE = Place(id=NodeId("2"), name="gpu1", tier=2, memory_bytes=int(7.4 * GB))
OTHER = Place(id=NodeId("3"), name="server", tier=1)


@pytest.mark.parametrize(
    ("places", "wanted", "praise"),
    [
        ([SMALL], "any", "the only node"),
        ([SMALL, LARGE], "laptop", "the one that was wanted"),
        ([SMALL, replace(LARGE, state="down")], "any", "the only one that can take it"),
        ([SMALL, LARGE, OTHER], "any", "the highest tier, 2"),
        ([SMALL, replace(LARGE, has_data=True)], "any", "has its data already"),
        ([replace(SMALL, has_checkpoint=True), replace(LARGE, has_data=True)], "any", "has its checkpoint already"),
        ([replace(SMALL, tier=2, active=3), LARGE], "any", "answers the fewest prompts just now"),
        ([replace(SMALL, tier=2), LARGE], "any", "as good as any of 2"),
        ([OTHER, replace(SMALL, tier=1)], "tier:1", "as good as any of 2"),
    ],
)
def test_it_is_said_what_speaks_for_the_best(places: list[Place], wanted: str, praise: str) -> None:
    assert place(GB, wanted, places).reason == praise


@pytest.mark.parametrize(
    ("places", "wanted", "chosen"),
    [
        ([SMALL, LARGE, OTHER], "any", "gpu1"),
        ([SMALL, LARGE, OTHER], "tier:1", "server"),
        ([SMALL, LARGE, OTHER], "laptop", "laptop"),
        ([SMALL, replace(LARGE, training=("faq",))], "any", "laptop"),
        ([SMALL, replace(LARGE, state="down")], "any", "laptop"),
        ([SMALL, replace(LARGE, state="draining")], "any", "laptop"),
        ([SMALL, replace(LARGE, on_battery=True)], "any", "laptop"),
        ([SMALL, replace(LARGE, objection="2.0 GB are free")], "any", "laptop"),
        ([replace(SMALL, has_data=True), LARGE], "any", "laptop"),
        ([replace(SMALL, has_checkpoint=True), replace(LARGE, has_data=True)], "any", "laptop"),
        ([replace(SMALL, tier=2, active=3), LARGE], "any", "gpu1"),
        ([replace(SMALL, tier=2), replace(LARGE, active=1)], "any", "laptop"),
        ([replace(LARGE, training=("faq",), slots=2)], "any", "gpu1"),
    ],
)
def test_the_best_that_may(places: list[Place], wanted: str, chosen: str) -> None:
    names = {each.id: each.name for each in places}
    found = place(GB, wanted, places)
    assert found.node is not None
    assert names[found.node] == chosen


@pytest.mark.parametrize(
    ("needs", "places", "wanted", "reason"),
    [
        (int(9.1 * GB), [SMALL, LARGE], "any", "needs 9.1 GB, the largest node, gpu1, has 7.4"),
        (int(9.1 * GB), [SMALL, LARGE, OTHER], "laptop", "needs 9.1 GB, the largest node, laptop, has 4.0"),
        (
            int(9.1 * GB),
            [SMALL, replace(OTHER, training=("faq",))],
            "any",
            "laptop has 4.0 GB of 9.1 GB; server trains faq, and has one training slot",
        ),
        (None, [replace(LARGE, state="down")], "any", "gpu1 is down"),
        (None, [replace(LARGE, state="draining")], "any", "gpu1 is draining"),
        (None, [replace(LARGE, slots=0)], "any", "gpu1 has no training slot"),
        (None, [replace(LARGE, slots=2, training=("a", "b"))], "any", "gpu1 trains a, b, and has 2 training slots"),
        (None, [replace(LARGE, on_battery=True)], "any", "gpu1 runs on battery"),
        (None, [replace(LARGE, objection="is too warm")], "any", "gpu1 is too warm"),
        (None, [SMALL, LARGE], "tier:1", "no node is tier:1"),
        (None, [SMALL, LARGE], "gpu9", f"no node is called gpu9; there are {LARGE.name}, {SMALL.name}"),
        (None, [SMALL, replace(LARGE, state="down")], "gpu1", "gpu1 is down"),
    ],
)
def test_a_reason_that_a_person_can_read(needs: int | None, places: list[Place], wanted: str, reason: str) -> None:
    found = place(needs, wanted, places)
    assert (found.node, found.reason) == (None, reason)


NODES = {NodeId("1" * 32): "laptop", NodeId("2" * 32): "gpu1"}
FIRST = ", ".join(f"n{index:02}" for index in range(NAMED))
MANY = {NodeId(f"{index:032}"): f"n{index:02}" for index in range(NAMED + 2)}
OR = "or say any, tier:0, tier:1, tier:2"


@pytest.mark.parametrize(
    ("wanted", "nodes", "wrong"),
    [
        ("any", NODES, ""),
        ("tier:2", NODES, ""),
        ("gpu1", NODES, ""),
        ("2" * 32, NODES, ""),
        ("gpu9", NODES, f"target_gpu: no node is called gpu9; there are gpu1, laptop; {OR}"),
        ("GPU1", NODES, f"target_gpu: no node is called GPU1; there are gpu1, laptop; {OR}"),
        ("tier:9", NODES, f"target_gpu: no node is called tier:9; there are gpu1, laptop; {OR}"),
        ("gpu9", {NodeId("1"): "desk"}, f"target_gpu: no node is called gpu9; there is desk; {OR}"),
        (
            "x",
            MANY,
            f"target_gpu: no node is called x; there are {FIRST} and 2 more; {OR}",
        ),
    ],
)
def test_a_node_that_there_is_not_can_not_be_wanted(wanted: str, nodes: dict[NodeId, str], wrong: str) -> None:
    assert unknown_node(wanted, nodes) == wrong


def test_unknown_memory_is_no_reason_to_leave_a_node_out() -> None:
    assert place(100 * GB, "any", [SMALL, OTHER]).node == OTHER.id


def test_a_node_on_battery_will_do_where_that_is_said() -> None:
    assert place(None, "any", [replace(SMALL, on_battery=True)], battery=True).node == SMALL.id


def test_each_node_that_was_passed_over_has_its_reason() -> None:
    found = place(5 * GB, "any", [SMALL, LARGE, replace(OTHER, state="down")])
    assert found.node == LARGE.id
    assert found.objections == (("laptop", "has 4.0 GB of 5.0 GB"), ("server", "is down"))


def job(name: str, submitter: str = "ann", priority: int = 0, at: float = 0.0) -> Job:
    asked = Asked(
        name=name,
        spec={},
        data=Dataset("a" * 64, "x"),
        submitter=submitter,
        priority=priority,
        submitted_at=at,
    )
    return Job(id=JobId(name), asked=asked)


def line(queued: list[Job], at_work: list[Job]) -> list[str]:
    """All begun, one after the other."""
    waiting, names = Line(queued, at_work, {}), []
    for each in waiting:
        names.append(each.name)
        waiting.begun(each, float(len(names)))
    return names


class TestLine:
    def test_who_has_waited_longest_is_next(self) -> None:
        assert line([job("b", at=2.0), job("c", at=3.0), job("a", at=1.0)], []) == ["a", "b", "c"]

    def test_priority_goes_first(self) -> None:
        assert line([job("a", at=1.0), job("b", priority=1, at=2.0)], []) == ["b", "a"]

    def test_who_has_least_at_work_goes_first_and_then_takes_turns(self) -> None:
        many = [job(f"ann-{index}", "ann", at=float(index)) for index in range(3)]
        few = [job(f"bob-{index}", "bob", at=10.0 + index) for index in range(2)]
        assert line([*many, *few], []) == ["ann-0", "bob-0", "ann-1", "bob-1", "ann-2"]
        assert line([*many, *few], [job("x", "ann"), job("y", "ann")])[:2] == ["bob-0", "bob-1"]

    def test_with_one_slot_they_take_turns_too(self) -> None:
        many = [job(f"ann-{index}", "ann", at=float(index)) for index in range(3)]
        assert next(iter(Line([*many, job("bob-0", "bob", at=9.0)], [], {"ann": 5.0}))).name == "bob-0"
        assert next(iter(Line([*many, job("bob-0", "bob", at=9.0)], [], {"ann": 5.0, "bob": 6.0}))).name == "ann-0"

    def test_who_can_not_begin_holds_up_nobody(self) -> None:
        assert [each.name for each in Line([job("a"), job("b", at=1.0)], [], {})] == ["a", "b"]
