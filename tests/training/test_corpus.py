"""Tokens are made once, kept whole, and found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_model
from tests.training.datasets import spec, tokenizer, write_jsonl

from tiermesh.errors import BadData, OutOfMemory
from tiermesh.kernel.training.data import coding, corpus, store
from tiermesh.kernel.training.data.coding import Job, job_of
from tiermesh.kernel.training.data.corpus import Corpus, open_corpus

RECORDS: list[dict[str, Any]] = [
    {"text": "the quick brown fox"},
    {"prompt": "a b c", "completion": " d e f"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the end"}]},
]
FOUND_WITHIN_S = 30


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", RECORDS)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def job(**fields: Any) -> Job:
    return job_of(spec(**fields), tokenizer())


def shown(found: Corpus) -> list[tuple[str, str]]:
    """Each document's text, and of it what is learnt."""
    decode = tokenizer().decode
    told = []
    for start, end in zip(found.bounds, found.bounds[1:], strict=False):
        tokens, learned = found.tokens[start:end], found.learned[start:end] == 1
        told.append((decode(tokens), decode(tokens[learned])))
    return told


def test_documents_are_the_records_with_what_is_learnt_marked(data: Path, cache: Path) -> None:
    found = open_corpus(data, job(), cache=cache)
    assert shown(found) == [
        ("the quick brown fox<|im_end|>", "the quick brown fox<|im_end|>"),
        ("a b c d e f<|im_end|>", " d e f<|im_end|>"),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nthe end<|im_end|>", "the end<|im_end|>"),
    ]
    assert found.lines.tolist() == [1, 2, 3]
    assert found.tokens.dtype == np.uint16
    assert isinstance(found.tokens, np.memmap)
    assert found.facts.shapes == {"text": 1, "completion": 1, "chat": 1}


def test_all_may_be_learnt(data: Path, cache: Path) -> None:
    found = open_corpus(data, job(data={"train_on": "all"}), cache=cache)
    assert found.learned.all()


def test_what_was_tokenised_is_not_tokenised_again(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_corpus(data, job(), cache=cache)
    monkeypatch.setattr(corpus, "code_all", None)
    again = open_corpus(data.rename(data.with_name("moved.jsonl")), job(), cache=cache)
    assert (first.cached, again.cached) == (False, True)
    assert again.digest == first.digest
    assert shown(again) == shown(first)


@pytest.mark.parametrize("change", ["content", "template", "train_on", "fields", "format", "tokenizer", "task"])
def test_another_content_tokenizer_or_option_is_another_corpus(change: str, data: Path, cache: Path) -> None:
    text_only = write_jsonl(data, [{"text": "x y", "prompt": "p", "chosen": "c", "rejected": "d"}])
    first = open_corpus(text_only, job(), cache=cache)
    other, form = job(), "auto"
    match change:
        case "content":
            write_jsonl(data, [{"text": "x z"}])
        case "template":
            other = job(data={"template": "{{ messages }}"})
        case "train_on":
            other = job(data={"train_on": "all"})
        case "fields":
            other = job(data={"fields": {"text": "text"}})
        case "format":
            form = "text"
        case "tokenizer":
            other.tokenizer.add_tokens(["x y"])
        case "task":
            other = job(task="preference")
    assert open_corpus(text_only, other, cache=cache, form=form).folder != first.folder


def test_a_task_that_reads_the_same_shares_the_corpus(data: Path, cache: Path) -> None:
    assert open_corpus(data, job(), cache=cache).folder == open_corpus(data, job(task="pretrain"), cache=cache).folder


def test_a_file_that_lost_bytes_is_made_again(data: Path, cache: Path) -> None:
    first = open_corpus(data, job(), cache=cache)
    expected = shown(first)
    os.truncate(first.folder / "tokens", 4)
    assert shown(open_corpus(data, job(), cache=cache)) == expected


def test_bad_records_are_skipped_counted_and_named_up_to_a_bound(data: Path, cache: Path) -> None:
    with data.open("a") as file:
        file.write('{"text": ""}\n\nnonsense\n{"text": "good"}\n')
    found = open_corpus(data, job(), cache=cache, max_bad_records=2)
    assert found.facts.bad[0] == (4, "text: is empty")
    assert found.facts.bad[1][0] == 6
    assert (found.facts.records, found.facts.bad_records, found.lines.tolist()) == (4, 2, [1, 2, 3, 7])
    expected = r"more than 1 records can't be used \(data.max_bad_records\): line 4 text: is empty; line 6 is not JSON"
    with pytest.raises(BadData, match=expected):
        open_corpus(data, job(), cache=cache, max_bad_records=1)


def test_too_many_bad_records_leave_nothing_behind(tmp_path: Path, cache: Path) -> None:
    data = write_jsonl(tmp_path / "bad.jsonl", [{"text": ""}] * 5)
    with pytest.raises(BadData, match=r"line 1 text: is empty.*; and 2 more"):
        open_corpus(data, job(), cache=cache, max_bad_records=4)
    with pytest.raises(BadData, match="has no record that can be used"):
        open_corpus(data, job(), cache=cache, max_bad_records=5)
    assert [path for path in cache.rglob("*") if path.is_file() and path.parent.name not in {"locks", "digests"}] == []


def test_a_record_with_nothing_to_predict_is_bad(tmp_path: Path, cache: Path) -> None:
    known = tokenizer()
    known.eos_token = None
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "x"}, {"text": "x y z"}])
    found = open_corpus(data, job_of(spec(), known), cache=cache, max_bad_records=1)
    assert found.facts.bad == [(1, "has nothing to predict: less than two tokens, or no answer")]


