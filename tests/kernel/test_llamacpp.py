"""The worker for GGUF models: llama.cpp behind the same protocol as the kernel's own worker."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests import tiny_model
from tests.kernel.workers import WorkerProcess, question, stop_worker, text_of, wait_until_ready

from tiermesh.adapters.engines.kernel import KernelEngine
from tiermesh.adapters.engines.served_model import Wanted
from tiermesh.daemon.supervisor import Supervisor
from tiermesh.errors import InvalidInput, Unavailable
from tiermesh.kernel.llamacpp.backend import Backend
from tiermesh.kernel.llamacpp.front import Front
from tiermesh.kernel.llamacpp.translation import Abilities, translate

SLOTS = 2
QUEUE = 8
"""Four for each slot."""
CONTEXT = 512
needs_library = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
OTHER_TOOL = {"type": "function", "function": {"name": "listen", "parameters": {"type": "object", "properties": {}}}}


def start(model: Path, socket: Path) -> WorkerProcess:
    command = [
        *(sys.executable, "-m", "tiermesh.kernel.llamacpp", "--socket", str(socket), "--model", str(model)),
        *("--name", tiny_model.NAME, "--digest", "sha256:0", "--threads", "1"),
        *("--slots", str(SLOTS), "--context-length", str(CONTEXT)),
    ]
    log = socket.with_suffix(".log")
    with log.open("wb") as stderr:
        return WorkerProcess(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr), socket, log)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("g")
    tiny_model.write_gguf(folder / "tiny.gguf")
    worker = start(folder / "tiny.gguf", folder / "s.sock")
    try:
        wait_until_ready(worker)
        yield worker
    finally:
        stop_worker(worker)


@needs_library
class TestAnswers:
    async def test_a_stream_says_what_the_whole_answer_says(self, worker: WorkerProcess) -> None:
        events = await worker.stream(max_tokens=12, temperature=0, stream_options={"include_usage": True})
        whole = await worker.ask(max_tokens=12, temperature=0)
        texts = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
        assert "".join(texts) == text_of(whole).rstrip("\N{REPLACEMENT CHARACTER}")
        assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert whole["model"] == tiny_model.NAME

    async def test_a_seed_repeats_an_answer(self, worker: WorkerProcess) -> None:
        one, again, other = [
            text_of(await worker.ask(max_tokens=12, temperature=1, seed=seed)) for seed in (7, 7, 2**63 - 1)
        ]
        assert one == again != other

    async def test_it_works_on_as_many_as_it_has_slots(self, worker: WorkerProcess) -> None:
        answers = await asyncio.gather(*(worker.ask(f"{n}", max_tokens=30, temperature=0) for n in range(2 * SLOTS)))
        assert {answer["choices"][0]["finish_reason"] for answer in answers} <= {"stop", "length"}

    async def test_a_schema_is_kept(self, worker: WorkerProcess) -> None:
        properties = {"a": {"enum": [1, 2]}}
        schema = {"type": "object", "properties": properties, "required": ["a"], "additionalProperties": False}
        response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        for seed in range(5):
            answer = await worker.ask(response_format=response_format, max_tokens=200, seed=seed)
            assert json.loads(text_of(answer))["a"] in (1, 2)


@needs_library
class TestLife:
    async def test_health_says_what_the_daemon_must_know(self, worker: WorkerProcess) -> None:
        health = await worker.until(lambda health: health["active"] == 0)
        assert health == {
            "status": "ready",
            "model": tiny_model.NAME,
            "active": 0,
            "queued": 0,
            "slots": SLOTS,
            "progress": 1.0,
            "precision": None,
            "context_length": CONTEXT,
            "adapters": [],
        }

    @pytest.mark.alone
    async def test_a_client_that_leaves_frees_its_slot(self, worker: WorkerProcess) -> None:
        async with worker.session() as session:
            body = question("hello", stream=True, temperature=0, max_tokens=400)
            async with session.post("http://w/v1/chat/completions", json=body) as response:
                await response.content.readany()
                response.close()
        await worker.until(lambda health: health["active"] == 0, limit_s=1.0)

    async def test_beyond_the_queue_nobody_is_kept_waiting(self) -> None:
        front = Front(Backend(Path("unused.sock"), SLOTS, CONTEXT, None), name="m", digest="sha256:0")
        with ExitStack() as stack:
            for _ in range(SLOTS + QUEUE):
                stack.enter_context(front._admitted())
            with pytest.raises(Unavailable):
                stack.enter_context(front._admitted())
        with front._admitted():
            pass
        await front._session.close()

    def test_what_is_no_gguf_is_told_in_the_last_line(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"nonsense")
        worker = start(tmp_path / "m.gguf", tmp_path / "s.sock")
        try:
            assert worker.popen.wait(30) == 3
            last = worker.log.read_text().splitlines()[-1]
            assert last == f"{tiny_model.NAME} can't be served: {tmp_path / 'm.gguf'} is not a GGUF file"
        finally:
            stop_worker(worker)

    def test_it_ends_with_its_daemon(self, tmp_path: Path) -> None:
        tiny_model.write_gguf(tmp_path / "tiny.gguf")
        worker = start(tmp_path / "tiny.gguf", tmp_path / "s.sock")
        try:
            wait_until_ready(worker)
            assert worker.popen.stdin is not None
            worker.popen.stdin.close()
            assert worker.popen.wait(5) == 0
        finally:
            stop_worker(worker)


@needs_library
class TestHired:
    async def test_the_daemon_hires_it_for_a_gguf(self, tmp_path: Path) -> None:
        tiny_model.write_gguf(tmp_path / "tiny.gguf")
        supervisor = Supervisor(tmp_path)
        supervisor.start()
        wanted = Wanted(name=str(tmp_path / "tiny.gguf"), tier=1)
        engine = KernelEngine([wanted], hire=supervisor.worker, state_dir=tmp_path, on_change=lambda: None, threads=1)
        await engine.start()
        try:
            async with asyncio.timeout(30):
                while not engine.models:
                    await asyncio.sleep(0.01)
            body = {**question("hello", max_tokens=5, temperature=0), "model": "tiny"}
            async with engine.chat(body) as reply:
                answer = json.loads(b"".join([chunk async for chunk in reply.chunks]))
        finally:
            await engine.close()
            await supervisor.close()
        assert (reply.status, answer["model"]) == (200, "tiny")
        assert not engine.info.can_continue


@needs_library
class TestRefusals:
    @pytest.mark.parametrize(
        ("parameters", "param"),
        [
            ({"bogus": 1}, "bogus"),
            ({"n": 2}, "n"),
            ({"resume_token_ids": [1]}, "resume_token_ids"),
            ({"return_token_ids": True}, "return_token_ids"),
            ({"tools": [TOOL]}, "tools"),
        ],
    )
    async def test_what_it_can_not_do_is_refused_by_name(
        self, worker: WorkerProcess, parameters: dict[str, object], param: str
    ) -> None:
        status, answer = await worker.post(question("hello", **parameters))
        assert (status, answer["error"]["param"]) == (400, param)

    async def test_a_prompt_that_is_too_long(self, worker: WorkerProcess) -> None:
        status, answer = await worker.post(question("word " * CONTEXT))
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


class TestTranslation:
    ABLE = Abilities(context_length=CONTEXT, tools=True)

    def test_every_default_is_said(self) -> None:
        asked = translate(question("hello", seed=2**40 + 5), self.ABLE)
        messages = [{"role": "user", "content": "hello"}]
        assert asked == {
            "messages": messages,
            "stream": False,
            "max_tokens": -1,
            "stop": [],
            "temperature": 1.0,
            "seed": (2**40 + 5) % (2**32 - 1),
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": [],
            "repeat_last_n": CONTEXT,
        }

    def test_a_tool_asked_for_by_name_is_the_only_one(self) -> None:
        choice = {"type": "function", "function": {"name": "look"}}
        asked = translate(question("hello", tools=[TOOL, OTHER_TOOL], tool_choice=choice), self.ABLE)
        assert asked["tools"] == [TOOL]
        assert asked["tool_choice"] == "required"

    def test_tools_that_may_not_be_used_need_no_template(self) -> None:
        unable = Abilities(context_length=CONTEXT, tools=False)
        assert translate(question("hello", tools=[TOOL], tool_choice="none"), unable)["tool_choice"] == "none"
        with pytest.raises(InvalidInput):
            translate(question("hello", tools=[TOOL]), unable)
