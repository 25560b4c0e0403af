"""The real small model, when it is on this machine: it knows where Paris is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.kernel.reference import greedy
from tests.kernel.workers import WorkerProcess, start_worker, stop_worker, streamed_text, text_of, wait_until_ready

from tiermesh.adapters.model_source import LocalModel, resolve
from tiermesh.errors import UnknownModel
from tiermesh.kernel.inference.loading import load
from tiermesh.kernel.inference.precision import Precision

pytestmark = pytest.mark.model
MODEL = "smollm2:135m"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def local() -> LocalModel:
    try:
        return resolve(MODEL)
    except UnknownModel as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def real(local: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = start_worker(local.path, tmp_path_factory.mktemp("w") / "s")
    try:
        wait_until_ready(worker)
        yield worker
    finally:
        stop_worker(worker)


def test_it_is_what_the_catalogue_says(local: LocalModel) -> None:
    assert (local.parameters, local.context_length, local.tier) == (134_515_008, 8192, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_layers_take_the_short_way(local: LocalModel, precision: Precision) -> None:
    assert load(local.path, threads=1, precision=precision, memory_bytes=256 << 20).decoder is not None


async def test_it_knows_the_capital_of_france(real: WorkerProcess) -> None:
    answer = await real.ask(QUESTION, temperature=0.0)
    assert "Paris" in text_of(answer)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert streamed_text(await real.stream(QUESTION, temperature=0.0)) == text_of(answer)


@pytest.mark.parametrize("text", ["Write a haiku about 2 foxes.", "Erkläre kurz, warum der Himmel blau ist. 🙂"])
async def test_greedy_says_what_generate_says(real: WorkerProcess, local: LocalModel, text: str) -> None:
    prompt, expected = greedy(local.path, [{"role": "user", "content": text}], 24)
    answer = await real.ask(text, temperature=0.0, max_tokens=24)
    assert text_of(answer) == expected
    assert answer["usage"]["prompt_tokens"] == len(prompt)


async def test_a_stop_string_and_a_seed(real: WorkerProcess) -> None:
    whole = text_of(await real.ask(QUESTION, temperature=0.0))
    assert text_of(await real.ask(QUESTION, temperature=0.0, stop="Paris")) == whole.split("Paris")[0]
    sampled = [text_of(await real.ask("Tell me a story.", seed=3, max_tokens=24)) for _ in range(2)]
    assert sampled[0] == sampled[1]
