"""The transition table of the node as data, to say which of it a run of the simulation has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from tiermesh.sim.machine import Transition

TRANSITIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("seek", "seek"): ("claim", "thaw"),
    ("seek", "join"): ("follows", "lead", "probe", "come"),
    ("seek", "prevote"): ("tick",),
    ("join", "seek"): ("tick", "refused", "lost", "nolead", "claim", "thaw"),
    ("join", "join"): ("nolead", "lead"),
    ("join", "follow"): ("welcome",),
    ("prevote", "seek"): ("busy", "pre", "claim", "thaw"),
    ("prevote", "join"): ("lives", "follows", "probe", "come", "lead"),
    ("prevote", "claim"): ("tick", "yes", "lives", "refused"),
    ("claim", "seek"): ("tick", "deny", "claim", "thaw"),
    ("claim", "join"): ("lead",),
    ("claim", "lead"): ("tick", "grant", "refused"),
    ("follow", "seek"): ("tick", "lost", "refused", "bye", "nolead", "claim", "thaw"),
    ("follow", "join"): ("drop", "moved", "nolead"),
    ("lead", "seek"): ("describe", "thaw"),
    ("lead", "follow"): ("welcome",),
}
"""(state, next state) to the events that lead there. `tick` is the deadline, other names are those of messages and of
the methods of `core.node.Node`; `thaw` is any event that finds the clock far ahead."""


def known() -> Iterator[Transition]:
    """All transitions of the table."""
    for (before, after), events in TRANSITIONS.items():
        for event in events:
            yield before, event, after


def unknown(seen: Counter[Transition]) -> list[Transition]:
    """Transitions that happened and are not in the table."""
    return sorted(set(seen) - set(known()))


def unseen(seen: Counter[Transition]) -> list[Transition]:
    """Transitions of the table that did not happen."""
    return sorted(set(known()) - set(seen))


def lines(seen: Counter[Transition]) -> Iterator[str]:
    """The table with counts, for people."""
    for (before, after), events in TRANSITIONS.items():
        counts = ", ".join(f"{event} {seen[before, event, after]:,}" for event in events)
        yield f"  {before:>8} -> {after:<8} {counts}"
