"""Where does a job train? A pure table: who may take it at all, who of those is best, and why not the others.

A node is left out, in words that a person can read, when it is down or draining, is not the one (or of the tier) that
was wanted, has no free training slot, runs on battery, or has less memory than the job needs. Of the others the best
has the job's checkpoint, then its data, then the higher tier, then the fewer requests in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from tiermesh.types import MemberState, NodeId, Tier

GB = 1e9
NAMED = 10
"""Of the nodes that there are, in a sentence: a mesh may have hundreds."""
ANY = "any"
TIERS = tuple(f"tier:{tier}" for tier in get_args(Tier))
"""Each may be had one day: a node of it may join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node as far as placement goes. None is unknown, and no reason to leave it out."""

    id: NodeId
    name: str
    state: MemberState = "up"
    tier: Tier | None = None
    memory_bytes: int | None = None
    """All that there is. Whether it is free, the node itself says when it is asked."""
    slots: int = 1
    training: tuple[str, ...] = ()
    """Names of the jobs that have its slots."""
    on_battery: bool = False
    has_checkpoint: bool = False
    has_data: bool = False
    active: int = 0
    """Requests that it works on."""
    objection: str = ""
    """Why it said no a moment ago."""


@dataclass(frozen=True, slots=True)
class Placement:
    """`node` None: nobody can take it now. `reason` says in words why, or what speaks for the node."""

    node: NodeId | None
    reason: str = ""
    objections: tuple[tuple[str, str], ...] = ()
    """Names of nodes with what speaks against them."""


def place(needs_bytes: int | None, wanted: str, places: Iterable[Place], *, battery: bool = False) -> Placement:
    """The best of `places`. `wanted` is `any`, `tier:N` or a node's name; `battery`: one that runs on it will do."""
    known = sorted(places, key=lambda each: each.name)
    judged = [(each, _objection(each, needs_bytes, wanted, battery)) for each in known]
    objections = tuple((each.name, why) for each, why in judged if why)
    fit = [each for each, why in judged if not why]
    if fit:
        best = max(fit, key=_merit)
        return Placement(best.id, _praise(best, fit, wanted, alone=len(known) == 1), objections)
    return Placement(None, _sentence(needs_bytes, wanted, known, objections), objections)


def unknown_node(wanted: str, nodes: Mapping[NodeId, str]) -> str:
    """What is wrong with `wanted` when it names none of `nodes` (names by id, of nodes up or down); else nothing."""
    if wanted == ANY or wanted in TIERS or wanted in nodes or wanted in nodes.values():
        return ""
    return f"target_gpu: {_unknown(wanted, sorted(nodes.values()))}; or say {', '.join((ANY, *TIERS))}"


def too_small(needs_bytes: int, has_bytes: int) -> str:
    """What speaks against a node with less memory than is needed."""
    return f"has {_gb(has_bytes)} of {_gb(needs_bytes)}"


def _merit(each: Place) -> tuple[bool, bool, int, int, str]:
    return each.has_checkpoint, each.has_data, -1 if each.tier is None else each.tier, -each.active, each.id


def _praise(best: Place, fit: list[Place], wanted: str, *, alone: bool) -> str:
    """The first thing in which it is better than all others that could take it."""
    others = [each for each in fit if each is not best]
    merits: tuple[tuple[str, Callable[[Place], int]], ...] = (
        ("has its checkpoint already", lambda each: each.has_checkpoint),
        ("has its data already", lambda each: each.has_data),
        (f"the highest tier, {best.tier}", lambda each: -1 if each.tier is None else each.tier),
        ("answers the fewest prompts just now", lambda each: -each.active),
    )
    if alone:
        return "the only node"
    if wanted in (best.name, best.id):
        return "the one that was wanted"
    if not others:
        return "the only one that can take it"
    better = (said for said, merit in merits if all(merit(best) > merit(each) for each in others))
    return next(better, f"as good as any of {len(fit)}")


def _objection(each: Place, needs_bytes: int | None, wanted: str, battery: bool) -> str:
    if not _is_wanted(each, wanted):
        return f"{wanted} is wanted"
    if each.state != "up":
        return "is down" if each.state == "down" else "is draining"
    if needs_bytes is not None and each.memory_bytes is not None and needs_bytes > each.memory_bytes:
        return too_small(needs_bytes, each.memory_bytes)
    if each.on_battery and not battery:
        return "runs on battery"
    if len(each.training) >= each.slots:
        slots = "one training slot" if each.slots == 1 else f"{each.slots} training slots"
        return f"trains {', '.join(each.training)}, and has {slots}" if each.training else "has no training slot"
    return each.objection


def _is_wanted(each: Place, wanted: str) -> bool:
    if wanted.startswith("tier:"):
        return wanted == f"tier:{each.tier}"
    return wanted in (ANY, each.name, each.id)


def _sentence(needs_bytes: int | None, wanted: str, known: list[Place], objections: tuple[tuple[str, str], ...]) -> str:
    eligible = [each for each in known if _is_wanted(each, wanted)]
    if not eligible and wanted.startswith("tier:"):
        return f"no node is {wanted}"
    if not eligible:
        return _unknown(wanted, [each.name for each in known])
    up = [each for each in eligible if each.state == "up"]
    sizes = [(each.memory_bytes, each.name) for each in up if each.memory_bytes is not None]
    if needs_bytes is not None and up and len(sizes) == len(up) and max(sizes)[0] < needs_bytes:
        return f"needs {_gb(needs_bytes)}, the largest node, {max(sizes)[1]}, has {max(sizes)[0] / GB:.1f}"
    names = {each.name for each in eligible}
    return "; ".join(f"{name} {why}" for name, why in objections if name in names)


def _unknown(wanted: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    there = f"there is {names[0]}" if len(names) == 1 else f"there are {', '.join(names[:NAMED])}{more}"
    return f"no node is called {wanted}; {there}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / GB:.1f} GB"
