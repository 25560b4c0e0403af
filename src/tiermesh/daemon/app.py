"""The daemon put together: `mesh up`.

Here, and only here, the rooms meet. The order of `start` is that of what may fail: sockets and state folder first, so
that nobody is told of a node that can't run; discovery last, when this node can answer whoever it finds.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from logging import getLogger
from typing import Literal

from aiohttp import web

from tiermesh import __version__
from tiermesh.adapters import clock
from tiermesh.adapters.fetching import Holder
from tiermesh.adapters.interfaces import Interface, choose
from tiermesh.adapters.mdns import Record, Sighting
from tiermesh.adapters.passport import Passport
from tiermesh.adapters.peers import LINK_PATH, Peers
from tiermesh.adapters.result_shelf import ResultShelf
from tiermesh.adapters.store import Saved, Store
from tiermesh.config import DaemonOptions
from tiermesh.config.address import join_address
from tiermesh.core.effects import Quit
from tiermesh.core.jobs import Job
from tiermesh.core.messages import PROTOCOL
from tiermesh.core.node import Node
from tiermesh.daemon import banner, log, runtime
from tiermesh.daemon.api import Context, make_app
from tiermesh.daemon.api.models import register_models
from tiermesh.daemon.api.nodes import register_nodes
from tiermesh.daemon.api.train import register_training
from tiermesh.daemon.discovery import Discovery
from tiermesh.daemon.engine_room import EngineRoom
from tiermesh.daemon.gateway import Gateway
from tiermesh.daemon.in_flight import InFlight
from tiermesh.daemon.instruments import Instruments
from tiermesh.daemon.loop import calm_collector, loop_factory
from tiermesh.daemon.metrics import RequestLog
from tiermesh.daemon.nodes import NodeDesk
from tiermesh.daemon.policy import PolicyDesk
from tiermesh.daemon.portrait import Portrait
from tiermesh.daemon.reactor import Reactor
from tiermesh.daemon.served import Served
from tiermesh.daemon.serving import Serving
from tiermesh.daemon.sockets import allow_connections, listen
from tiermesh.daemon.training import TrainingRoom
from tiermesh.errors import InvalidInput, TiermeshError
from tiermesh.hardware.profile import derive_tier, read_profile
from tiermesh.types import Address, Contact, Hardware, Health, NodeId, SessionId, Status, Tier, View

KEEPALIVE_S = 75.0
"""Connections on which nothing is asked are closed after this, those that never asked anything too; longer than other
nodes keep theirs."""

CLOSE_S = 0.25
"""How long HTTP connections may take to close once nothing runs on them."""


def run(options: DaemonOptions) -> int:
    """Run a daemon until it is told to stop; the process's exit code."""
    log.set_up(options.log_format, options.log_level)
    allow_connections()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_serve(options))
    except TiermeshError as error:
        print(f"mesh up: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    except KeyboardInterrupt:
        return 130


async def _serve(options: DaemonOptions) -> int:
    daemon = Daemon(options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    try:
        await daemon.start()
        calm_collector()
        print(daemon.banner(), flush=True)
        return await daemon.run()
    finally:
        await daemon.close()


class Daemon:
    """One node, running. `start`, then `run` until stopped, then `close` whatever happened."""

    def __init__(self, options: DaemonOptions) -> None:
        self._options = options
        self._exit = AsyncExitStack()
        self._stop_asked = asyncio.Event()
        self._now_asked = asyncio.Event()
        self._failure: str | None = None

    def stop(self) -> None:
        """Finish what runs, then end; asked twice, end now."""
        (self._now_asked if self._stop_asked.is_set() else self._stop_asked).set()

    async def start(self) -> None:
        """Raises `TiermeshError` when this node can't run; `close` then gives back what was taken."""
        options = self._options
        self._interfaces = choose(options.interface)
        bound = self._interfaces if options.interface else None
        sockets, self._port = listen(bound, options.port, may_move=options.port_may_move)
        for sock in sockets:
            self._exit.callback(sock.close)
        store = Store(options.state_dir, options.cluster)
        self._exit.push_async_callback(store.close)
        saved = await store.open()
        self._me, self._session = saved.node_id, _new_session()
        self._hardware = await asyncio.to_thread(read_profile, options.state_dir)
        self._tier, self._tier_reason = _tier(options, self._hardware)

        self._passport = Passport(options.cluster, self._me, self._session, options.token)
        self._peers = Peers(self._passport, self)
        await self._peers.open()
        self._exit.push_async_callback(self._peers.close)
        self._portrait = Portrait(self._first_status(), self._described, tier=self._tier)
        self._exit.callback(self._portrait.close)
        self._rooms = EngineRoom(options, tier=self._tier, on_change=self._portrait.redraw)
        self._exit.push_async_callback(self._rooms.close)
        self._reactor = self._make_reactor(saved, store)
        self._exit.push_async_callback(self._reactor.close)
        self._training = TrainingRoom(
            options,
            store,
            self._peers,
            me=self._me,
            hardware=self._hardware,
            view=lambda: self._reactor.view,
            leads=lambda: self._reactor.leads,
            promised=lambda: self._reactor.promised,
            ending=self._stop_asked.is_set,
            on_training=lambda job: self._portrait.change(training=job),
            on_serve=self._to_serve,
            taken=self._name_taken,
        )
        self._exit.push_async_callback(self._training.close)
        self._policy = PolicyDesk(self._reactor, self._peers, options.policy)
        self._nodes = NodeDesk(self._me, self._reactor, self._peers, self._told_to_rest)
        requests = RequestLog()
        self._gateway = Gateway(
            me=self._me,
            engines=lambda: self._rooms.engines,
            view=lambda: self._reactor.view,
            peers=self._peers,
            log=requests,
            on_elsewhere=self._answered_elsewhere,
        )
        self._serving = self._make_serving()
        self._exit.push_async_callback(self._serving.close)
        self._requests = InFlight()
        self._instruments = Instruments(
            me=self._me,
            folder=options.state_dir,
            view=lambda: self._reactor.view,
            engines=lambda: self._rooms,
            peers=self._peers,
            gateway=self._gateway,
            log=requests,
            on_health=self._judged,
        )
        self._exit.push_async_callback(self._instruments.close)
        self._discovery = Discovery(
            service=options.mdns_service,
            wanted=options.interface,
            interfaces=self._interfaces,
            record=self._record,
            on_sighting=self._sighted,
            on_moved=self._moved,
        )
        self._exit.push_async_callback(self._discovery.close)
        self._reactor.start(self._peers)
        await self._training.open()
        await self._open_doors(sockets)
        await self._rooms.open()
        await self._serving.here.open()
        self._portrait.watch(lambda: self._rooms)
        self._instruments.start()
        self._discovery_problem = await self._discovery.open()
        runtime.write(options.state_dir, port=self._port, url=f"http://127.0.0.1:{self._port}", node_id=self._me)
        self._exit.callback(runtime.remove, options.state_dir)

    async def run(self) -> int:
        """Serve until stopped, then drain; the exit code."""
        await self._stop_asked.wait()
        if self._failure is not None:
            print(f"mesh up: {self._failure}", file=sys.stderr)
            return 1
        await self._drain()
        return 0

    async def close(self) -> None:
        """Give back everything, in the opposite order of `start`."""
        await self._exit.aclose()

    def banner(self) -> str:
        """What a person should know now."""
        options = self._options
        return banner.lines(
            banner.Facts(
                version=__version__,
                name=options.name,
                node_id=self._me,
                cluster=options.cluster,
                urls=[f"http://{address}" for address in self._addresses()],
                moved_from=options.port if options.port and options.port != self._port else None,
                open=options.token is None,
                tier=self._portrait.status.tier,
                tier_reason=self._tier_reason,
                hardware=self._hardware,
                engines=[engine.info for engine in self._rooms],
                no_engine_reason=self._rooms.no_engine_reason,
                models=[model for engine in self._rooms for model in engine.models],
                discovery=self._discovery_problem or "mDNS",
            )
        )

    # What the transport tells (adapters.peers.Events)

    def on_message(self, sender: NodeId, session: SessionId, payload: Mapping[str, object]) -> None:
        self._reactor.on_message(sender, session, payload)

    def on_lost(self, peer: NodeId, session: SessionId) -> None:
        self._reactor.on_lost(peer, session)

    def on_refused(self, target: NodeId | Address, *, known: bool) -> None:
        self._reactor.on_refused(target)

    def on_identified(self, address: Address, node: NodeId) -> None:
        self._reactor.on_identified(address, node)

    def on_twin(self, session: SessionId) -> None:
        """Of two daemons with one id the younger ends: the elder's word is already out."""
        if self._session > session:
            self._quit(Quit.as_twin(session))

    def _make_reactor(self, saved: Saved, store: Store) -> Reactor:
        node = Node(
            me=self._me,
            session=self._session,
            status=self._portrait.status,
            promised=saved.promised,
            policy=saved.policy,
            contacts=(*saved.contacts, *(Contact((address,)) for address in self._options.join)),
            now=clock.now(),
            wall=time.time(),
            seed=secrets.randbits(64),
        )
        return Reactor(self._me, node, store, on_view=self._viewed, on_announce=self._announce, on_quit=self._quit)

    def _make_serving(self) -> Serving:
        served = Served(
            me=self._me,
            rooms=self._rooms,
            shelf=ResultShelf(self._options.state_dir / "models", used=lambda: self._rooms.used),
            blobs=self._training.blobs,
            fetcher=self._training.copies.fetcher,
            holders=self._holders,
        )
        return Serving(
            me=self._me,
            served=served,
            view=lambda: self._reactor.view,
            peers=self._peers,
            aliases=lambda: self._gateway.dispatch.routing.aliases,
            is_open=self._options.token is None,
            on_served=lambda job, text: self._training.scheduler.note(job, "serve", text),
        )

    def _holders(self, nodes: Iterable[str]) -> list[Holder]:
        members = self._reactor.view.members
        found = [members.get(NodeId(node)) for node in nodes]
        return [Holder(member.id, member.status.addresses) for member in found if member is not None]

    async def _open_doors(self, sockets: list[socket.socket]) -> None:
        """Serve HTTP on every socket. What is asked before the node leads or follows finds it alone in its view."""
        context = Context(
            passport=self._passport,
            name=self._options.name,
            version=__version__,
            host_names=_host_names(self._options.name),
            gateway=self._gateway,
            engines=lambda: self._rooms.engines,
            view=lambda: self._reactor.view,
            wall=time.time,
            policy=self._policy.current,
            apply_policy=self._policy.apply,
            publish_policy=self._policy.apply_here,
            draining=lambda: self._stop_asked.is_set() or self._nodes.draining,
        )
        app = make_app(context, max_body_bytes=self._options.policy.limits.max_body_bytes)
        register_nodes(app, self._nodes)
        register_training(app, self._training)
        register_models(app, self._serving)
        app.middlewares.append(self._requests.middleware())
        app.router.add_get(LINK_PATH, self._peers.accept)
        self._instruments.register(app)
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=CLOSE_S
        )
        await runner.setup()
        self._exit.push_async_callback(runner.cleanup)
        self._exit.push_async_callback(self._peers.close)  # links end before the server that carries them
        for sock in sockets:
            site = web.SockSite(runner, sock)
            await site.start()
            self._exit.push_async_callback(site.stop)  # and nobody links anew meanwhile: a refusal is an answer

    def _first_status(self) -> Status:
        return Status(
            name=self._options.name,
            addresses=self._addresses(),
            tier=self._options.tier,
            hardware=self._hardware,
            version=__version__,
        )

    def _addresses(self) -> tuple[Address, ...]:
        return tuple(join_address(str(i.ip), self._port) for i in self._interfaces)

    def _record(self) -> Record:
        status = self._portrait.status
        return Record(
            node_id=self._me,
            session=self._session,
            cluster=self._options.cluster,
            name=status.name,
            port=self._port,
            protocol=PROTOCOL,
            tier=status.tier,
            models=tuple(dict.fromkeys(model.name for model in status.models)),
            capabilities=tuple(sorted({engine.kind for engine in status.engines})),
        )

    def _judged(self, health: Health) -> None:
        self._portrait.change(health=health)

    def _described(self, status: Status) -> None:
        self._instruments.described(status)
        self._reactor.describe(status)
        self._discovery.announce(anew=False)

    def _viewed(self, view: View) -> None:
        self._gateway.view_changed(view)
        self._instruments.view_changed(view)
        self._policy.settle()
        self._training.viewed(view)

    def _told_to_rest(self, state: Literal["up", "draining"]) -> None:
        self._portrait.change(state=state)
        self._training.rest(state == "draining")

    def _to_serve(self, job: Job) -> None:
        self._serving.serve_job(job)

    def _name_taken(self, name: str) -> str | None:
        return self._serving.taken(name)

    def _answered_elsewhere(self, model: str, node: NodeId) -> None:
        self._serving.asked_elsewhere(model, node)

    def _announce(self) -> None:
        self._discovery.announce()

    def _sighted(self, sighting: Sighting) -> None:
        self._reactor.hint(sighting.contact)

    def _moved(self, interfaces: tuple[Interface, ...]) -> None:
        self._interfaces = interfaces
        self._portrait.change(addresses=self._addresses())

    def _quit(self, cause: Quit) -> None:
        """This node can't go on: end now, saying why."""
        remedy = f" Delete {self._options.state_dir} on the copy and start it again: it will be a node of its own"
        self._failure = cause.reason + (remedy if cause.twin else "")
        self._stop_asked.set()

    async def _drain(self) -> None:
        """Tell everybody, finish what runs within the grace time, and say goodbye."""
        getLogger(__name__).info("stopping: what runs may finish, new requests go to other nodes")
        self._requests.refuse()
        self._portrait.change(state="draining")
        letting_go = asyncio.create_task(self._training.drain(), name="training ends")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.grace_s):
                await self._idle_or_now()
        await letting_go
        await self._reactor.leave()

    async def _idle_or_now(self) -> None:
        """Until nothing runs any more, or somebody lost patience."""
        waits = [asyncio.ensure_future(self._requests.idle()), asyncio.ensure_future(self._now_asked.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _new_session() -> SessionId:
    return SessionId(f"{int(time.time() * 1000):013d}-{secrets.token_hex(4)}")


def _tier(options: DaemonOptions, hardware: Hardware) -> tuple[Tier, str]:
    return derive_tier(hardware) if options.tier is None else (options.tier, "as declared")


def _host_names(name: str) -> frozenset[str]:
    """By which a person may call this machine in a URL."""
    return frozenset(text.lower() for text in (name, socket.gethostname(), socket.gethostname().split(".")[0]))
