"""Adapters that come and go while the model answers others: each answers as peft does, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests import tiny_model
from tests.kernel.generating import GREEDY, Answer, Engine, engine
from tests.kernel.workers import WorkerProcess, question, streamed_text, text_of

from tiermesh.kernel.inference.generation import Generator
from tiermesh.kernel.inference.lora import Fitted
from tiermesh.protocol.serving import ORIGIN_FILE

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks

KINDS: tuple[tiny_model.Kind, ...] = ("llama", "qwen2", "gpt2")
PROMPT = [5 + 7 * place % 390 for place in range(30)]
LIMIT_S = 60.0
LONG: dict[str, Any] = {"temperature": 0.0, "max_tokens": 3000, "logit_bias": {str(tiny_model.END): -100.0}}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> tiny_model.Kind:
    chosen: tiny_model.Kind = request.param
    return chosen


@pytest.fixture(scope="module")
def folder(kind: tiny_model.Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Iterator[Engine]:
    """With layers that were joined and packed, where there are such: adapters come after that. A name comes once."""
    with engine(folder, "fp32") as served:
        yield served


def fitted(generator: Generator, folder: Path) -> Fitted:
    return generator._model.fit(folder, "")


def come(served: Engine, name: str, folder: Path) -> None:
    served.generator.install(name, fitted(served.generator, folder)).result(LIMIT_S)


def by_peft(kind: tiny_model.Kind, folder: Path, tokens: int) -> list[int]:
    model = PeftModel.from_pretrained(tiny_model.build_model(kind), folder).eval()
    with torch.inference_mode():
        output = model.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=tokens, do_sample=False)
    said: list[int] = output[0, len(PROMPT) :].tolist()
    return said


def test_an_adapter_that_came_later_answers_as_peft_does(fp32: Engine, kind: tiny_model.Kind, tmp_path: Path) -> None:
    request = {"prompt": PROMPT, "max_tokens": 30}
    base = fp32.answer([request])[0]
    for name, seed in (("peft a", 1), ("peft b", 2)):
        adapter = tiny_model.build_adapter(tmp_path / name, kind, seed=seed)
        come(fp32, name, adapter)
        assert fp32.answer([request | {"adapter": name}])[0].tokens == by_peft(kind, adapter, 30)
    assert fp32.answer([request])[0] == base


def test_a_stream_that_runs_meanwhile_is_the_same_bit_for_bit(
    fp32: Engine, kind: tiny_model.Kind, tmp_path: Path
) -> None:
    """Probabilities too: nothing about its computation changes."""
    exact = {"prompt": PROMPT, "max_tokens": 300, "sampling": replace(GREEDY, logprobs=3)}
    _, undisturbed = fp32.answer_alone([exact] * 2)  # the second finds its prompt computed, as the next one will
    coming = fitted(fp32.generator, tiny_model.build_adapter(tmp_path, kind, seed=1))
    running = fp32.submit(exact)
    running.until(30)
    for name in ("beside a", "beside b", "beside c"):
        fp32.generator.install(name, coming).result(LIMIT_S)
    assert len(running.answer.choices) < 300
    fp32.generator.remove("beside b").result(LIMIT_S)
    assert len(running.answer.choices) < 300
    assert running.whole() == undisturbed


def test_answers_by_new_adapters_and_by_the_base_share_a_batch(
    fp32: Engine, kind: tiny_model.Kind, tmp_path: Path
) -> None:
    requests: list[dict[str, Any]] = [{"prompt": PROMPT[index:], "max_tokens": 40} for index in range(8)]
    of_base = fp32.answer_alone(requests)
    for name, seed in (("mixed a", 1), ("mixed b", 2)):
        come(fp32, name, tiny_model.build_adapter(tmp_path / name, kind, seed=seed))
    mixed = [request | {"adapter": (None, "mixed a", "mixed b")[index % 3]} for index, request in enumerate(requests)]
    answers = fp32.answer(mixed)
    assert answers == fp32.answer_alone(mixed)
    assert [index for index in range(8) if answers[index] == of_base[index]] == [0, 3, 6]


def test_an_adapter_in_use_is_forgotten_when_its_last_answer_is_whole(
    fp32: Engine, kind: tiny_model.Kind, tmp_path: Path
) -> None:
    come(fp32, "used", tiny_model.build_adapter(tmp_path, kind, seed=1))
    request = {"prompt": PROMPT, "max_tokens": 1000, "adapter": "used"}
    undisturbed: Answer = fp32.answer([request])[0]
    running = fp32.submit(request)
    running.until(10)
    gone = fp32.generator.remove("used")
    assert not gone.done()
    assert running.whole() == undisturbed
    gone.result(LIMIT_S)


# The worker's door


async def change(worker: WorkerProcess, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with worker.session() as session, session.request(method, f"http://w{path}", json=body) as response:
        return response.status, await response.json()


async def add(worker: WorkerProcess, name: str, folder: Path) -> tuple[int, Any]:
    return await change(worker, "POST", "/adapters", {"name": name, "path": str(folder)})


async def said_by(worker: WorkerProcess, name: str) -> str:
    status, answer = await worker.post(question("hello", temperature=0.0, max_tokens=20) | {"model": name})
    assert (status, answer["model"]) == (200, name)
    return text_of(answer)


async def test_adapters_come_to_a_worker_and_go_while_it_streams(worker: WorkerProcess, tmp_path: Path) -> None:
    one = tiny_model.build_adapter(tmp_path / "one", seed=1)
    two = tiny_model.build_adapter(tmp_path / "two", seed=2)
    undisturbed = streamed_text(await worker.stream(**LONG))
    stream = asyncio.create_task(worker.stream(**LONG))
    await worker.until(lambda health: health["active"] == 1)
    assert await add(worker, "mine:v1", one) == (200, {"name": "mine:v1"})
    first = await said_by(worker, "mine:v1")
    assert (await worker.health())["adapters"] == ["mine:v1"]
    assert (await change(worker, "DELETE", "/adapters/mine:v1"))[0] == 200
    status, answer = await worker.post(question("hello") | {"model": "mine:v1"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert (await add(worker, "mine:v1", two))[0] == 200  # other weights under a name that was there
    assert await said_by(worker, "mine:v1") != first
    assert (await change(worker, "DELETE", "/adapters/mine:v1"))[0] == 200
    assert (await worker.health())["active"] == 1
    assert streamed_text(await stream) == undisturbed


async def test_a_name_that_is_taken_is_refused(worker: WorkerProcess, tmp_path: Path) -> None:
    folder = tiny_model.build_adapter(tmp_path, seed=1)
    assert (await add(worker, "mine", folder))[0] == 200
    for name in ("mine", tiny_model.NAME, "auto"):
        status, answer = await add(worker, name, folder)
        assert (status, answer["error"]["code"]) == (409, "name_taken")
    assert (await change(worker, "DELETE", "/adapters/mine"))[0] == 200
    assert (await change(worker, "DELETE", "/adapters/mine"))[0] == 404


async def test_an_adapter_of_other_weights_is_refused_with_both_digests(worker: WorkerProcess, tmp_path: Path) -> None:
    """Of the same shape: nothing but the digest tells them apart."""
    folder = tiny_model.build_adapter(tmp_path, seed=1)
    (folder / ORIGIN_FILE).write_text(json.dumps({"base_model": "tiny:1m", "base_digest": "sha256:other"}))
    status, answer = await add(worker, "mine", folder)
    assert (status, answer["error"]["code"]) == (400, "invalid_adapter")
    assert (
        "trained on tiny:1m with the digest sha256:other, and the model here has sha256:0" in answer["error"]["message"]
    )
    (folder / ORIGIN_FILE).write_text(json.dumps({"base_model": "tiny:1m", "base_digest": "sha256:0"}))
    assert (await add(worker, "mine", folder))[0] == 200
    assert (await change(worker, "DELETE", "/adapters/mine"))[0] == 200


async def test_what_does_not_fit_is_refused_and_the_model_serves_on(worker: WorkerProcess, tmp_path: Path) -> None:
    stranger = tiny_model.build_adapter(tmp_path / "stranger", "gpt2")
    for folder, why in ((stranger, "for another model"), (tmp_path / "nothing", "there is no adapter_config.json")):
        status, answer = await add(worker, "mine", folder)
        assert (status, answer["error"]["code"]) == (400, "invalid_adapter")
        assert why in answer["error"]["message"]
    status, answer = await change(worker, "POST", "/adapters", {"name": 5})
    assert (status, answer["error"]["param"]) == (400, "name")
    assert (await worker.health())["adapters"] == []
    await worker.ask(max_tokens=1)
