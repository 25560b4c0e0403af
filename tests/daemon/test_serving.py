"""What training left is served by the mesh: where it goes, who may have it, its name, its room, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.daemon.serving_mesh import (
    SESSION,
    ServingMesh,
    ServingNode,
    add,
    kept,
    new_job,
    serving_mesh,
    trained,
    until,
    write_model,
)

from tiermesh.adapters.engines import served_model
from tiermesh.adapters.model_source import resolve
from tiermesh.adapters.passport import Passport
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId
from tiermesh.daemon import serving
from tiermesh.errors import Forbidden, InvalidInput, NameTaken, NotFound, TiermeshError, UnknownModel
from tiermesh.protocol.serving import SERVED_PATH, Result
from tiermesh.types import Ballot, NodeId


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(served_model, "TORCH", "tests.worker_fake")
    monkeypatch.setenv("TIERMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(serving, "AGAIN_S", 0.05)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[ServingMesh]:
    async with serving_mesh(tmp_path, "a", "b", "other") as made:
        yield made


@pytest.fixture
async def open_mesh(tmp_path: Path) -> AsyncIterator[ServingMesh]:
    async with serving_mesh(tmp_path, "a", "b", token=None) as made:
        yield made


async def taken(node: ServingNode, result: Result) -> None:
    await node.serving.here.take(result)


def texts(node: ServingNode) -> list[str]:
    return [text for _, text in node.told]


# Where it goes


async def test_a_result_is_pushed_to_all_nodes_with_its_base_and_answers_from_any(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    mesh["b"].serving.serve(result)
    await until(lambda: len(mesh["b"].told) == 2)
    assert {job for job, _ in mesh["b"].told} == {result.job}
    assert sorted(texts(mesh["b"])) == ["served as pirate on a", "served as pirate on b"]
    assert [mesh[name].models() for name in ("a", "b", "other")] == [["base", "pirate"]] * 2 + [["another"]]
    for name in ("a", "b", "other"):
        assert await mesh.ask(name, "hello", "pirate") == "pirate: hello"
    status, models = await mesh.call("other", "GET", "/v1/models")
    assert (status, {card["id"]: card["owned_by"] for card in models["data"]}["pirate"]) == (200, "a, b")
    _, tags = await mesh.call("other", "GET", "/api/tags")
    assert "pirate:latest" in [tag["name"] for tag in tags["models"]]


async def test_a_result_is_served_once_however_often_it_is_pushed(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    for name in ("a", "b", "b"):
        mesh[name].serving.serve(result)
    await until(lambda: len(mesh["a"].told) == len(mesh["b"].told) == 2)
    assert mesh["a"].models() == ["base", "pirate"]
    assert await mesh.ask("a", "hello", "pirate") == "pirate: hello"


async def test_a_job_record_becomes_what_is_served(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    told = Told(state="completed", artifact=result.artifact, holders=(NodeId(result.node),))
    told = replace(told, result={"base_digest": result.base_digest, "kind": "adapter"})
    attempt = Attempt(
        number=1, ballot=Ballot(1, mesh["a"].id), node=mesh["a"].id, spec={"model_name": "base"}, told=told
    )
    asked = Asked(name="pirate", spec={"model_name": "base"}, data=Dataset("0" * 64, "data.jsonl"))
    job = Job(id=JobId(result.job), asked=asked, course=Course(state="completed"), attempts=(attempt,))
    mesh["b"].serving.serve_job(job)
    await until(lambda: len(mesh["b"].told) == 2)
    assert mesh["b"].models() == ["base", "pirate"]
    mesh["b"].serving.serve_job(replace(job, attempts=(replace(attempt, told=replace(told, artifact="")),)))
    assert texts(mesh["b"])[-1] == "not served: its node keeps no result"


async def test_the_node_that_trained_serves_at_once_a_base_that_nobody_served(mesh: ServingMesh) -> None:
    """It has the base on its disk, which is where training read it."""
    base = write_model(mesh["a"].folder / "untold", "untold")
    result = await trained(mesh["a"], "pirate", base=str(base), base_digest=resolve(str(base)).digest)
    mesh["b"].serving.serve(result)
    await until(lambda: bool(mesh["b"].told))
    assert texts(mesh["b"]) == ["served as pirate on a"]
    assert mesh["a"].models() == ["base", "untold", "pirate"]
    assert await mesh.ask("other", "hello", "pirate") == "pirate: hello"


async def test_a_node_that_was_away_gets_a_copy_at_the_first_use(mesh: ServingMesh) -> None:
    """The prompt itself is answered by somebody else, and nothing comes from the internet."""
    mesh["b"].state = "down"
    result = await trained(mesh["a"], "pirate")
    mesh["a"].serving.serve(result)
    await until(lambda: texts(mesh["a"]) == ["served as pirate on a"])
    mesh["b"].state = "up"
    assert mesh["b"].models() == ["base"]
    assert await mesh.ask("b", "hello", "pirate") == "pirate: hello"
    await until(lambda: mesh["b"].models() == ["base", "pirate"])
    assert await mesh.ask("other", "hello", "pirate") == "pirate: hello"
    mesh["a"].state = "down"
    assert await mesh.ask("b", "hello", "pirate") == "pirate: hello"
    assert mesh["other"].models() == ["another"], "which has no use for it"


async def test_a_node_that_is_unreachable_is_told_and_the_others_serve(
    mesh: ServingMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PUSH_S", 0.3)
    result = await trained(mesh["a"], "pirate")
    mesh["b"].url = "http://127.0.0.1:9"  # nobody listens there
    mesh["a"].serving.serve(result)
    await until(lambda: len(mesh["a"].told) == 2)
    assert texts(mesh["a"])[0] == "served as pirate on a"
    assert texts(mesh["a"])[1].startswith("not served on b: node")


async def test_a_whole_model_is_served_too(mesh: ServingMesh) -> None:
    model = write_model(mesh["a"].folder / "tuned", "tuned")
    result = await kept(mesh["a"], model, "tuned:v2", base="base", base_digest=mesh["a"].digest("base"), kind="model")
    mesh["a"].serving.serve(result)
    await until(lambda: len(mesh["a"].told) == 2)
    assert mesh["b"].models() == ["base", "tuned:v2"]
    assert mesh["a"].digest("tuned:v2") == mesh["b"].digest("tuned:v2") != mesh["a"].digest("base")
    assert await mesh.ask("other", "hello", "tuned:v2") == "tuned:v2: hello"


async def test_what_was_taken_in_is_not_remembered_when_nobody_asks_again(
    mesh: ServingMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ordered it may be gone by then."""
    monkeypatch.setattr(serving, "ANSWER_S", 0.0)
    monkeypatch.setattr(serving, "TOLD_S", 0.2)
    good = await trained(mesh["a"], "pirate")
    bad = good.model_copy(update={"name": "nobody", "job": new_job(), "artifact": "0" * 64})
    here = mesh["b"].serving
    for result in (good, bad):
        assert await here.answer(SERVED_PATH, result.model_dump()) == {"state": serving.COMING}
    assert len(here._taking) == 2
    await until(lambda: mesh["b"].models() == ["base", "pirate"] and not here._taking)
    assert await here.answer(SERVED_PATH, good.model_dump()) == {"state": serving.SERVED}
    assert not here._taking