def test_a_file_changed_within_its_time_is_read_again(data: Path, cache: Path) -> None:
    """Where size and time are the same, the file's age at the hash decides whether they were trusted."""
    first = open_corpus(data, job(), cache=cache)
    stamp = data.stat()
    data.write_text(data.read_text().replace("fox", "dog"))
    os.utime(data, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert open_corpus(data, job(), cache=cache).digest != first.digest


def test_the_longest_unused_make_room_and_none_of_today(tmp_path: Path, cache: Path) -> None:
    now = 10**9
    folders = []
    for age_d in (5, 3, 9, 0.5):
        data = write_jsonl(tmp_path / "d.jsonl", [{"text": f"fox {age_d}"}])
        folders.append(open_corpus(data, job(), cache=cache).folder)
        os.utime(folders[-1] / "facts.json", (now, now - age_d * 86400))
    size = sum(file.stat().st_size for file in folders[0].iterdir())
    assert store.prune(cache, now, max_bytes=10 * size) == []
    assert store.prune(cache, now, max_bytes=2 * size + 50) == [folders[2], folders[0]]
    assert store.prune(cache, now, max_bytes=0) == [folders[1]]
    assert [folder.exists() for folder in folders] == [False, False, False, True]


class TestProcesses:
    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(coding, "FEW_RECORDS", 20)
        monkeypatch.setattr(coding, "BLOCK_RECORDS", 7)

    def test_the_corpus_is_the_same_however_many_make_it(self, tmp_path: Path) -> None:
        records: list[Any] = [{**RECORDS[at % 3], "n": at} for at in range(100)]
        records[40] = {"text": ""}
        data = write_jsonl(tmp_path / "many.jsonl", records)
        done: list[int] = []
        one, two = (
            open_corpus(
                data,
                job(),
                cache=tmp_path / str(count),
                max_bad_records=1,
                processes=count,
                on_progress=lambda read, total: done.append(read),
            )
            for count in (1, 2)
        )
        assert (one.digest, one.facts) == (two.digest, two.facts)
        assert two.lines.tolist() == [line for line in range(1, 101) if line != 41]
        assert done[-1] == data.stat().st_size

    def test_one_that_is_killed_is_told_as_lack_of_memory(self) -> None:
        with coding._Worker(job()) as worker:
            worker._process.kill()
            with pytest.raises(OutOfMemory, match="was killed"):
                worker.code([(1, {"text": "x"})])

    def test_one_whose_parent_is_gone_ends(self) -> None:
        with coding._Worker(job()) as worker:
            assert worker._process.stdin is not None
            worker._process.stdin.close()
            assert worker._process.wait(FOUND_WITHIN_S) == 0


def test_two_builders_at_once_make_it_once(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Semaphore(0)
    both = threading.Barrier(2, timeout=FOUND_WITHIN_S)
    really = coding.code_all

    def counted(*arguments: Any) -> Any:
        made.release()
        return really(*arguments)

    monkeypatch.setattr(corpus, "code_all", counted)
    found: list[str] = []

    def build() -> None:
        both.wait()
        found.append(open_corpus(data, job(), cache=cache).digest)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOUND_WITHIN_S)
    assert len(found) == 2
    assert len(set(found)) == 1
    assert made.acquire(blocking=False)
    assert not made.acquire(blocking=False)


def test_a_builder_killed_at_any_instant_leaves_nothing_in_the_way(data: Path, tmp_path: Path) -> None:
    """SIGKILL at each thing that a builder asks of the system, one builder each; the next one always finishes."""
    model = tmp_path / "model"
    tokenizer().save_pretrained(model)
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kill_builders", str(model), str(data), str(tmp_path / "caches")],
        cwd=Path(tiny_model.__file__).parents[1],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["killed"] > 25
    assert told["good"] == told["killed"]
