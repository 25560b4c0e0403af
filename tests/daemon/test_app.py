"""Whole daemons, in this process and on the loopback interface: starting, working together, and leaving."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.openai_fake import FakeOpenAI

from tiermesh.client import RemoteClient
from tiermesh.config import DaemonOptions, Flags, resolve_options
from tiermesh.daemon import app
from tiermesh.daemon.app import Daemon
from tiermesh.errors import DuplicateNode, InvalidConfig, InvalidInput, NotFound, Unavailable, UnknownModel
from tiermesh.protocol.cluster import ClusterReport

LIMIT_S = 20.0


@pytest.fixture
def cluster() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def make(tmp_path: Path, cluster: str) -> Callable[..., DaemonOptions]:
    def options(name: str, *engines: str, token: str = "", **more: object) -> DaemonOptions:
        flags = {
            "name": name,
            "cluster": cluster,
            "state_dir": tmp_path / name,
            "port": 0,
            "interface": "127.0.0.1",
            "no_detect": True,
            "engines": engines,
            "no_engine": not engines,
            "config": tmp_path / "cluster.yaml",
        }
        (tmp_path / "cluster.yaml").write_text("grace_s: 10\n")
        return resolve_options(Flags(**(flags | more)), env={"MESH_TOKEN": token})  # type: ignore[arg-type]

    return options


class Running:
    """A daemon that runs, and a client of it."""

    def __init__(self, daemon: Daemon, options: DaemonOptions, client: RemoteClient) -> None:
        self.daemon = daemon
        self.options = options
        self.client = client
        self.ended = asyncio.ensure_future(daemon.run())

    async def cluster(self) -> ClusterReport:
        return await self.client.cluster()

    async def sees(self, count: int, models: int = 0) -> ClusterReport:
        """Wait until it is led and sees that many nodes up, with that many models among them."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                report = await self.cluster()
                up = [node for node in report.nodes if node.state == "up"]
                if report.coordinator and len(up) == count and sum(len(n.models) for n in up) >= models:
                    return report
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(options: DaemonOptions) -> AsyncIterator[Running]:
    daemon = Daemon(options)
    try:
        await daemon.start()
        url = json.loads((options.state_dir / "runtime.json").read_text())["url"]
        async with RemoteClient(url, token=options.token) as client:
            one = Running(daemon, options, client)
            try:
                yield one
            finally:
                daemon.stop()
                daemon.stop()
                await one.ended
    finally:
        await daemon.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_prompt_is_answered_through_a_node_without_an_engine(make: Callable[..., DaemonOptions]) -> None:
    async with FakeOpenAI("far") as fake, running(make("a")) as a, running(make("b", fake.url)) as b:
        await a.sees(2, models=1)
        answer = await a.client.complete("hello")
        assert (answer.content, answer.node) == ("far: hello", "b")
        stream = a.client.stream("hello")
        assert "".join([piece async for piece in stream]) == "far: hello"
        assert (await b.cluster()).ballot == (await a.cluster()).ballot


async def test_who_leaves_finishes_what_runs_and_takes_no_more(make: Callable[..., DaemonOptions]) -> None:
    async with FakeOpenAI("slow", behaviour="slow") as fake, running(make("a", fake.url)) as a:
        await a.sees(1, models=1)
        slow = asyncio.ensure_future(a.client.complete("one two three four five six seven eight nine ten"))
        await until(lambda: fake.started == 1)
        a.daemon.stop()
        with pytest.raises(Unavailable, match="leaving"):
            await a.client.complete("too late")
        assert (await slow).content == "slow: one two three four five six seven eight nine ten"
        assert await a.ended == 0


async def test_asked_twice_it_goes_at_once(make: Callable[..., DaemonOptions]) -> None:
    async with FakeOpenAI("stuck", behaviour="hang") as fake, running(make("a", fake.url)) as a:
        await a.sees(1, models=1)
        stuck = asyncio.ensure_future(a.client.complete("never"))
        await until(lambda: fake.started == 1)
        a.daemon.stop()
        a.daemon.stop()
        async with asyncio.timeout(5):
            assert await a.ended == 0
        await a.daemon.close()
        await asyncio.gather(stuck, return_exceptions=True)


async def test_the_others_hear_of_a_goodbye_at_once(make: Callable[..., DaemonOptions]) -> None:
    async with running(make("a")) as a:
        async with running(make("b")) as b:
            await a.sees(2)
            await b.sees(2)
        report = await a.sees(1)
        assert {node.name: node.state for node in report.nodes} == {"a": "up", "b": "down"}


async def test_the_policy_is_changed_on_any_node_and_holds_on_all(make: Callable[..., DaemonOptions]) -> None:
    async with FakeOpenAI("far", "real") as fake, running(make("a", fake.url)) as a, running(make("b")) as b:
        await b.sees(2, models=1)
        for node in (a, b):
            alias = f"alias-of-{node.options.name}"
            applied = await node.client.set_policy({"routing": {"aliases": {alias: "real"}}})
            for other in (a, b):
                await until_policy(other.client, applied.version)
                assert (await other.client.complete("x", model=alias)).node == "a"
        with pytest.raises(InvalidInput, match="fallback_strategy"):
            await b.client.set_policy({"routing": {"fallback_strategy": "maybe"}})