async def test_why_nothing_was_taken_in_is_told_to_who_asks_again(
    mesh: ServingMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ANSWER_S", 0.0)
    result = (await trained(mesh["a"], "pirate")).model_copy(update={"artifact": "0" * 64})
    here = mesh["b"].serving
    assert await here.answer(SERVED_PATH, result.model_dump()) == {"state": serving.COMING}
    (taking,) = here._taking.values()
    await asyncio.wait((taking,))
    with pytest.raises(TiermeshError, match="no node gives"):
        await here.answer(SERVED_PATH, result.model_dump())
    assert not here._taking


# Who may have it


async def test_on_an_open_mesh_a_result_stays_with_the_node_that_trained(open_mesh: ServingMesh) -> None:
    result = await trained(open_mesh["a"], "pirate", shared=False)
    open_mesh["b"].serving.serve(result)
    await until(lambda: bool(open_mesh["b"].told))
    assert await open_mesh.ask("b", "hello", "pirate") == "pirate: hello"
    assert texts(open_mesh["b"]) == ["served as pirate on a"]
    with pytest.raises(Forbidden, match="stays on the node that trained it"):
        await taken(open_mesh["b"], result)
    assert open_mesh["b"].models() == ["base"]


async def test_open_data_lets_it_go_to_others(open_mesh: ServingMesh) -> None:
    for shared in (False, True):
        result = await trained(open_mesh["a"], f"shared-{shared}", shared=shared)
        open_mesh["a"].serving.serve(result)
    await until(lambda: len(open_mesh["a"].told) == 3)
    assert open_mesh["b"].models() == ["base", "shared-True"]


async def test_an_adapter_of_other_weights_is_refused_by_name_and_digest(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    wrong = result.model_copy(update={"base_digest": "sha256:other"})
    with pytest.raises(UnknownModel, match="does not serve base"):
        await taken(mesh["b"], wrong)
    with pytest.raises(InvalidInput, match=r"base has the digest sha256:\w+ here, not sha256:other"):
        await taken(mesh["a"], wrong)
    mine = mesh["b"].digest("base")
    lied = await trained(mesh["other"], "liar", base="another")
    with pytest.raises(InvalidInput, match="liar was trained on another with the digest"):
        await taken(mesh["b"], lied.model_copy(update={"base": "base", "base_digest": mine}))
    assert mesh["b"].models() == ["base"]
    assert not list((mesh["b"].folder / "models").glob("*/result.json"))


async def test_files_that_nobody_has_leave_nothing_behind(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    with pytest.raises(TiermeshError):
        await taken(mesh["b"], result.model_copy(update={"artifact": "0" * 64}))
    assert mesh["b"].models() == ["base"]
    assert [path.name for path in (mesh["b"].folder / "models").iterdir()] == []


# Names


async def test_a_name_that_is_something_elses_is_refused(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "base")
    with pytest.raises(NameTaken, match="base is served on this node already"):
        await taken(mesh["b"], result)
    assert mesh["b"].models() == ["base"]


async def test_the_later_job_of_a_name_has_it_whatever_the_order(mesh: ServingMesh) -> None:
    """Two halves of a partition may have had a job of one name each."""
    earlier = await trained(mesh["a"], "pirate", weights=b"earlier" * 1000, job=new_job(1_800_000_000_000))
    later = await trained(mesh["a"], "pirate", weights=b"later" * 1000, job=new_job(1_800_000_001_000))
    await taken(mesh["a"], earlier)
    first = mesh["a"].digest("pirate")
    await taken(mesh["a"], later)
    await taken(mesh["b"], later)
    for node in (mesh["a"], mesh["b"]):
        with pytest.raises(NameTaken, match=f"what the later job {later.job} left"):
            await taken(node, earlier)
        assert node.models() == ["base", "pirate"]
    assert mesh["a"].digest("pirate") == mesh["b"].digest("pirate") != first


async def test_another_result_of_the_same_job_takes_its_place(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate", weights=b"second attempt")
    await taken(mesh["b"], result)
    before = mesh["b"].digest("pirate")
    again = await trained(mesh["a"], "pirate", weights=b"first attempt, told late", job=result.job)
    await taken(mesh["b"], again)
    assert mesh["b"].digest("pirate") != before
    assert [one.artifact for one in mesh["b"].serving.here.results.values()] == [again.artifact]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("auto", "means any model"),
        ("tier:1", "means any model"),
        ("gpt-4o", "is an alias"),
        ("smollm2:135m", "is a model of the catalogue"),
        ("another", "node other serves a model as another"),
        ("pirate", None),
    ],
)
async def test_names_that_no_job_may_have(mesh: ServingMesh, name: str, why: str | None) -> None:
    said = mesh["a"].serving.taken(name)
    assert said is None if why is None else said is not None and why in said


# After a restart, and when there is no room


async def test_it_is_served_again_after_a_restart(tmp_path: Path) -> None:
    passport = Passport(f"test-{secrets.token_hex(4)}", NodeId(secrets.token_hex(16)), SESSION, "secret")
    model = write_model(tmp_path / "a" / "base")
    tuned = write_model(tmp_path / "a" / "tuned", "tuned")
    async with AsyncExitStack() as stack:
        mesh = ServingMesh(await stack.enter_async_context(aiohttp.ClientSession()), "secret")
        node = await add(mesh, stack, "a", passport, model)
        await taken(node, await trained(node, "pirate"))
        await taken(node, await kept(node, tuned, "whole", base="base", kind="model"))
        untold = write_model(tmp_path / "a" / "untold", "untold")
        await taken(node, await trained(node, "poet", base=str(untold), base_digest=resolve(str(untold)).digest))
        before = {name: node.digest(name) for name in node.models()}
    (tmp_path / "a" / "models" / ".coming-0123").mkdir()
    async with AsyncExitStack() as stack:
        mesh = ServingMesh(await stack.enter_async_context(aiohttp.ClientSession()), "secret")
        node = await add(mesh, stack, "a", passport, model)
        await until(lambda: len(node.models()) == len(before))
        assert {name: node.digest(name) for name in node.models()} == before
        assert await mesh.ask("a", "hello", "pirate") == "pirate: hello"
        assert not (tmp_path / "a" / "models" / ".coming-0123").exists()


async def test_the_longest_unused_makes_room_unless_it_is_pinned(tmp_path: Path) -> None:
    passport = Passport(f"test-{secrets.token_hex(4)}", NodeId(secrets.token_hex(16)), SESSION, "secret")
    async with AsyncExitStack() as stack:
        mesh = ServingMesh(await stack.enter_async_context(aiohttp.ClientSession()), "secret")
        node = await add(mesh, stack, "a", passport, write_model(tmp_path / "a" / "base"), cap_bytes=3_500)
        for name in ("one", "two"):
            await taken(node, await trained(node, name, weights=name.encode() * 300))
        node.serving.here.pin("one", pinned=True)
        await mesh.ask("a", "hello", "two")
        await taken(node, await trained(node, "three", weights=b"three" * 180))
        assert node.models() == ["base", "one", "two", "three"]
        await mesh.ask("a", "hello", "three")
        await taken(node, await trained(node, "four", weights=b"four" * 200))
        assert node.models() == ["base", "one", "three", "four"]
        with pytest.raises(NotFound):
            await node.serving.here.remove("two")


# The routes


async def test_the_list_tells_of_all_nodes(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    await taken(mesh["a"], result)
    await taken(mesh["b"], result)
    await taken(mesh["a"], await trained(mesh["a"], "poet"))
    status, told = await mesh.call("other", "GET", "/api/models")
    assert (status, told["unreachable"]) == (200, [])
    assert [(one["name"], one["nodes"], one["base"]) for one in told["models"]] == [
        ("pirate", ["a", "b"], "base"),
        ("poet", ["a"], "base"),
    ]
    pirate = told["models"][0]
    assert (pirate["job"], pirate["kind"], pirate["shared"]) == (result.job, "adapter", True)
    assert pirate["size_bytes"] == sum(file["size_bytes"] for file in pirate["files"])
    mesh["b"].url = "http://127.0.0.1:9"
    _, told = await mesh.call("other", "GET", "/api/models")
    assert (told["unreachable"], told["models"][0]["nodes"]) == (["b"], ["a"])


async def test_files_come_from_any_node(mesh: ServingMesh) -> None:
    await taken(mesh["a"], await trained(mesh["a"], "pirate:v1"))
    status, model = await mesh.call("other", "GET", "/api/models/pirate:v1")
    assert (status, sorted(file["name"] for file in model["files"])) == (
        200,
        ["adapter_config.json", "adapter_model.safetensors", "origin.json"],
    )
    for node in ("a", "other"):
        for file in model["files"]:
            status, body = await mesh.call(node, "GET", f"/api/models/pirate:v1/files/{file['name']}")
            assert (status, hashlib.sha256(body).hexdigest()) == (200, file["sha256"])
        for wrong in (
            "pirate:v1/files/nothing",
            "pirate:v1/files/..%2Fresult.json",
            "nobody/files/origin.json",
            "nobody",
        ):
            status, answer = await mesh.call(node, "GET", f"/api/models/{wrong}")
            assert (status, answer["error"]["type"]) == (404, "not_found")


async def test_a_removed_model_is_gone_everywhere_and_stays_so(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    mesh["a"].serving.serve(result)
    await until(lambda: len(mesh["a"].told) == 2)
    status, told = await mesh.call("other", "DELETE", "/api/models/pirate")
    assert (status, told) == (200, {"name": "pirate", "nodes": ["a", "b"], "unreachable": []})
    assert mesh["a"].models() == mesh["b"].models() == ["base"]
    assert (await mesh.call("a", "DELETE", "/api/models/pirate"))[0] == 404
    mesh["b"].serving.serve(result)  # as a new coordinator does, which knows of the job only
    await until(lambda: len(mesh["b"].told) == 2)
    assert all("removed from this node by a person" in text for text in texts(mesh["b"]))
    status, answer = await mesh.call("other", "POST", "/v1/chat/completions", json={"model": "pirate", "messages": []})
    assert status in (400, 404), answer
    await taken(mesh["a"], await trained(mesh["a"], "pirate"))  # a new job may have the name


async def test_pinning_is_told_of(mesh: ServingMesh) -> None:
    await taken(mesh["a"], await trained(mesh["a"], "pirate"))
    status, told = await mesh.call("b", "POST", "/api/models/pirate/pin", json={"pinned": True})
    assert (status, told["pinned"]) == (200, True)
    assert mesh["a"].serving.here.results["pirate"].pinned
    status, told = await mesh.call("b", "POST", "/api/models/pirate/pin", json={"pinned": False})
    assert (status, told["pinned"]) == (200, False)
    status, told = await mesh.call("b", "POST", "/api/models/pirate/pin", json={"pinned": "yes"})
    assert (status, told["error"]["param"]) == (400, "pinned")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"},
        {"job": "1"},
        {"artifact": "zz"},
        {"kind": "code"},
        {"holders": "a"},
        {"shared": "yes"},
        {"base": None},
    ],
)
async def test_a_peer_that_asks_for_nonsense_is_refused(open_mesh: ServingMesh, wrong: dict[str, Any]) -> None:
    result = (await trained(open_mesh["a"], "pirate")).model_dump() | wrong
    node = open_mesh["b"]
    with pytest.raises(InvalidInput):
        await node.peers.ask(open_mesh["a"].id, open_mesh["a"].addresses, "/mesh/v1/served", result)
    assert open_mesh["a"].models() == ["base"]


async def test_a_fetch_that_takes_long_goes_on_while_it_is_asked_again(
    mesh: ServingMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ANSWER_S", 0.02)
    taking, calls = mesh["b"].serving.here.take, []

    async def slowly(result: Result) -> Any:
        calls.append(result.name)
        await asyncio.sleep(0.3)
        return await taking(result)

    monkeypatch.setattr(mesh["b"].serving.here, "take", slowly)
    mesh["a"].serving.serve(await trained(mesh["a"], "pirate"))
    await until(lambda: len(mesh["a"].told) == 2)
    assert mesh["b"].models() == ["base", "pirate"]
    assert calls == ["pirate"]


async def test_a_name_that_another_node_serves_is_refused_though_this_one_does_not(mesh: ServingMesh) -> None:
    """Equal names would be taken for equal models."""
    mesh["a"].serving.serve(await trained(mesh["a"], "another"))
    await until(lambda: len(mesh["a"].told) == 2)
    for text in texts(mesh["a"]):
        assert "node other serves a model as another, which is no job's" in text
    assert mesh["a"].models() == ["base"]


async def test_the_view_tells_which_job_left_a_model(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    await taken(mesh["a"], result)
    _, told = await mesh.call("other", "GET", "/api/cluster")
    jobs = {model["name"]: model["job"] for node in told["nodes"] for model in node["models"]}
    assert jobs == {"base": "", "another": "", "pirate": result.job}
    assert mesh["b"].serving.taken("pirate") is None, "the job itself may be submitted again"


async def test_later_is_what_was_submitted_later_whatever_the_ids_say(mesh: ServingMesh) -> None:
    """An id that was made of a key is of no time."""
    earlier = await trained(
        mesh["a"], "pirate", weights=b"earlier" * 1000, job=new_job(9_000_000_000_000), submitted_at=1.0
    )
    later = await trained(
        mesh["a"], "pirate", weights=b"later" * 1000, job=new_job(1_800_000_000_000), submitted_at=2.0
    )
    await taken(mesh["a"], earlier)
    await taken(mesh["a"], later)
    with pytest.raises(NameTaken, match=f"what the later job {later.job} left"):
        await taken(mesh["a"], earlier)


async def test_what_could_not_be_fetched_is_not_kept_for_ever(mesh: ServingMesh) -> None:
    result = await trained(mesh["a"], "pirate")
    with pytest.raises(TiermeshError):
        await taken(mesh["b"], result.model_copy(update={"holders": []}))
    assert not [owner for owner in mesh["b"].blobs.owners() if owner.startswith("served-")]
