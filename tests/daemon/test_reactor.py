"""The reactor carries out what the node asks, in order, and nothing before its promise is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from tiermesh.adapters import clock
from tiermesh.core.effects import Effect, Quit
from tiermesh.core.messages import Claim, Grant, decode, encode
from tiermesh.core.node import Node
from tiermesh.daemon.reactor import Reactor
from tiermesh.errors import StateUnwritable, Unavailable
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy, SessionId, Status, View

ME, PEER = NodeId("a" * 32), NodeId("b" * 32)
HERE, THERE = Address("127.0.0.1:1"), Address("127.0.0.1:2")
RUN = SessionId("0000000000001-peer")


class World:
    """Disk, transport and audience of one reactor. Writes wait while `disk_works` is clear."""

    def __init__(self) -> None:
        self.disk_works = asyncio.Event()
        self.disk_works.set()
        self.disk_error: StateUnwritable | None = None
        self.log: list[tuple[str, object]] = []
        self.views: list[View] = []
        self.linked: set[SessionId] = set()
        self._changed = asyncio.Event()

    async def save_promise(self, promised: Ballot, policy: Policy) -> None:
        self._add("saving", promised)
        await self.disk_works.wait()
        if self.disk_error:
            raise self.disk_error
        self._add("saved", promised)

    async def save_contacts(self, contacts: tuple[Contact, ...]) -> None:
        self._add("contacts", contacts)

    def send(
        self, to: NodeId, addresses: tuple[Address, ...], payload: Mapping[str, object], session: SessionId | None
    ) -> None:
        self._add("sent", decode(payload))

    def reach(self, address: Address, payload: Mapping[str, object]) -> None:
        self._add("reached", address)

    def sessions(self, node: NodeId) -> frozenset[SessionId]:
        return frozenset(self.linked)

    def on_view(self, view: View) -> None:
        self.views.append(view)
        self._add("view", view.coordinator)

    def on_announce(self) -> None:
        self._add("announced", None)

    def on_quit(self, cause: Quit) -> None:
        self._add("quit", cause)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.log]

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not wanted():
                self._changed.clear()
                await self._changed.wait()

    def _add(self, kind: str, what: object) -> None:
        self.log.append((kind, what))
        self._changed.set()


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def reactor(world: World) -> AsyncIterator[Reactor]:
    node = Node(
        me=ME,
        session=SessionId("0000000000001-me"),
        status=Status("me", (HERE,)),
        promised=NO_BALLOT,
        policy=Policy(),
        contacts=(Contact((THERE,), PEER),),
        now=clock.now(),
        wall=0.0,
        seed=1,
    )
    reactor = Reactor(ME, node, world, on_view=world.on_view, on_announce=world.on_announce, on_quit=world.on_quit)
    yield reactor
    world.disk_works.set()
    await reactor.close()


async def test_alone_it_comes_to_lead_and_its_first_view_follows_its_promise(world: World, reactor: Reactor) -> None:
    reactor.start(world)
    reactor.on_refused(PEER)
    await world.until(lambda: reactor.leads)
    kinds = world.kinds()
    assert kinds.index("saved") < kinds.index("view")
    assert reactor.view.ballot.node_id == ME
    assert reactor.view is world.views[-1]


async def test_nothing_overtakes_a_promise_that_is_not_on_disk(world: World, reactor: Reactor) -> None:
    reactor.start(world)
    world.disk_works.clear()
    reactor.on_message(PEER, RUN, encode(Claim(Ballot(70_000, PEER))))
    await world.until(lambda: "saving" in world.kinds())
    before = world.kinds()
    reactor.on_message(PEER, RUN, encode(Claim(Ballot(60_000, PEER))))
    assert world.kinds() == before, "a refusal of the lower claim must not leave before the grant of the higher one"
    world.disk_works.set()
    await world.until(lambda: world.kinds().count("sent") >= 2)
    after = [(k, w) for k, w in world.log[len(before) :] if k in ("saved", "sent")]
    assert after[0] == ("saved", Ballot(70_000, PEER))


async def test_a_node_that_can_not_keep_its_word_does_not_give_it(world: World, reactor: Reactor) -> None:
    reactor.start(world)
    world.disk_error = StateUnwritable("the disk is full")
    sent = world.kinds().count("sent")
    reactor.on_message(PEER, RUN, encode(Claim(Ballot(70_000, PEER))))
    await world.until(lambda: "quit" in world.kinds())
    assert ("quit", Quit("the disk is full; then start it again")) in world.log
    assert world.kinds().count("sent") == sent
    world.disk_error = None
    reactor.on_message(PEER, RUN, encode(Claim(Ballot(70_000, PEER))))
    assert world.kinds().count("sent") == sent, "the promise is in memory, but no disk has it"


async def test_who_leads_no_more_sets_no_policy_though_its_view_still_waits_for_the_disk(
    world: World, reactor: Reactor
) -> None:
    reactor.start(world)
    reactor.on_refused(PEER)
    await world.until(lambda: reactor.leads)
    world.disk_works.clear()
    reactor.set_policy({"routing": {}})
    leaving = asyncio.ensure_future(reactor.leave())
    await world.until(lambda: "saving" in world.kinds()[-1:])
    await asyncio.sleep(0)
    assert reactor.view.coordinator == ME
    with pytest.raises(Unavailable, match="not the coordinator"):
        reactor.set_policy({"routing": {"prefer_local": False}})
    world.disk_works.set()
    await leaving


async def test_goodbye_waits_for_every_promise_before_it(world: World, reactor: Reactor) -> None:
    reactor.start(world)
    world.disk_works.clear()
    for term in (70_000, 80_000):
        reactor.on_message(PEER, RUN, encode(Claim(Ballot(term, PEER))))
    leaving = asyncio.ensure_future(reactor.leave())
    await world.until(lambda: "saving" in world.kinds())
    world.disk_works.set()
    await leaving
    assert [what for kind, what in world.log if kind == "saved"][-1] == Ballot(80_000, PEER)
    assert ("sent", Grant(Ballot(80_000, PEER))) in world.log


async def test_only_a_coordinator_sets_the_policy(world: World, reactor: Reactor) -> None:
    with pytest.raises(Unavailable, match="not the coordinator"):
        reactor.set_policy({})
    reactor.start(world)
    reactor.on_refused(PEER)
    await world.until(lambda: reactor.leads)
    policy = reactor.set_policy({"routing": {}})
    assert (policy.version, policy.body) == (1, {"routing": {}})
    await world.until(lambda: reactor.view.policy.version == 1)


async def test_who_sets_a_policy_can_wait_until_it_is_on_disk(world: World, reactor: Reactor) -> None:
    reactor.start(world)
    reactor.on_refused(PEER)
    await world.until(lambda: reactor.leads)
    world.disk_works.clear()
    reactor.set_policy({"routing": {}})
    waiting = asyncio.ensure_future(reactor.saved())
    await world.until(lambda: "saving" in world.kinds()[-1:])
    assert not waiting.done()
    world.disk_error = StateUnwritable("the disk is full")
    world.disk_works.set()
    with pytest.raises(Unavailable, match="can't write"):
        await waiting


async def test_what_can_not_be_read_is_a_value_error(reactor: Reactor) -> None:
    for junk in ({}, {"t": "no such message"}, {"t": "claim", "ballot": 7}):
        with pytest.raises(ValueError):
            reactor.on_message(PEER, RUN, junk)


async def test_the_end_of_an_old_run_says_nothing_of_the_new_one(world: World, reactor: Reactor) -> None:
    reactor.start(world)
    world.linked = {SessionId("0000000000002-peer")}
    before = len(world.log)
    reactor.on_lost(PEER, RUN)
    assert world.log[before:] == []


class Overdue(Node):
    """A node that should have been looked at already, and counts how often it is."""

    looks = 0

    @property
    def deadline(self) -> float:
        return clock.now() - 1 if self.looks == 0 else clock.now() + 3600

    def tick(self, now: float) -> list[Effect]:
        self.looks += 1
        return []


def test_what_is_due_at_once_may_be_scheduled_twice_on_uvloop() -> None:
    """Its handle of such a timer is of another kind than that of a later one, and does not know when it is due."""

    async def work() -> int:
        world = World()
        node = Overdue(
            me=ME,
            session=SessionId("0000000000001-me"),
            status=Status("me", (HERE,)),
            promised=NO_BALLOT,
            policy=Policy(),
            contacts=(),
            now=clock.now(),
            wall=0.0,
            seed=1,
        )
        reactor = Reactor(ME, node, world, on_view=world.on_view, on_announce=world.on_announce, on_quit=world.on_quit)
        reactor.start(world)
        node.looks = 0
        reactor.hint(Contact((THERE,)))
        reactor.hint(Contact((THERE,)))
        async with asyncio.timeout(10):
            while not node.looks:
                await asyncio.sleep(0)
        await reactor.close()
        return node.looks

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(work()) == 1
