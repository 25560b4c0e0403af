"""The one protocol object: what happens goes in with the time it happens at, and effects come out.

Theory of operation
-------------------
A node is always in one of seven states, each a `Role` in a module of its own:

    seek     nobody leads it; it asks around and waits for its turn to campaign       core.seek
    join     it was told of a coordinator and asks it for membership, for a second    core.join
    prevote  it asks whether a campaign is welcome                                    core.election
    claim    it claims a ballot and collects grants                                   core.election
    lead     it is the coordinator: uplinks, roster, views; meets its equals          core.lead, core.meet
    follow   it is a member: one uplink, beats up, acknowledgements and views down    core.follow
    gone     it left, was removed, or is the younger of two with one id               here

What outlives a state (the promise, the roster, the address book, who was silent lately) is in `core.context`. A role
asks for the next one by returning it; only this module makes transitions. Rows are states, columns are what happens:

             end of uplink    told of a         asked `pre`        `claim`          deadline
             (EOF, silence,   coordinator
             bye, nolead)
    seek     -                join              yes, or busy       grant: seek,     hello; prevote when
                                                when just granted  else deny        it is its turn
    join     seek, or the     (one at a time)   held until known   as seek          seek after a second
             one named
    prevote  ask again        join              busy, or yes and   as seek          claim
                                                seek when worse
    claim    ask that voter   a higher winner:  busy               higher term:     seek (some were silent)
             again            join                                 grant, seek
    lead     member down      probe it          lives              deny             beats missed: member
                                                                                    down; probe; flush
    follow   seek, or the     says who leads    beats first, then  deny, but grant  beat; seek after silence
             one named                          lives or yes       when in doubt

    prevote: lives -> join; busy -> seek; all answered -> claim.   claim: all granted -> lead; one denied -> seek.
    join: welcome -> follow.   follow: drop, moved -> join.   lead: welcome (as the one that yields) -> follow.
    any, after the clock jumped (sleep, freeze): seek, the old coordinator first.   leave, quit -> gone.

`sim.coverage` has the same table as data; the simulation reports which of it was seen, and fails on what is not in
it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from tiermesh.core.book import AddressBook
from tiermesh.core.constants import TIMING, Timing
from tiermesh.core.context import Context
from tiermesh.core.effects import Effect, Quit, Remember, Send
from tiermesh.core.election import Candidacy, PreVote
from tiermesh.core.follow import Follow
from tiermesh.core.join import Joining
from tiermesh.core.lead import Leader
from tiermesh.core.membership import NEVER_JOINED, Roster
from tiermesh.core.messages import Hello, Message, Probe, Taken
from tiermesh.core.role import Next, Role, ToClaim, ToFollow, ToJoin, ToLead, ToPreVote, ToSeek, Wait
from tiermesh.core.seek import Seek
from tiermesh.types import Address, Ballot, Contact, Member, NodeId, Policy, SessionId, Status, View


class Gone(Role):
    """Stopped: deaf and mute."""

    name = "gone"

    @property
    def deadline(self) -> float:
        """Never."""
        return math.inf

    def tick(self, now: float) -> Next | None:
        """Nothing."""
        return None

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """Nothing."""
        return None


class Node:
    """One node's part in the mesh: events in, effects out. Every call says what time it is; time never goes back.

    Effects are to be carried out in order, see `core.effects`. Not for use from several threads.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        session: SessionId,
        status: Status,
        promised: Ballot,
        policy: Policy,
        contacts: tuple[Contact, ...],
        now: float,
        wall: float,
        seed: int,
        timing: Timing = TIMING,
    ) -> None:
        own = Member(me, session, status, NEVER_JOINED, status.state)
        book = AddressBook(me, timing)
        book.load(contacts, now)
        self._context = Context(
            me=me,
            session=session,
            status=status,
            promised=promised,
            book=book,
            roster=Roster(own, policy, timing),
            timing=timing,
            rng=random.Random(seed),
            wall_offset=wall - now,
            unled_since=now,
        )
        self._role: Role = Seek(self._context, now, ToSeek(Wait.BOOT))
        self._called = now
        self._due = now
        self._disputed_since: float | None = None
        self._disputed_at = now

    # What it knows

    @property
    def deadline(self) -> float:
        """When `tick` wants to be called; may lie in the past."""
        return self._role.deadline

    @property
    def role(self) -> str:
        """Name of the state it is in: seek, join, prevote, claim, follow, lead or gone."""
        return self._role.name

    @property
    def view(self) -> View:
        """The newest view."""
        return self._context.roster.view(self._role.coordinator)

    @property
    def promised(self) -> Ballot:
        """The highest ballot granted or adopted."""
        return self._context.promised

    @property
    def size(self) -> int:
        """Nodes that are linked to this coordinator, itself included; 0 when it is none."""
        return self._role.size if isinstance(self._role, Leader) else 0

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip of the own uplink; None without one."""
        return self._context.rtt_s

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Where `node` may be reached, the likeliest first."""
        return self._context.book.addresses_of(node)

    def wall(self, now: float) -> float:
        """Unix seconds at `now`."""
        return self._context.wall(now)

    def set_wall(self, now: float, wall: float) -> None:
        """The wall clock was set."""
        self._context.wall_offset = wall - now

    # What happens to it

    def tick(self, now: float) -> list[Effect]:
        """The deadline has come, or it is anybody's guess."""
        self._begin(now)
        return self._end(now, self._role.tick(now), "tick")

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> list[Effect]:
        """`message` came in; the transport vouches for sender and session."""
        self._begin(now)
        if isinstance(self._role, Gone):
            return []
        if isinstance(message, Taken):
            self._disputed(now, message.session)
            return self._end(now, None, "taken")
        if sender == self._context.me:
            self._met_twin(session)
            return self._end(now, None, "twin")
        self._note(now, sender, session, message)
        return self._end(now, self._role.receive(now, sender, session, message), type(message).__name__.lower())

    def hint(self, now: float, contact: Contact) -> list[Effect]:
        """Discovery found somebody, or was told so."""
        self._begin(now)
        if self._is_own(contact):
            return self._end(now, None, "hint")
        self._context.book.hint(contact, now)
        return self._end(now, self._role.hint(now, contact), "hint")

    def identified(self, now: float, address: Address, node: NodeId) -> list[Effect]:
        """`node`, perhaps this one, answers at `address`."""
        self._begin(now)
        self._context.book.identified(address, node, now)
        return self._end(now, None, "identified")

    def lost(self, now: float, peer: NodeId, session: SessionId | None = None) -> list[Effect]:
        """The connection with `peer`, or with this run of it, ended: it died, or a cable did."""
        self._begin(now)
        past = self._context.book.is_past(peer, session)
        return self._end(now, None if past else self._role.lost(now, peer), "lost")

    def refused(self, now: float, target: NodeId | Address) -> list[Effect]:
        """Nobody listens at `target`: its host lives, its daemon does not."""
        self._begin(now)
        return self._end(now, self._role.refused(now, target), "refused")

    def describe(self, now: float, status: Status) -> list[Effect]:
        """The own status has changed. Its `latency_ms` is ignored: the node measures that itself."""
        self._begin(now)
        if replace(status, latency_ms=self._context.status.latency_ms) == self._context.status:
            return self._end(now, None, "describe")
        self._context.describe(status)
        return self._end(now, self._role.described(now), "describe")

    def set_policy(self, now: float, body: Mapping[str, object]) -> list[Effect]:
        """Put a policy into force everywhere. Only on the coordinator."""
        assert isinstance(self._role, Leader), "only the coordinator sets the policy"
        self._begin(now)
        self._role.set_policy(now, body)
        return self._end(now, None, "policy")

    def remove(self, now: float, node: NodeId) -> list[Effect]:
        """Forget a member, which stops if it runs. Only on the coordinator, for others than itself."""
        assert isinstance(self._role, Leader), "only the coordinator removes members"
        assert node != self._context.me, "the coordinator can't remove itself"
        self._begin(now)
        self._role.remove(now, node)
        return self._end(now, None, "remove")

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye. Deaf and mute afterwards."""
        self._begin(now)
        self._role.leave(now)
        self._stop()
        return self._end(now, None, "leave")

    # Within

    def _begin(self, now: float) -> None:
        """A node whose loop lagged suspects nobody for that time; one that slept asks anew who leads."""
        late = now - max(self._called, self._due)
        self._called = now
        timing, n = self._context.timing, self._context.n
        if late > timing.silence(n) + timing.beat(n) and not isinstance(self._role, Gone):
            self._become(now, ToSeek(Wait.BOOT, first=self._role.coordinator), "thaw")
        elif late > timing.lag:
            self._role.excuse(now, late)

    def _end(self, now: float, wanted: Next | None, event: str) -> list[Effect]:
        """Carry out transitions, and at once what is due at once in the new state."""
        while True:
            if wanted is None:
                wanted, event = self._due_now(now), "tick"
            if wanted is None:
                break
            self._become(now, wanted, event)
            wanted = None
        self._due = self._role.deadline
        remembered = self._context.book.drain()
        if remembered:
            self._context.out.append(Remember(remembered))
        effects, self._context.out = self._context.out, []
        return effects

    def _due_now(self, now: float) -> Next | None:
        return self._role.tick(now) if now >= self._role.deadline else None

    def _become(self, now: float, wanted: Next, event: str) -> None:
        was_led = self._role.coordinator is not None
        if was_led and not isinstance(wanted, ToFollow):
            self._context.unled(now)
        self._role = self._build(now, wanted)
        if was_led and self._role.coordinator is None:
            self._context.publish(None)
        if isinstance(self._role, Seek):
            self._answer_held(now)

    def _build(self, now: float, wanted: Next) -> Role:
        match wanted:
            case ToSeek():
                return Seek(self._context, now, wanted)
            case ToJoin():
                return Joining(self._context, now, wanted)
            case ToPreVote():
                return PreVote(self._context, now)
            case ToClaim():
                return Candidacy(self._context, now, wanted)
            case ToLead():
                return Leader(self._context, now, wanted)
            case ToFollow():
                return Follow(self._context, now, wanted)

    def _answer_held(self, now: float) -> None:
        """What was held back while the coordinator might have lived is answered by the one who has none."""
        held = dict(self._context.held)
        self._context.held.clear()
        for node, each in held.items():
            self._role.receive(now, node, each.session, each.question)

    def _note(self, now: float, sender: NodeId, session: SessionId, message: Message) -> None:
        book = self._context.book
        book.heard(sender, session, now)
        match message:
            case Hello(addresses, key):
                book.told(sender, addresses)
                book.peers[sender].key = key
            case Probe(addresses=addresses):
                book.told(sender, addresses)
            case _:
                pass

    # One id, two daemons

    def _is_own(self, contact: Contact) -> bool:
        """A record of this very daemon; one with other addresses may be of another with the same id."""
        mine = set(self._context.status.addresses) | self._context.book.own
        return contact.node_id == self._context.me and mine.issuperset(contact.addresses)

    def _met_twin(self, session: SessionId) -> None:
        if session == self._context.session:
            return
        if session < self._context.session:
            self._quit_as_twin(session)
        else:
            self._context.out.append(Send(self._context.me, Taken(self._context.session), session))

    def _disputed(self, now: float, elder: SessionId) -> None:
        """Quit when an elder session of the own id is alive for longer than a dead one would be thought to."""
        if elder >= self._context.session:
            return
        timing = self._context.timing
        if self._disputed_since is None or now - self._disputed_at > timing.duplicate:
            self._disputed_since = now
        self._disputed_at = now
        if now - self._disputed_since >= timing.duplicate:
            self._quit_as_twin(elder)

    def _quit_as_twin(self, session: SessionId) -> None:
        self._context.out.append(Quit.as_twin(session))
        self._stop()

    def _stop(self) -> None:
        self._role = Gone(self._context)
