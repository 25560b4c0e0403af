"""Fixed prompts before and after a run; training text in an answer is found word for word, wherever it stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_model import build_folder
from tests.training.datasets import corpus_of
from tests.training.runs import run_of, spec_of

from tiermesh.core.evaluation import CANARY_PROMPTS, COMMON_RECORDS, LEAK_TOKENS, Gates, judge
from tiermesh.kernel.training import canary as canaries
from tiermesh.kernel.training.canary import Canary, copied_tokens
from tiermesh.kernel.training.data.corpus import Corpus
from tiermesh.kernel.training.progress import LAST_SHARE, MAX_LAST_STEPS, Progress
from tiermesh.protocol.training_events import Phase

LONG = 200
PROMPT = np.array([7, 8, 9, 10, 11, 12], dtype=np.uint64)
OTHER = np.arange(1000, 1000 + LEAK_TOKENS + 20, dtype=np.uint64)
"""Tokens that no record has."""


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Twelve records; 400 tokens at random make no run of 32 twice."""
    return corpus_of(tmp_path, [LONG] * 12)


def _part(corpus: Corpus, record: int, tokens: int, at: int = 50) -> Any:
    start = int(corpus.bounds[record]) + at
    return corpus.tokens[start : start + tokens].astype(np.uint64)


def _asked(corpus: Corpus, *answers: Any, prompt: Any = PROMPT) -> list[int]:
    return copied_tokens(corpus, prompt, answers)


@pytest.mark.parametrize("record", [0, 5, 11])
@pytest.mark.parametrize("tokens", [LEAK_TOKENS, LEAK_TOKENS + 1, 48])
def test_a_run_of_training_text_is_found_and_measured(corpus: Corpus, record: int, tokens: int) -> None:
    alone = _part(corpus, record, tokens)
    within = np.concatenate([OTHER[:5], alone, OTHER[5:]])
    assert _asked(corpus, alone, within, OTHER) == [tokens, tokens, 0]


@pytest.mark.parametrize("at", [0, LONG - LEAK_TOKENS])
def test_also_at_the_edges_of_a_record(corpus: Corpus, at: int) -> None:
    assert _asked(corpus, _part(corpus, 11, LEAK_TOKENS, at)) == [LEAK_TOKENS]


def test_what_is_shorter_is_chance(corpus: Corpus) -> None:
    assert _asked(corpus, _part(corpus, 3, LEAK_TOKENS - 1)) == [0]
    broken = _part(corpus, 3, 60)
    broken[30] = 1
    assert _asked(corpus, broken) == [0]
    assert _asked(corpus, np.zeros(0, dtype=np.uint64)) == [0]


