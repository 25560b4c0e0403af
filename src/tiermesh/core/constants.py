"""Every duration and bound of the election, in one thing to read, with the reason for each.

n is the number of members that are up in the view at hand. Seconds throughout.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All nodes of a cluster run with equal values: they are the program's, not the user's."""

    beat_least: float = 0.25
    """Shortest beat: five of them are the silent detection time, and a person waits about that long."""
    beat_most: float = 2.0
    """Longest beat: bounds silent detection at 10 s, however large the mesh."""
    beat_members: int = 256
    """One more second of beat per this many members: the coordinator answers about 256 beats a second at most."""
    silence_beats: int = 5
    """Missed beats that mean loss: fewer mistake a lost packet or a busy machine for a dead one."""

    phase_least: float = 0.5
    """Shortest campaign phase: several round trips of a bad Wi-Fi."""
    phase_members: int = 400
    """One more second of phase per this many members: a candidate speaks to all of them one by one."""
    resends: int = 5
    """A phase repeats its question this often to those who are silent."""

    hold: float = 0.3
    """A follower asked to depose its coordinator waits this long for a sign of life of it."""
    window: float = 0.4
    """A node that boots or wakes listens this long before it thinks of campaigning."""
    step: float = 0.25
    """Between the campaigns of neighbours in the succession: more than a phase takes on a LAN."""
    patience: float = 3.0
    """After so long without a coordinator, members' word that theirs lives no longer vetoes."""
    probe: float = 1.0
    """A coordinator looks this often for other coordinators; also the limit of one dial."""
    probe_idle: float = 10.0
    """The same for contacts that nobody has heard or hinted for `idle_after`: a slow pace, for ever."""
    idle_after: float = 3600.0
    """A laptop away for an hour costs one dial in ten seconds."""
    probe_burst: int = 64
    """Probes a second, over all contacts."""
    also: float = 0.1
    """A pre-vote waits this much longer for those it need not hear."""
    view_gap_least: float = 0.05
    """Changes within this time travel as one view."""
    view_gap_most: float = 0.5
    """The same in large meshes, where one view costs n messages."""
    view_gap_members: int = 2000
    """One more second of gap per this many members."""

    hello: float = 0.25
    """A seeker asks `hello_burst` peers this often."""
    hello_burst: int = 6
    """More at a time would flood a large mesh at a power cut; one answer is enough."""
    hello_quick: float = 3.0
    """After so long seeking, hellos slow down to one burst a `probe`."""
    recent: float = 10.0
    """A peer hinted or heard within this time is one to wait for in a pre-vote; one silent in it is not."""
    join_retry: float = 0.25
    """A join is repeated this often."""
    join_limit: float = 1.0
    """A join that has not succeeded after this long has failed."""
    yield_limit: float = 1.5
    """A coordinator that yields gives up after this long and leads on."""
    reign_margin: float = 1.0
    """Of two equal groups the one led longer stays, if it is longer by more than this; else the higher ballot's."""
    announce: float = 5.0
    """A coordinator announces itself again over mDNS this often: caches give no callback after a heal."""
    lag: float = 0.1
    """A loop late by more than this excuses its peers' silence for as long as it was late."""
    duplicate: float = 3.0
    """An id claimed twice for this long is no restart: longer than the silence after which a dead run is dropped."""
    remove_down: float = 24 * 3600.0
    """A member that has been down for so long leaves the view."""
    housekeeping: float = 60.0
    """How often the former is looked at."""

    contacts: int = 4096
    """Address book: four times the largest mesh; the longest unheard goes first."""
    addresses: int = 16
    """Addresses kept of one peer: a few interfaces of two families, and hints."""
    loose: int = 256
    """Addresses whose owner nobody knows yet."""
    hints: int = 16
    """Contacts passed to the coordinator in one beat."""
    history: int = 4096
    """Changes of members kept to make deltas from; a receiver further behind gets the full view."""
    latency_change: float = 0.5
    """A member's latency is told again when it has changed by this part,"""
    latency_change_ms: float = 2.0
    """and by this much,"""
    latency_gap: float = 10.0
    """and not more often: every telling is a new view for all."""

    def beat(self, n: int) -> float:
        """Seconds between two beats of a member."""
        return min(max(n / self.beat_members, self.beat_least), self.beat_most)

    def silence(self, n: int) -> float:
        """Seconds without a round trip after which either side of an uplink drops the other."""
        return self.silence_beats * self.beat(n)

    def phase(self, n: int) -> float:
        """Longest pre-vote and longest claim."""
        return self.phase_least + n / self.phase_members

    def view_gap(self, n: int) -> float:
        """Least time between two views."""
        return min(max(n / self.view_gap_members, self.view_gap_least), self.view_gap_most)


TIMING = Timing()
