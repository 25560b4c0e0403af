"""Whose job it is: everybody asks the daemon of the machine at which they sit, and the mesh is shared among all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from tests.daemon.training_desk import DONE, LIMIT_S, LONG, SPEC, TEXT, Desk, new_id, opened, play_scripts
from tests.training_fake import write_script

from tiermesh.adapters.passport import Passport
from tiermesh.daemon.api.callers import submitter_of
from tiermesh.daemon.api.context import CONTEXT, Context
from tiermesh.types import NodeId, SessionId

pytest.importorskip("torch")

ME = NodeId("a" * 32)
MINE, OTHERS = "sk-mine", "sk-others"
DATA = {"name": "faq.jsonl", "text": TEXT}


def submitter(remote: str, token: str = "", **headers: str) -> str:
    app = web.Application()
    app[CONTEXT] = context(token)
    request = make_mocked_request("POST", "/api/train", headers, app=app)
    return submitter_of(request.clone(remote=remote))


def context(token: str) -> Context:
    known: dict[str, Any] = dict.fromkeys(Context.__dataclass_fields__)
    return Context(**known | {"passport": Passport(cluster="mesh", node_id=ME, session=SessionId("1"), token=token)})


@pytest.mark.parametrize("remote", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", ""])
def test_who_sits_at_a_node_is_that_node(remote: str) -> None:
    assert submitter(remote) == ME


@pytest.mark.parametrize("remote", ["192.168.1.7", "fd00::7", "fe80::7%eth0"])
def test_who_asks_from_elsewhere_is_an_address(remote: str) -> None:
    assert submitter(remote) == remote


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key"])
def test_keys_tell_those_of_one_place_apart_and_go_into_no_record(header: str) -> None:
    mine, others = (submitter("127.0.0.1", **{header: key}) for key in (MINE, OTHERS))
    assert mine == submitter("127.0.0.1", **{header: MINE})
    assert len({mine, others, ME}) == 3
    assert MINE not in mine
    assert submitter("192.168.1.7", **{header: MINE}) != mine, "what clients send that need no key is no name"


def test_the_token_of_the_mesh_names_nobody() -> None:
    assert submitter("127.0.0.1", token="secret", Authorization="Bearer secret") == ME


@pytest_asyncio.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Desk, Desk]]:
    cluster = f"test-{secrets.token_hex(4)}"
    for name in "ab":
        (tmp_path / name).mkdir()
        play_scripts(tmp_path / name, monkeypatch)
    async with (
        opened(tmp_path / "a", cluster, name="a") as first,
        opened(tmp_path / "b", cluster, name="b", join=first.url) as second,
    ):
        yield first, second


async def test_those_who_sit_at_two_nodes_take_turns(two: tuple[Desk, Desk]) -> None:
    """One has sent three jobs before the other sends one; all for one node."""
    first, second = two
    spec = SPEC | {"target_gpu": "a"}
    block = await first.train(LONG, spec=spec)
    await first.until_step(block["id"])
    mine = [await first.train(DONE, spec=spec, name=f"mine-{index}") for index in range(3)]
    theirs = new_id()
    write_script(first.run(theirs), DONE)
    status, _ = await second.ask("POST", "/api/train", {"id": theirs, "name": "theirs", "spec": spec, "data": DATA})
    assert status == 200
    waiting = [*(job["id"] for job in mine), theirs]
    for job in waiting:
        await first.until(job, "queued")
    assert (await first.ask("POST", f"/api/jobs/{block['id']}/cancel"))[0] == 200
    async with asyncio.timeout(LIMIT_S):
        records = [await first.until(job, "completed") for job in waiting]
    began = sorted(records, key=lambda record: record["started_at"])
    assert [record["name"] for record in began] == ["theirs", "mine-0", "mine-1", "mine-2"]