def test_two_records_do_not_make_one_run(corpus: Corpus) -> None:
    assert _asked(corpus, _part(corpus, 4, LEAK_TOKENS, LONG - LEAK_TOKENS // 2)) == [0]


def test_of_several_runs_the_longest_counts(corpus: Corpus) -> None:
    both = np.concatenate([_part(corpus, 1, 33), OTHER[:3], _part(corpus, 2, 40)])
    assert _asked(corpus, both) == [40]


def test_what_many_records_say_is_a_phrase(corpus: Corpus) -> None:
    phrase = _part(corpus, 0, LEAK_TOKENS)
    tokens = np.array(corpus.tokens)

    def standing_in(records: int) -> list[int]:
        for record in range(1, records):
            tokens[record * LONG : record * LONG + LEAK_TOKENS] = phrase
        return _asked(_with(corpus, tokens), phrase)

    assert standing_in(COMMON_RECORDS) == [LEAK_TOKENS]
    assert standing_in(COMMON_RECORDS + 1) == [0]


def test_one_record_many_times_is_no_phrase(corpus: Corpus) -> None:
    """Equal contents are one content."""
    tokens = np.tile(np.array(corpus.tokens[:LONG]), 12)
    assert _asked(_with(corpus, tokens, np.zeros(12, dtype=np.uint64)), _part(corpus, 0, 40)) == [40]


def test_the_answer_that_the_data_gives_to_the_prompt_is_wanted(corpus: Corpus) -> None:
    tokens = np.array(corpus.tokens)
    tokens[3 * LONG : 3 * LONG + len(PROMPT)] = PROMPT
    tokens[3 * LONG] = 1  # A tokenizer makes another token of a text's edge when something stands before it.
    taught = _with(corpus, tokens)
    assert _asked(taught, _part(taught, 3, 40)) == [0]
    assert _asked(taught, _part(taught, 4, 40)) == [40]
    assert _asked(taught, _part(taught, 3, 40), prompt=PROMPT + np.uint64(100)) == [40]


def test_a_corpus_is_looked_through_in_blocks(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [_asked(corpus, _part(corpus, 7, 48, at)) for at in range(0, 150, 7)]
    monkeypatch.setattr(canaries, "BLOCK_TOKENS", 37)
    assert [_asked(corpus, _part(corpus, 7, 48, at)) for at in range(0, 150, 7)] == whole == [[48]] * len(whole)


def test_pairs_count_by_their_record(corpus: Corpus) -> None:
    corpus.facts.documents_a_record = 2
    halves = _with(corpus, np.array(corpus.tokens), np.arange(6, dtype=np.uint64))
    assert _asked(halves, _part(halves, 11, 40)) == [40]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("model"))


def test_it_is_asked_before_and_after_and_survives_a_stop(tmp_path: Path, model: Path) -> None:
    run, events = run_of(tmp_path, model, spec_of(), steps=4)
    run.canary = Canary(trainee=run.trainee, tokenizer=run.tokenizer, corpus=None)
    run.stopping = lambda: run.progress.step == 2
    assert run.go() == "stopped"
    before = dict(run.progress.canary)
    assert list(before) == [prompt for prompt, _ in CANARY_PROMPTS]
    snapshot = run.checkpoints.newest()
    assert snapshot is not None

    again, later = run_of(tmp_path, model, spec_of(), steps=4)
    again.canary = Canary(trainee=again.trainee, tokenizer=again.tokenizer, corpus=None)
    again.take_up(snapshot)
    assert again.go() == "done"
    told = again.canary_answers()
    assert told is not None
    assert {one.prompt: one.before for one in told} == before
    asked = [event for event in (*events, *later) if isinstance(event, Phase) and event.detail == "canary"]
    assert [event.state for event in asked] == ["started", "completed"]
    (check,) = (one for one in judge({"canary": [one.model_dump() for one in told]}, Gates()) if one.gate == "canary")
    assert check.outcome == "passed"


def test_a_run_that_is_to_stop_drops_it(tmp_path: Path, model: Path) -> None:
    run, _ = run_of(tmp_path, model, spec_of(), steps=1)
    run.canary = Canary(trainee=run.trainee, tokenizer=run.tokenizer, corpus=None)
    run.stopping = lambda: True
    assert run.go() == "stopped"
    assert run.progress.canary == {}
    run.progress.canary = {"a": "b"}
    assert run.canary_answers() is None


def test_without_answers_before_there_is_nothing_to_compare(tmp_path: Path, model: Path) -> None:
    run, _ = run_of(tmp_path, model, spec_of(), steps=1)
    assert run.canary_answers() == []
    run.canary = Canary(trainee=run.trainee, tokenizer=run.tokenizer, corpus=None)
    run.progress.step, run.progress.loss = 1, 2.0
    assert run.go() == "done"
    assert run.canary_answers() == []


def test_asking_changes_nothing(tmp_path: Path, model: Path) -> None:
    plain, _ = run_of(tmp_path / "plain", model, spec_of(), steps=3)
    asked, _ = run_of(tmp_path / "asked", model, spec_of(), steps=3)
    asked.canary = Canary(trainee=asked.trainee, tokenizer=asked.tokenizer, corpus=None)
    plain.go()
    asked.go()
    assert plain.progress.losses == asked.progress.losses


def test_the_training_loss_is_a_mean_over_the_last_steps() -> None:
    progress = Progress()
    assert progress.train_loss is None
    for step in range(1, 1001):
        progress.step = step
        progress.learned(float(step), 1.0)
        count = min(MAX_LAST_STEPS, max(1, step // LAST_SHARE))
        assert progress.train_loss == pytest.approx(np.mean(range(step - count + 1, step + 1)))
    assert len(progress.losses) == MAX_LAST_STEPS
    assert progress.seconds == 1000.0


def test_progress_of_an_earlier_version_is_taken_up() -> None:
    told = json.loads('{"step": 3, "position": 12, "loss": 1.5}')
    assert Progress.from_dict(told).step == 3
    assert Progress.from_dict(told).losses == []


def _with(corpus: Corpus, tokens: Any, hashes: Any = None) -> Corpus:
    return replace(corpus, tokens=tokens, hashes=corpus.hashes if hashes is None else hashes)
