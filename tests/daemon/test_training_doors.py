"""The doors for training, over real HTTP and with a scripted worker: what is taken, what is refused and why."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.training_desk import (
    COMPLETED,
    DIGEST,
    DONE,
    FAILED,
    JSON,
    LIMIT_S,
    LONG,
    SPEC,
    STEP,
    STREAM,
    TEXT,
    Desk,
    new_id,
    opened,
    play_scripts,
)
from tests.training_fake import starts, write_script
from tests.training_runs import write_data

from tiermesh.adapters.event_lines import ATTEMPT
from tiermesh.adapters.passport import Passport
from tiermesh.adapters.trainer import Launch
from tiermesh.core.admission import GIB, Machine
from tiermesh.core.job_rules import MAX_INTERRUPTIONS
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId
from tiermesh.daemon import attempts, groundwork
from tiermesh.daemon.api.jobs import listed
from tiermesh.daemon.job_reactor import JobReactor
from tiermesh.errors import InvalidSpec
from tiermesh.protocol.headers import LOG_OFFSET
from tiermesh.protocol.job_orders import ATTEMPTS_PATH, JOBS_PATH
from tiermesh.protocol.jobs import LISTED
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.types import NodeId, SessionId

pytest.importorskip("torch")


@pytest.fixture
def cluster() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture(autouse=True)
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_scripts(tmp_path, monkeypatch)


@pytest.fixture
async def desk(tmp_path: Path, cluster: str) -> AsyncIterator[Desk]:
    async with opened(tmp_path, cluster) as made:
        yield made


async def test_a_job_is_accepted_done_and_listed(desk: Desk) -> None:
    accepted = await desk.train(DONE, name="faq")
    assert (accepted["name"], accepted["model"], accepted["node"]) == ("faq", "stub", "desk")
    assert (accepted["data"], accepted["spec"]["dataset_path"]) == (
        {"sha256": DIGEST, "name": "faq.jsonl"},
        "faq.jsonl",
    )
    done = await desk.until("faq", "completed")
    assert (done["id"], done["result"]["step"], done["reason"]) == (accepted["id"], 9, "done after 9 steps")
    assert accepted["submitted_at"] <= done["started_at"] <= done["ended_at"]
    _, listed = await desk.ask("GET", "/api/jobs")
    assert [(job["name"], job["state"], job["spec"]) for job in listed["jobs"]] == [("faq", "completed", {})]
    plan = json.loads((desk.run(done["id"]) / "spec.json").read_text())
    assert plan["data_path"] == str(desk.run(done["id"]) / "input-data" / "faq.jsonl")
    assert (plan["data_digest"], plan["spec"]["model_name"]) == (f"sha256:{DIGEST}", "stub")


async def test_of_the_jobs_that_are_over_the_last_ones_are_listed_and_of_the_others_all(desk: Desk) -> None:
    desk.daemon._nodes.drain_here(True)  # they wait
    jobs = [(await desk.train(DONE, name=name))["id"] for name in ("waits", "first", "second", "third")]
    for job in (jobs[2], jobs[1], jobs[3]):
        await desk.ask("POST", f"/api/jobs/{job}/cancel")
        await desk.until(job, "cancelled")

    async def asked(query: str) -> tuple[list[str], int]:
        _, told = await desk.ask("GET", f"/api/jobs{query}")
        return [job["name"] for job in told["jobs"]], told["more"]

    assert await asked("") == (["waits", "first", "second", "third"], 0)
    assert await asked("?limit=2") == (["waits", "first", "third"], 1), "the last two that ended"
    assert await asked("?limit=0") == (["waits"], 3)
    assert await asked("?limit=99999") == (["waits", "first", "second", "third"], 0)
    for wrong in ("-1", "x", "9" * 9):
        assert (await desk.ask("GET", f"/api/jobs?limit={wrong}"))[1]["error"]["param"] == "limit"


def test_what_is_listed_unasked_leaves_no_job_out_that_is_not_over() -> None:
    data = Dataset("a" * 64, "faq.jsonl")
    jobs = [
        Job(
            id=JobId(f"J{index:04}"),
            asked=Asked(name=f"j{index}", spec={}, data=data, submitted_at=float(index)),
            course=Course(state="cancelled" if index % 2 else "queued"),
        )
        for index in range(1000)
    ]
    told, more = listed(jobs, LISTED)
    assert [job.id for job in told] == [job.id for job in jobs if job.state == "queued" or job.submitted_at >= 600]
    assert more == 300


async def test_the_same_id_is_the_same_job(desk: Desk) -> None:
    accepted = await desk.train(DONE)
    body = {"id": accepted["id"], "spec": SPEC, "data": {"name": "faq.jsonl", "text": TEXT}}
    again = await asyncio.gather(*(desk.ask("POST", "/api/train", body) for _ in range(4)))
    assert [(status, report["id"]) for status, report in again] == [(200, accepted["id"])] * 4
    await desk.until(accepted["id"], "completed")
    assert len(starts(desk.run(accepted["id"]))) == 1
    status, told = await desk.ask("POST", "/api/train", body | {"spec": SPEC | {"seed": 7}})
    assert (status, told["error"]["type"], told["error"]["param"]) == (409, "job_exists", "id")


async def test_while_nobody_leads_a_job_is_refused_for_now_and_taken_when_sent_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the first moments of a daemon, before it leads or follows."""
    job = new_id()
    body = {"id": job, "spec": SPEC, "data": {"name": "faq.jsonl", "text": TEXT}}
    write_script(desk.run(job), DONE)
    with monkeypatch.context() as leaderless:
        leaderless.setattr(JobReactor, "leads", False)
        async with desk.http.post(desk.url + "/api/train", json=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert "no coordinator just now; try again" in (await response.json())["error"]["message"]
    assert (await desk.ask("GET", "/api/jobs"))[1] == {"jobs": [], "more": 0}
    assert (await desk.ask("POST", "/api/train", body))[0] == 200
    await desk.until(job, "completed")
    assert len(starts(desk.run(job))) == 1


WRONG: list[tuple[str, dict[str, Any], int, str, str]] = [
    ("no spec", {"spec": None}, 400, "spec", "JSON object"),
    ("no data", {"data": None}, 400, "data", "JSON object"),
    ("neither digest nor text", {"data": {"name": "x"}}, 400, "data", "either sha256"),
    ("both", {"data": {"sha256": "0" * 64, "text": "x"}}, 400, "data", "either sha256"),
    ("a digest that is none", {"data": {"sha256": "xyz"}}, 400, "data.sha256", "pattern"),
    ("data that was not sent", {"data": {"sha256": "0" * 64}}, 400, "data.sha256", "PUT /api/data/000"),
    ("a path as data", {"data": "/etc/passwd"}, 400, "data", "JSON object"),
    ("an id that is none", {"id": "../../etc"}, 400, "id", "pattern"),
    ("a name that can't be typed", {"name": "a b/c"}, 400, "name", "letters"),
    ("an unknown field", {"spec": SPEC | {"epochs": 3}}, 400, "epochs", "did you mean"),
    ("a wrong value", {"spec": SPEC | {"lora": {"r": 0}}}, 400, "lora.r", "at least 1"),
    ("a later version", {"spec": SPEC | {"version": 2}}, 400, "version", "reads version 1"),
    ("somebody else's account", {"spec": SPEC | {"wandb": "mine"}}, 400, "wandb", "whoever owns the node"),
    ("no model", {"spec": {"num_epochs": 1}}, 400, "model_name", "which model"),
    ("an unknown model", {"spec": {"model_name": "nonesuch"}}, 400, "model_name", "there are smollm2"),
    ("a model by its path", {"spec": {"model_name": "/srv/model"}}, 400, "model_name", "--model FOLDER"),
    ("a model by a path here", {"spec": {"model_name": "../stub"}}, 400, "model_name", "--model FOLDER"),
    ("held-out data by its path", {"spec": SPEC | {"eval_path": "/etc/passwd"}}, 400, "eval_path", "send eval_data"),
    (
        "a node that there is not",
        {"spec": SPEC | {"target_gpu": "desk2"}},
        400,
        "target_gpu",
        "there is desk; or say",
    ),
    ("bad records", {"data": {"name": "x.jsonl", "text": "{}\n{"}}, 400, "data", "line 2"),
    (
        "more bad records than are forgiven",
        {"data": {"name": "x.jsonl", "text": TEXT + "no json\n"}, "spec": SPEC | {"data": {"max_bad_records": 0}}},
        400,
        "data",
        "line 3",
    ),
]
FOUND_OUT: list[tuple[str, dict[str, Any], str]] = [
    ("a model that is nowhere", {"model_name": "org/none"}, "org/none"),
    ("an unknown plugin", SPEC | {"optimizer": "lion9"}, "no package"),
    ("more memory than it may have", SPEC | {"memory_limit": "300 MB"}, "memory_limit is 0.3 GiB"),
]


@pytest.mark.parametrize(("fields", "status", "param", "says"), [row[1:] for row in WRONG], ids=[r[0] for r in WRONG])
async def test_what_is_wrong_is_one_clear_answer_and_leaves_nothing(
    desk: Desk, fields: dict[str, Any], status: int, param: str, says: str
) -> None:
    body = {"id": new_id(), "spec": SPEC, "data": {"name": "faq.jsonl", "text": TEXT}} | fields
    got, told = await desk.ask("POST", "/api/train", body)
    assert (got, told["error"]["param"] or "") == (status, param), told
    assert says in told["error"]["message"], told
    assert str(desk.state) not in told["error"]["message"]
    assert (await desk.ask("GET", "/api/jobs"))[1] == {"jobs": [], "more": 0}
    assert not list((desk.state / "jobs").glob("*"))


@pytest.mark.parametrize(("spec", "says"), [row[1:] for row in FOUND_OUT], ids=[row[0] for row in FOUND_OUT])
async def test_what_only_a_node_can_tell_refuses_the_job(desk: Desk, spec: dict[str, Any], says: str) -> None:
    job = await desk.train(DONE, spec=spec)
    refused = await desk.until(job["id"], "refused")
    assert refused["failure"] == "invalid_spec"
    assert says in refused["reason"]
    assert str(desk.state) not in refused["reason"]
    assert starts(desk.run(job["id"])) == []


async def test_what_is_too_large_for_every_node_waits_and_a_person_sees_why(desk: Desk) -> None:
    ground = desk.daemon._training.groundwork
    ground.memory = lambda: Machine(GIB // 2, GIB // 2)
    job = await desk.train(DONE)
    waiting = await desk.until(job["id"], "queued", "running", "refused")
    assert (waiting["state"], waiting["reason"]) == ("queued", "waits: desk has 0.5 GB of 0.6 GB")
    assert (waiting["estimate"], waiting["gate"]) == (None, None)
    ground.memory = lambda: Machine(16 * GIB, 8 * GIB)
    assert (await desk.ask("POST", f"/api/jobs/{job['id']}/retry"))[0] == 200
    await desk.until(job["id"], "completed")


async def test_a_refused_submission_touches_no_run_that_is_there(desk: Desk) -> None:
    job = new_id()
    write_script(desk.run(job, 2), DONE)
    body = {"id": job, "spec": SPEC, "data": {"name": "x.jsonl", "text": "{}\n"}}
    assert (await desk.ask("POST", "/api/train", body))[0] == 400
    assert (desk.run(job, 2) / "script.json").exists()


async def test_a_worker_that_can_not_be_started_fails_the_job(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Launch.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "program", ("/nonexistent/worker",))
    job = await desk.train(DONE)
    failed = await desk.until(job["id"], "failed")
    assert (failed["failure"], "/nonexistent/worker" in failed["reason"]) == ("environment_unfit", True)
    assert (await desk.ask("GET", "/api/jobs"))[0] == 200


async def test_a_job_cancelled_while_it_begins_stays_cancelled(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def take(*_: object) -> None:
        asked.set()
        await answer.wait()
        raise InvalidSpec("no node will ever take it")

    monkeypatch.setattr(attempts.Attempts, "take", take)
    first = await desk.train(DONE)
    await asyncio.wait_for(asked.wait(), LIMIT_S)
    status, told = await desk.ask("POST", f"/api/jobs/{first['id']}/cancel")
    assert (status, told["state"]) == (200, "cancelling")
    second = await desk.train(DONE)
    answer.set()
    assert (await desk.until(second["id"], "failed"))["reason"] == "no node will ever take it"
    assert (await desk.until(first["id"], "cancelled", "failed"))["state"] == "cancelled"


async def test_data_is_sent_first_and_verified(desk: Desk, tmp_path: Path) -> None:
    file = write_data(tmp_path / "data.jsonl", 20_000).read_bytes()
    digest = hashlib.sha256(file).hexdigest()
    path = f"/api/data/{digest}"
    assert (await desk.ask("GET", path))[0] == 404
    status, told = await desk.ask("PUT", path, file[:-1], STREAM)
    assert (status, told["error"]["type"]) == (400, "data_unusable")
    assert (await desk.ask("PUT", path, file, JSON))[0] == 415
    assert (await desk.ask("PUT", "/api/data/nonsense", file, STREAM))[0] == 404
    told = {"sha256": digest, "size_bytes": len(file), "whole": True, "coming": False}
    assert await desk.ask("PUT", path, file, STREAM) == (200, told)
    assert await desk.ask("GET", path) == (200, told)
    job = await desk.train(DONE, data={"sha256": digest, "name": "../data.jsonl"})
    assert (await desk.until(job["id"], "completed"))["data"]["name"] == "data.jsonl"
    assert (await desk.ask("POST", "/api/train", b"{}", STREAM))[0] == 415, "the exception is the data's alone"


async def test_ten_gigabytes_are_refused_before_they_come(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.daemon._training.blobs._room, "_cap_bytes", 10**9)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(desk.url.rsplit(":", 1)[1]))
    writer.write(
        f"PUT /api/data/{'0' * 64} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000000000\r\n"
        "Content-Type: application/octet-stream\r\n\r\n".encode()
    )
    async with asyncio.timeout(LIMIT_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()
    assert [path.name for path in (desk.state / "data").iterdir() if path.is_file()] == []


async def test_a_typed_failure_is_told_with_what_helps(desk: Desk) -> None:
    job = await desk.train([{"say": STEP}, {"say": FAILED}, {"exit": 3}])
    failed = await desk.until(job["id"], "failed")
    assert (failed["failure"], failed["reason"]) == (
        "diverged",
        "the loss jumped 6 times. lower learning_rate; no retries",
    )


async def test_a_worker_that_somebody_killed_is_started_again(desk: Desk) -> None:
    job = await desk.train([{"say": STEP}, {"signal": 9}], DONE)
    assert (await desk.until(job["id"], "completed", "failed"))["state"] == "completed"
    assert len(starts(desk.run(job["id"]))) == 2


async def test_one_that_dies_again_and_again_is_given_up(desk: Desk) -> None:
    job = await desk.train([{"say": STEP}, {"signal": 9}])
    failed = await desk.until(job["id"], "failed")
    assert "again and again" in failed["reason"]
    assert len(starts(desk.run(job["id"]))) == MAX_INTERRUPTIONS + 1


async def test_jobs_are_done_one_after_the_other(desk: Desk) -> None:
    first, second = await desk.train(LONG, name="a"), await desk.train(DONE, name="a")
    assert second["name"] == "a-2"
    await desk.until_step(first["id"])
    await desk.until_told("a")
    assert (await desk.until("a-2", "queued"))["reason"] == "waits: desk trains a, and has one training slot"
    status, told = await desk.ask("POST", "/api/jobs/a/cancel")
    assert (status, told["state"]) == (200, "cancelling")
    assert (await desk.until("a", "cancelled"))["reason"] == "cancelled"
    assert (await desk.until("a-2", "completed"))["attempt"] == 1
    await desk.until_told("")
    status, told = await desk.ask("POST", "/api/jobs/a-2/cancel")
    assert (status, told["error"]["type"]) == (409, "not_possible_now")
    assert (await desk.ask("POST", "/api/jobs/nobody/cancel"))[0] == 404


async def test_what_does_not_fit_now_waits_with_a_reason(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [GIB // 4]
    monkeypatch.setattr(desk.daemon._training.groundwork, "memory", lambda: Machine(8 * GIB, free[0]))
    job = await desk.train(DONE)
    async with asyncio.timeout(LIMIT_S):
        while "free now" not in (report := (await desk.ask("GET", f"/api/jobs/{job['id']}"))[1])["reason"]:
            await asyncio.sleep(0.02)
    assert (report["state"], report["reason"]) == (
        "queued",
        "waits: desk it needs at least 0.6 GiB, and 0.2 GiB are free now",
    )
    free[0] = 4 * GIB
    await desk.until(job["id"], "completed")


async def test_events_are_streamed_from_any_number(desk: Desk) -> None:
    job = await desk.train([{"say": STEP}, {"tear": "torn\n"}, {"say": STEP}, {"until": "go"}, {"say": COMPLETED}])
    await desk.until_step(job["id"])

    async def told(**asked: Any) -> str:
        async with desk.http.get(f"{desk.url}/api/jobs/{job['id']}/events", **asked) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            return (await response.read()).decode()

    follower = asyncio.create_task(told())
    (desk.run(job["id"]) / "go").touch()
    async with asyncio.timeout(LIMIT_S):
        whole = await follower
    lines = whole.splitlines()
    assert [line for line in lines if line.startswith("id: ")] == [f"id: {ATTEMPT + n}" for n in (1, 3, 4)]
    assert lines[0] == "event: job"
    assert json.loads(lines[-2].removeprefix("data: "))["state"] == "completed"
    assert [
        line for line in (await told(headers={"Last-Event-ID": f"{ATTEMPT + 3}"})).splitlines() if line.startswith("id")
    ] == [f"id: {ATTEMPT + 4}"]
    assert "id: " not in await told(params={"after": f"{ATTEMPT + 99}"})
    for wrong in ("-1", "x", "1e3", "9" * 40):
        assert (await desk.ask("GET", f"/api/jobs/{job['id']}/events?after={wrong}"))[0] == 400
    assert (await desk.ask("GET", "/api/jobs/nobody/events"))[0] == 404


async def test_a_log_is_told_from_its_end_or_whole(desk: Desk) -> None:
    job = await desk.train(DONE)
    await desk.until(job["id"], "completed")
    run = RunFolder(desk.run(job["id"]))
    run.older_log.write_text("".join(f"{index}\n" for index in range(100)))
    run.log.write_text("".join(f"{index}\n" for index in range(100, 120)))

    async def told(query: str) -> tuple[list[int], str]:
        async with desk.http.get(f"{desk.url}/api/jobs/{job['id']}/logs{query}") as response:
            return [int(line) for line in (await response.text()).split()], response.headers[LOG_OFFSET]

    end = str(run.log.stat().st_size)
    assert await told("") == ([*range(70, 120)], end)
    assert await told("?lines=3") == ([117, 118, 119], end)
    assert await told("?lines=0") == ([*range(120)], end)
    assert await told(f"?after={end}") == ([], end)


async def test_jobs_outlive_the_daemon(tmp_path: Path, cluster: str) -> None:
    async with opened(tmp_path, cluster) as desk:
        job = await desk.train(LONG, DONE, name="long")
        waiting = await desk.train(DONE, name="waiting")
        await desk.until_step(job["id"])
        follower = asyncio.create_task(desk.http.get(f"{desk.url}/api/jobs/long/events"))
        await (await follower).content.readany()
    async with opened(tmp_path, cluster) as desk:
        await desk.until("waiting", "completed")
        done = await desk.until("long", "completed")
        assert (done["id"], done["attempt"]) == (job["id"], 1)
        again = {"id": waiting["id"], "spec": SPEC, "data": {"name": "faq.jsonl", "sha256": DIGEST}}
        assert (await desk.ask("POST", "/api/train", again))[1]["state"] == "completed"


async def test_what_is_forgotten_leaves_the_disk_and_what_a_dead_daemon_was_at_work_with_too(
    tmp_path: Path, cluster: str
) -> None:
    for name in ("look-0123456789abcdef", "estimate-0123456789abcdef"):
        (tmp_path / "state" / "jobs" / name / "data").mkdir(parents=True)
    async with opened(tmp_path, cluster) as desk:
        assert not list((desk.state / "jobs").glob("*-*"))
        gone, kept = await desk.train(DONE), await desk.train(DONE)
        for job in (gone, kept):
            await desk.until(job["id"], "completed")
        assert (await desk.ask("DELETE", f"/api/jobs/{gone['id']}"))[0] == 200
        async with asyncio.timeout(LIMIT_S):
            while desk.run(gone["id"]).parent.exists():
                await asyncio.sleep(0.02)
        assert desk.run(kept["id"]).exists()
        peer = JSON | Passport(cluster, NodeId("b" * 32), SessionId("0000000000001-00000000")).headers
        asked = {"jobs": [gone["id"], kept["id"], new_id()]}
        assert (await desk.ask("POST", f"{JOBS_PATH}/ended", asked, peer))[1] == {
            "over": [gone["id"], kept["id"]],
            "forgotten": [gone["id"]],
        }


async def test_a_result_that_nobody_heard_of_is_no_reason_to_train_again(tmp_path: Path, cluster: str) -> None:
    async with opened(tmp_path, cluster) as desk:
        job = await desk.train(LONG)
        await desk.until_step(job["id"])
    run = desk.run(job["id"])
    (run / "result").mkdir()
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(COMPLETED) + "\n")
    async with opened(tmp_path, cluster) as desk:
        assert (await desk.until(job["id"], "completed"))["result"]["step"] == 9
    assert len(starts(run)) == 1


@pytest.fixture
def order(desk: Desk, cluster: str) -> Callable[..., Any]:
    """Give an order at the peers' door, as another node."""
    passport = Passport(cluster, NodeId("b" * 32), SessionId("0000000000001-00000000"))

    async def give(job: str, *, term: int = 2**60, **fields: Any) -> tuple[int, Any]:
        data = {"sha256": DIGEST, "name": "faq.jsonl"}
        spec = SPEC | {"dataset_path": "faq.jsonl"}
        body = {"ballot": {"term": term, "node_id": "b" * 32}, "job": job, "attempt": 1, "spec": spec, "data": data}
        return await desk.ask("POST", ATTEMPTS_PATH, body | fields, JSON | passport.headers)

    return give


async def test_orders_are_taken_once_and_refused_with_a_reason(desk: Desk, order: Callable[..., Any]) -> None:
    assert (await desk.ask("POST", ATTEMPTS_PATH, {}))[0] == 403, "no peer"
    async with asyncio.timeout(LIMIT_S):
        while (await desk.ask("GET", "/api/cluster"))[1]["ballot"]["term"] == 0:
            await asyncio.sleep(0.02)
    job = new_id()
    status, told = await order(job)
    assert (status, "nobody has it" in told["error"]["message"]) == (503, True)
    await desk.ask("PUT", f"/api/data/{DIGEST}", TEXT.encode(), STREAM)

    status, told = await order(job, term=0)
    assert (status, told["error"]["type"]) == (409, "stale_order")
    write_script(desk.run(job, 2), LONG)
    status, report = await order(job, attempt=2)
    assert (status, report.get("state", "running")) == (200, "running")
    assert (await order(job, attempt=2))[0] == 200
    status, told = await order(job, attempt=1)
    assert (status, told["error"]["type"]) == (409, "stale_order")
    status, told = await order(new_id())
    assert (status, told["error"]["type"]) == (409, "slot_taken")
    assert f"trains {job}" in told["error"]["message"]
    async with asyncio.timeout(LIMIT_S):
        while not starts(desk.run(job, 2)):
            await asyncio.sleep(0.02)
    assert len(starts(desk.run(job, 2))) == 1


async def test_orders_that_can_not_be_obeyed(
    desk: Desk, order: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.ask("PUT", f"/api/data/{DIGEST}", TEXT.encode(), STREAM)
    assert (await order(new_id(), attempt=0))[0] == 400
    assert (await order(new_id(), spec={"model_name": "/srv"}))[0] == 400
    monkeypatch.setattr(desk.daemon._training.groundwork, "memory", lambda: Machine(8 * GIB, 0))
    assert (await order(new_id()))[1]["error"]["type"] == "slot_taken"
    monkeypatch.setattr(desk.daemon._training.groundwork, "memory", lambda: Machine(GIB // 4, 0))
    status, told = await order(new_id())
    assert (status, told["error"]["type"]) == (409, "job_refused")
    assert "this machine has 0.2 GiB" in told["error"]["message"]
    monkeypatch.setattr(groundwork, "trainable_model", None)
    desk.daemon._nodes.drain_here(True)
    assert (await order(new_id()))[0] == 503


async def test_without_the_token_nothing_is_told(tmp_path: Path, cluster: str) -> None:
    async with opened(tmp_path, cluster, token="secret") as desk:
        for method, path in (
            ("POST", "/api/train"),
            ("GET", "/api/jobs"),
            ("GET", "/api/jobs/x"),
            ("GET", "/api/jobs/x/events"),
            ("POST", "/api/jobs/x/cancel"),
            ("PUT", f"/api/data/{DIGEST}"),
            ("GET", f"/api/data/{DIGEST}"),
            ("POST", ATTEMPTS_PATH),
        ):
            assert (await desk.ask(method, path))[0] == 401, path
