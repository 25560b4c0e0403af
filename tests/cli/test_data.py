"""`mesh data inspect`: what a file would teach. Tokens are counted in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests import tiny_model
from tests.cli.conftest import Mesh

from tiermesh.adapters.run_plan import look_at_data
from tiermesh.protocol.training_problems import read_spec

RECORDS = (
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the fox"}]}\n'
    '{"prompt": "a b", "completion": " dog"}\n'
    "nonsense\n"
    '{"text": ""}\n'
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIERMESH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(RECORDS)
    return path


def test_a_person_sees_counts_lengths_packing_bad_lines_and_what_is_learnt(
    alone: Mesh, data: Path, model: Path
) -> None:
    shown = alone("data", "inspect", str(data), "--model", str(model), "--seq-len", "64").stdout
    lines = shown.splitlines()
    assert lines[0] == f"file      {data}: jsonl, fields messages, prompt, completion"
    assert lines[1] == "records   2 good (1 chat, 1 completion), 2 bad"
    assert lines[2].startswith("tokens    ")
    assert lines[3].startswith("lengths   p50 ")
    assert lines[4].startswith("packing   1 rows of 64, ")
    assert lines[5:8] == [
        "bad       2, first",
        "  line 3 is not JSON: JSON is malformed: invalid character (byte 4)",
        "  line 4 text: is empty",
    ]
    assert shown.rstrip().endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦the fox<|im_end|>⟧")


def test_a_program_gets_json(alone: Mesh, data: Path, model: Path, cache: Path) -> None:
    told = json.loads(alone("data", "inspect", str(data), "--model", str(model), "--json").stdout)
    assert (told["format"], told["records"], told["bad_records"]) == ("jsonl", 2, 2)
    assert [one["line"] for one in told["bad"]] == [3, 4]
    assert told["lengths"].keys() == {"p50", "p95", "max", "mean"}
    assert [part["learned"] for part in told["sample"][0]] == [False, True]
    assert list((cache / "tokens").glob("*/facts.json"))


def test_pairs_are_told_as_such_and_shown_both(alone: Mesh, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a b", "chosen": " fox", "rejected": " dog"}\n' * 3)
    told = json.loads(alone("data", "inspect", str(path), "--model", str(model), "--json").stdout)
    assert (told["task"], told["shapes"]) == ("preference", {"pair": 3})
    assert [document[-1]["text"] for document in told["sample"]] == [" fox<|im_end|>", " dog<|im_end|>"]


OPENAIS = {
    "input": {"messages": [{"role": "user", "content": "a b"}]},
    "preferred_output": [{"role": "assistant", "content": "fox"}],
    "non_preferred_output": [{"role": "assistant", "content": "dog"}],
}


def test_pairs_in_openais_form_are_told_as_such_too(alone: Mesh, tmp_path: Path, model: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(OPENAIS)}\n" * 3)
    for of in (("--model", str(model)), ()):
        told = json.loads(alone("data", "inspect", str(path), *of, "--json").stdout)
        assert (told["task"], told["shapes"], told["bad_records"]) == ("preference", {"pair": 3}, 0)


@pytest.mark.parametrize("pair", [OPENAIS, {"prompt": "a b", "chosen": "fox", "rejected": "dog"}])
def test_pairs_for_a_task_that_needs_none_are_refused_before_anything_runs(
    tmp_path: Path, pair: Mapping[str, object]
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(pair)}\n" * 3)
    spec = read_spec({"model_name": "tiny", "dataset_path": str(path)})
    problem, *lines = look_at_data(spec).problems
    assert (problem.path, len(lines)) == ("dataset_path", 3)
    assert "is a pair of answers, one of them preferred" in str(lines[0])
    look = look_at_data(spec.model_copy(update={"task": "preference"}))
    assert (look.problems, look.left_out) == ((), ())


def test_without_a_model_tokens_are_unknown_and_not_guessed(alone: Mesh, data: Path) -> None:
    shown = alone("data", "inspect", str(data)).stdout
    assert "records   2 good (1 chat, 1 completion), 2 bad" in shown
    assert "tokens    unknown: no model is here" in shown
    assert "line 4 text: is empty" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.jsonl",), "mesh: nowhere.jsonl: there is no such file\n"),
        (("data.jsonl", "--model", "nobody"), "mesh: no model nobody: neither a folder,"),
        (("empty.jsonl",), "mesh: empty.jsonl is empty\n"),
        (("bad.jsonl", "--model", "MODEL"), "mesh: bad.jsonl has no record that can be used: line 1 is not JSON"),
    ],
)
def test_what_can_not_be_looked_at_is_one_line(
    alone: Mesh, data: Path, model: Path, arguments: tuple[str, ...], said: str
) -> None:
    data.with_name("empty.jsonl").touch()
    data.with_name("bad.jsonl").write_text("{\n")
    done = alone("data", "inspect", *(str(model) if one == "MODEL" else one for one in arguments))
    assert done.exit_code == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
