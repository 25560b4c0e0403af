"""Find a daemon to talk to: the URL that was given, then one on this machine, then one on the network."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tiermesh.errors import TiermeshError, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from asyncio import Runner

    from tiermesh.client import RemoteClient
    from tiermesh.config import ClusterFile

T = TypeVar("T")

LOCAL_ANSWER_S = 2.0
"""A daemon on this machine answers in milliseconds, and after seconds when the machine is overloaded."""

LOOK_S = 15.0
"""A look at the mesh needs no model: a node that says nothing for so long is frozen, and a person wants to know."""

UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="MESH_URL", help="A node. [default: this machine's, else one found by mDNS]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's asynchronous part."""
    import asyncio

    return asyncio.run(work)


async def find_here() -> str | None:
    """The URL of a daemon on this machine, where one answers; nobody is searched for."""
    from tiermesh.config import load

    for url in _local_urls(load()):
        if await _answers(url):
            return url
    return None


@asynccontextmanager
async def open_mesh(url: str | None, *, timeout_s: float = LOOK_S) -> AsyncIterator[RemoteClient]:
    """A client for the node at `url`, or else for the first that is found. Raises `Unavailable` when there is none."""
    from tiermesh.client import RemoteClient
    from tiermesh.config import load

    file = load()
    token = os.environ.get("MESH_TOKEN") or file.mesh_token()
    async with RemoteClient(url or await _find(file), token=token, timeout_s=timeout_s) as client:
        try:
            yield client
        except Unauthenticated as error:
            said = "refuses the token given" if client.token else "demands a token"
            raise Unauthenticated(f"{client.url} {said}: set MESH_TOKEN to the mesh's ({error})") from error


@contextmanager
def session(url: str | None, *, timeout_s: float = LOOK_S) -> Iterator[tuple[Runner, RemoteClient]]:
    """As `open_mesh`, for a command that waits for the mesh and for a person by turns: while it runs nothing in the
    runner, Ctrl-C and input are the person's."""
    import asyncio

    with asyncio.Runner() as runner:
        context = open_mesh(url, timeout_s=timeout_s)
        mesh = runner.run(context.__aenter__())
        try:
            yield runner, mesh
        except BaseException as error:
            runner.run(context.__aexit__(type(error), error, error.__traceback__))
            raise
        runner.run(context.__aexit__(None, None, None))


async def _find(file: ClusterFile) -> str:
    for url in _local_urls(file):
        if await _answers(url):
            return url
    if file.discovery.method != "mdns":
        raise Unavailable("no daemon answers on this machine. Start one with `mesh up`, or name a node with --url")
    return await _search(file)


async def _search(file: ClusterFile) -> str:
    """The first node of the file's cluster that mDNS finds on the file's interface."""
    from tiermesh.adapters.interfaces import choose
    from tiermesh.client import RemoteClient

    interface = None if file.interface is None else str(choose(file.interface)[0].ip)
    try:
        return (await RemoteClient.discover(cluster=file.cluster, interface=interface)).url
    except (OSError, Unavailable) as error:
        raise Unavailable(
            f"found no daemon of cluster {file.cluster!r}, neither on this machine nor by mDNS. Start one with "
            "`mesh up`, or name a node with --url"
        ) from error


def _local_urls(file: ClusterFile) -> list[str]:
    """Where a daemon of this user says it listens, then the usual place."""
    from tiermesh.config import DEFAULT_PORT, default_state_dir

    usual = f"http://localhost:{file.port or DEFAULT_PORT}"
    try:
        said = json.loads((default_state_dir() / "runtime.json").read_text("utf-8"))
        return list(dict.fromkeys([str(said["url"]), usual]))
    except (OSError, ValueError, KeyError, TypeError):
        return [usual]


async def _answers(url: str) -> bool:
    from tiermesh.client import RemoteClient

    try:
        async with RemoteClient(url, timeout_s=LOCAL_ANSWER_S) as client:
            await client.health()
    except TiermeshError:
        return False
    return True
