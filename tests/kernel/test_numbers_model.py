"""The same claims for the real model, whose 49,152 tokens are often nearly as likely as one another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.generating import GREEDY, Engine, Request, cuts_of, engine, resumed
from tests.kernel.reference import reference

from tiermesh.adapters.model_source import resolve
from tiermesh.errors import UnknownModel
from tiermesh.kernel.inference.sequence import Sampling

pytestmark = [pytest.mark.model, pytest.mark.slow]
TOKENS = 16
SAMPLED = Sampling(temperature=0.8, seed=5, top_p=0.95)
QUESTIONS = [
    f"{verb} {thing}{'.' * (1 + 9 * (index % 3))}"
    for index, (verb, thing) in enumerate(
        (verb, thing)
        for verb in ("Write a story about", "Explain in one sentence", "List three facts about", "Translate to German:")
        for thing in ("a fox in the snow", "the moon", "how bread is made", "an old radio")
    )
]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return resolve("smollm2:135m").path
    except UnknownModel as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Iterator[Engine]:
    with engine(folder, "fp32", memory_bytes=512 << 20) as served:
        yield served


def asked(folder: Path, sampling: Sampling) -> list[Request]:
    tokenizer, _ = reference(folder)
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"] for turn in turns]
    return [{"prompt": prompt, "sampling": sampling, "max_tokens": TOKENS} for prompt in prompts]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.long
def test_16_of_16_alone_batched_and_resumed(fp32: Engine, folder: Path, sampling: Sampling) -> None:
    requests = asked(folder, sampling)
    whole = fp32.answer(requests)
    assert fp32.answer_alone(requests) == whole
    cuts = cuts_of(whole, shift=1)
    for answers in (fp32.answer(resumed(requests, whole, cuts)), fp32.answer_alone(resumed(requests, whole, cuts))):
        assert [answer.tokens for answer in answers] == [a.tokens[cut:] for a, cut in zip(whole, cuts, strict=True)]
        assert [answer.replayed + answer.text for answer in answers] == [answer.text for answer in whole]
        assert [answer.end for answer in answers] == [answer.end for answer in whole]