async def test_a_node_rests_and_works_again_whoever_is_told(make: Callable[..., DaemonOptions]) -> None:
    async with FakeOpenAI("x") as fake, running(make("a", fake.url)) as a, running(make("b", fake.url)) as b:
        for node in (a, b):
            await node.sees(2, models=2)
        for told, rests in ((a, "b"), (b, "b"), (a, "a")):
            await told.client.order("drain", rests)
            await until_state(a, rests, "draining")
            await until_state(b, rests, "draining")
            for node in (a, b):
                assert (await node.client.complete("hello")).node != rests
            assert (await told.client.order("resume", rests)).node.name == rests
            await until_state(a, rests, "up")
            await until_state(b, rests, "up")


async def test_a_node_is_removed_by_asking_any_other(make: Callable[..., DaemonOptions]) -> None:
    async with running(make("a")) as a, running(make("b")) as b, running(make("c")) as c:
        everybody = {"a": a, "b": b, "c": c}
        reports = [await node.sees(3) for node in everybody.values()]
        leader = reports[0].coordinator
        assert leader is not None
        gone, stays = (name for name in everybody if name != leader.name)
        with pytest.raises(InvalidInput, match="coordinates"):
            await everybody[stays].client.order("remove", leader.name)
        await everybody[stays].client.order("remove", gone)
        assert await everybody[gone].ended == 1
        async with asyncio.timeout(LIMIT_S):
            while gone in {node.name for node in (await everybody[stays].cluster()).nodes}:
                await asyncio.sleep(0.01)


async def test_orders_about_nobody_are_refused(make: Callable[..., DaemonOptions]) -> None:
    async with running(make("a")) as a:
        await a.sees(1)
        with pytest.raises(NotFound, match=r"no node is called 'b'; there are: a"):
            await a.client.order("drain", "b")


async def until_state(node: Running, name: str, state: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while {each.name: each.state for each in (await node.cluster()).nodes}.get(name) != state:
            await asyncio.sleep(0.01)


async def until_policy(client: RemoteClient, version: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await client.policy()).version < version:
            await asyncio.sleep(0.01)


async def test_a_policy_survives_all_its_nodes(make: Callable[..., DaemonOptions]) -> None:
    async with running(make("a")) as a:
        await a.sees(1)
        await a.client.set_policy({"routing": {"prefer_local": False}})
    async with running(make("a")) as a:
        await a.sees(1)
        routing = (await a.client.policy()).policy["routing"]
        assert routing["prefer_local"] is False


async def test_a_token_is_demanded_and_shared(make: Callable[..., DaemonOptions]) -> None:
    async with running(make("a", token="right")) as a, running(make("b", token="right")) as b:
        await a.sees(2)
        assert not (await b.cluster()).open
        async with running(make("stranger", token="wrong")) as stranger:
            report = await stranger.sees(1)
            assert [node.name for node in report.nodes] == ["stranger"]
            assert len((await a.cluster()).nodes) == 2


async def test_nodes_meet_by_join_alone_and_again_from_their_address_book(
    make: Callable[..., DaemonOptions], tmp_path: Path
) -> None:
    explicit = tmp_path / "explicit.yaml"
    explicit.write_text("discovery: {method: explicit}\n")
    async with running(make("a", config=explicit)) as a:
        url = json.loads((tmp_path / "a" / "runtime.json").read_text())["url"].removeprefix("http://")
        async with running(make("b", config=explicit, join=(url,))) as b:
            before = {node.id for node in (await a.sees(2)).nodes}
            await b.sees(2)
    port = int(url.rpartition(":")[2])
    async with running(make("b", config=explicit)), running(make("a", config=explicit, port=port)) as a:
        assert {node.id for node in (await a.sees(2)).nodes} == before


async def test_a_copied_state_folder_is_refused_by_name(
    make: Callable[..., DaemonOptions], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(make("a")) as a:
        await a.sees(1)
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "a", copy, ignore=shutil.ignore_patterns("lock", "runtime.json"))
        async with running(make("b", state_dir=copy)) as b:
            async with asyncio.timeout(LIMIT_S):
                assert await b.ended == 1
        said = capsys.readouterr().err
        assert f"Delete {copy}" in said
        assert not a.ended.done()


async def test_who_never_asks_is_not_kept(make: Callable[..., DaemonOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "KEEPALIVE_S", 0.2)
    async with running(make("a")) as a:
        await a.sees(1)
        port = json.loads((a.options.state_dir / "runtime.json").read_text())["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: loc")
        async with asyncio.timeout(LIMIT_S):
            assert await reader.read() == b""
        writer.close()


async def test_one_folder_serves_one_daemon(make: Callable[..., DaemonOptions]) -> None:
    async with running(make("a")):
        with pytest.raises(DuplicateNode, match="--state-dir"):
            async with running(make("a")):
                pass


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"interface": "nosuch0"}, "nosuch0"),
        ({"port": 1, "state_dir": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
async def test_what_can_not_run_says_why(
    make: Callable[..., DaemonOptions], more: dict[str, object], words: str
) -> None:
    if "state_dir" in more:
        more["state_dir"] = Path(str(more["state_dir"]))
    with pytest.raises(InvalidConfig, match=words):
        async with running(make("a", **more)):
            pass


async def test_a_model_that_is_nowhere_is_refused_at_the_start(make: Callable[..., DaemonOptions]) -> None:
    with pytest.raises(UnknownModel, match="no model nosuch"):
        async with running(make("a", no_engine=False, model="nosuch")):
            pass


async def test_the_banner_says_what_a_person_needs(make: Callable[..., DaemonOptions]) -> None:
    async with FakeOpenAI("x", "big-model") as fake, running(make("a", fake.url, tier=2)) as a:
        await a.sees(1, models=1)
        text = a.daemon.banner()
        for words in ("a  (", "OPEN", "http://127.0.0.1:", "mDNS", "2  (as declared)", "big-model (tier 2)"):
            assert words in text
