"""Bad specs, bad data: one clear error each, no traceback, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Mesh
from tests.tiny_model import CONTEXT_LENGTH, build_folder
from tests.training_runs import write_data, write_model_stub, write_spec

GOOD = {"model_name": "model", "dataset_path": "data.jsonl"}

FIELDS: list[tuple[dict[str, Any], str]] = [
    # what is not there, or not a field
    ({"model_name": None}, "model_name is empty, but must be a text"),
    ({"model": "m"}, "model is no field; did you mean model_name?"),
    ({"epochs": 3}, "epochs is no field; did you mean num_epochs?"),
    ({"batch": 4}, "batch is no field; there are version, task, method"),
    ({"lora": {"rank": 8}}, "lora.rank is no field; there are r, alpha, dropout, targets"),
    ({"data": {"fields": {"question": "q"}}}, "data.fields.question is no field; there are text, prompt"),
    ({"optimizer": {"nam": "sgd", "name": "sgd"}}, "optimizer.nam is no field; did you mean optimizer.name?"),
    ({"optimizer": {"options": {}}}, "optimizer.name is missing"),
    ({"version": 2}, "version is 2, but this program reads version 1"),
    # of the wrong kind
    ({"num_epochs": "three"}, "num_epochs is 'three', but must be a whole number"),
    ({"num_epochs": "3"}, "num_epochs is '3', but must be a whole number"),
    ({"num_epochs": 2.5}, "num_epochs is 2.5, but must be a whole number"),
    ({"num_epochs": True}, "num_epochs is true, but must be a whole number"),
    ({"num_epochs": [3]}, "num_epochs is a list, but must be a whole number"),
    ({"seq_len": None}, "seq_len is empty, but must be a whole number"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast', but must be a number"),
    ({"learning_rate": {}}, "learning_rate is a group of values, but must be a number"),
    ({"packing": "yes please"}, "packing is 'yes please', but must be true or false"),
    ({"packing": 1}, "packing is 1, but must be true or false"),
    ({"model_name": 7}, "model_name is 7, but must be a text"),
    ({"model_name": ""}, "model_name is '', but must be a text that is not empty"),
    ({"dataset_path": ["a", "b"]}, "dataset_path is a list, but must be a text"),
    ({"lora": 16}, "lora is 16, but must be a group of `name: value`"),
    ({"lora": None}, "lora is empty, but must be a group of `name: value`"),
    ({"optimizer": 3}, "optimizer is 3, but must be a group of `name: value`"),
    ({"callbacks": "log"}, "callbacks is 'log', but must be a list"),
    ({"callbacks": [7]}, "callbacks[0] is 7, but must be a group of `name: value`"),
    ({"samples": "hello"}, "samples is 'hello', but must be a list"),
    ({"samples": ["a", ""]}, "samples[1] is '', but must be a text that is not empty"),
    ({"early_stop": True}, "early_stop is true, but must be a group of `name: value`"),
    ({"lora": {"targets": "q_proj"}}, "lora.targets is 'q_proj', but must be all-linear, or a list"),
    ({"lora": {"targets": []}}, "lora.targets is a list, but must be all-linear, or a list that is not empty"),
    ({"lora": {"targets": [1]}}, "lora.targets[0] is 1, but must be a text"),
    ({"checkpointing": "on"}, "checkpointing is 'on', but must be auto, or true or false"),
    # none of the words
    ({"task": "train"}, "task is 'train', but must be finetune, pretrain or preference"),
    ({"method": "dora"}, "method is 'dora', but must be full_finetune, lora or qlora"),
    ({"method": "LoRA"}, "method is 'LoRA', but must be full_finetune, lora or qlora"),
    ({"precision": "fp16"}, "precision is 'fp16', but must be auto, fp32 or bf16"),
    ({"attention": "xformers"}, "attention is 'xformers', but must be auto, sdpa or flash"),
    ({"data": {"train_on": "user"}}, "data.train_on is 'user', but must be assistant or all"),
    # beyond the bounds
    ({"num_epochs": 0}, "num_epochs is 0, but must be at least 1"),
    ({"max_steps": -5}, "max_steps is -5, but must be at least 1"),
    ({"micro_batch_size": 0}, "micro_batch_size is 0, but must be at least 1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, but must be at least 1"),
    ({"seq_len": 4}, "seq_len is 4, but must be at least 8"),
    ({"seq_len": 10**9}, "seq_len is 1000000000, but must be at most 1048576"),
    ({"learning_rate": 0}, "learning_rate is 0, but must be above 0"),
    ({"learning_rate": -1e-4}, "learning_rate is -0.0001, but must be above 0"),
    ({"learning_rate": 50}, "learning_rate is 50, but must be at most 10"),
    ({"weight_decay": 1.5}, "weight_decay is 1.5, but must be at most 1"),
    ({"warmup": -0.1}, "warmup is -0.1, but must be at least 0"),
    ({"max_grad_norm": 0}, "max_grad_norm is 0, but must be above 0"),
    ({"seed": -1}, "seed is -1, but must be at least 0"),
    ({"eval_fraction": 0.9}, "eval_fraction is 0.9, but must be at most 0.5"),
    ({"lora": {"r": 0}}, "lora.r is 0, but must be at least 1"),
    ({"lora": {"dropout": 1.0}}, "lora.dropout is 1.0, but must be below 1"),
    ({"dpo": {"beta": 0}}, "dpo.beta is 0, but must be above 0"),
    ({"guard": {"spike_z": 0.5}}, "guard.spike_z is 0.5, but must be above 1"),
    ({"data": {"max_bad_records": -1}}, "data.max_bad_records is -1, but must be at least 0"),
    ({"keep_last": 0}, "keep_last is 0, but must be at least 1"),
    ({"save_interval": 0}, "save_interval is 0, but must be at least 1"),
    ({"samples": ["hi"] * 17}, "samples is a list, but must be no longer than 16 entries"),
    ({"memory_limit": "8"}, "memory_limit is '8', but must be at least 256 MiB"),
    ({"memory_limit": "much"}, "memory_limit is 'much', but must be a size like 8 GB"),
    ({"memory_limit": -1}, "memory_limit is -1, but must be a size like 8 GB"),
    # right each for itself
    ({"eval_path": "data.jsonl", "eval_fraction": 0.1}, "eval_fraction is given besides eval_path"),
    ({"early_stop": {}}, "early_stop needs eval_interval"),
    ({"early_stop": {}, "eval_interval": 5, "eval_fraction": 0}, "early_stop needs held-out records"),
    ({"warmup": 100, "max_steps": 10}, "warmup is 100 steps, but the run has 10 (max_steps)"),
    ({"merge": True, "method": "full_finetune"}, "merge needs an adapter"),
    ({"task": "preference", "loss": "mine"}, "loss is DPO's own for the task preference"),
    ({"task": "preference", "data": {"token_masking": 0.1}}, "data.token_masking is not done for the task preference"),
    ({"task": "pretrain", "data": {"fields": {"prompt": "q"}}}, "data.fields names prompts or messages"),
    ({"callbacks": ["log", "log"]}, "callbacks has log 2 times"),
    # what this machine lacks
    ({"model_name": "nobody-has-this"}, "model_name is 'nobody-has-this': no model nobody-has-this"),
    ({"model_name": "empty"}, "empty is a folder without config.json, so it is no model"),
    ({"dataset_path": "no.jsonl"}, "no.jsonl, which can't be read: no such file or directory"),
    ({"dataset_path": "empty"}, "empty, which is a folder; name the file in it"),
    ({"dataset_path": "empty.jsonl"}, "empty.jsonl, which is empty"),
    ({"eval_path": "no.jsonl"}, "eval_path is"),
    ({"optimizer": "lion"}, "optimizer is 'lion', but no package on this machine has an optimizer of that name"),
    ({"scheduler": {"name": "wsd"}}, "scheduler is 'wsd', but no package on this machine has a scheduler of that name"),
    ({"loss": "focal"}, "loss is 'focal', but no package on this machine has a loss of that name"),
    ({"callbacks": ["log", "mail"]}, "callbacks[1] is 'mail', but no package on this machine has a callback"),
    ({"data": {"format": "xlsx"}}, "data.format is 'xlsx', but no package on this machine has a reader of that name"),
]

FILES: list[tuple[str, str]] = [
    ("", "is empty; a training spec has lines like"),
    ("# nothing but words about it\n", "is empty; a training spec has lines like"),
    ("smollm2:135m", "is plain text; a training spec has lines like"),
    ("- model_name: m\n", "is a list; a training spec has lines like"),
    ("model_name: m\nmodel_name: n\n", "line 2, column 1: model_name is given twice"),
    ("model_name: [m\n", "line 2, column 1:"),
    ("model_name: m\n\tmethod: lora\n", "line 2, column 1:"),
    ('{"model_name": "m"', "line 1, column 19:"),
    ("model_name: !!python/object/apply:os.system [ls]\n", "line 1, column 13:"),
    ("[" * 5000, "nested too deeply or is not YAML"),
    ("model_name: *nobody\n", "line 1, column 13: found undefined alias"),
    ("model_name: m\x07\n", "YAML"),
]

ARGUMENTS: list[tuple[tuple[str, ...], str]] = [
    (("nothing.yaml",), "can't read the training spec nothing.yaml: No such file or directory"),
    (("empty",), "empty is a folder; a training spec is a YAML or JSON file"),
    (("huge.yaml",), "huge.yaml is larger than 1 MiB: is it a training spec, or the data?"),
    (("latin.yaml",), "latin.yaml: it is not UTF-8 text"),
    (("spec.json", "--set", "lora"), "--set 'lora' should be like --set learning_rate=1e-4"),
    (("spec.json", "--set", "=3"), "--set '=3' should be like"),
    (("spec.json", "--set", "seed=[1"), "--set seed: line 1"),
    (("spec.json", "--set", "seed.x=1", "--set", "seed=3", "--set", "seed.y=1"), "seed was set to a value"),
    (("spec.json", "--set", "lora.r=big"), "lora.r is 'big', but must be a whole number"),
    ((), "model_name is missing: which model is to be trained?; dataset_path is missing"),
]

GOOD_LINE = b'{"prompt": "a", "completion": "b c"}\n'
DATA: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("bad.jsonl", GOOD_LINE + b"no json\n" * 3, {"max_bad_records": 2}, "is 2, but 3 records of"),
    ("bad.jsonl", GOOD_LINE + b"no json\n", {"max_bad_records": 0}, "is 0, but 1 record of"),
    ("bad.jsonl", GOOD_LINE + b"no json\n" * 3, {"max_bad_records": 2}, "; line 2 is not JSON"),
    ("bad.jsonl", b"no json\n" * 3, {}, "has no record that can be used; line 1 is not JSON"),
    ("cut.jsonl", GOOD_LINE + GOOD_LINE[:20], {"max_bad_records": 0}, "line 2 is not JSON"),
    ("bad.jsonl", GOOD_LINE + b'{"other": 1}\n', {"max_bad_records": 0}, "line 2 has no text"),
    (
        "bad.jsonl",
        GOOD_LINE + b'{"prompt": 3, "completion": []}\n',
        {"max_bad_records": 0},
        "line 2 prompt: is a number",
    ),
    ("bad.jsonl", GOOD_LINE + b'{"text": null}\n', {"max_bad_records": 0}, "line 2 has no text"),
    ("bad.jsonl", GOOD_LINE + b"[1]\n", {"max_bad_records": 0}, "line 2 is a list, not an object"),
    ("bad.json", b'{"prompt": "a"}', {}, "item 1 has no text, prompt and completion"),
    ("bad.jsonl", GOOD_LINE + b'{"text": "\xff\xfe"}\n', {"max_bad_records": 0}, "line 2 is not JSON"),
    ("latin.txt", "größe\n".encode("latin-1") * 3, {"format": "text"}, "is not valid UTF-8"),
    ("empty.jsonl", b"", {}, "empty.jsonl, which is empty"),
    ("blank.jsonl", b"\n\n", {}, "blank.jsonl"),
    ("folder", b"", {}, "folder, which is a folder; name the file in it"),
    ("noise.bin", bytes(range(256)) * 9, {}, "noise.bin"),
    ("a.csv", b"question,answer\na,b\n", {"fields": {"prompt": "q"}}, "line 2 has no q"),
    ("a.csv", b"prompt,completion\na,b\na\n", {"max_bad_records": 0}, "line 3 has 1 columns, and line 1 names 2"),
    ("a.csv", b"prompt,prompt\na,b\n", {}, "line 1 names a column twice"),
    ("a.parquet", b"PAR1" + b"x" * 99 + b"PAR1", {}, "is not Parquet"),
    ("a.parquet", b"PAR1", {}, "is not Parquet"),
    (
        "chat.jsonl",
        GOOD_LINE + b'{"messages": [{"role": "user", "content": "hi"}]}\n',
        {"max_bad_records": 0},
        "line 2 has no turn of the assistant",
    ),
    ("bad.jsonl", GOOD_LINE + b"x\n" * 99, {"max_bad_records": 9}, "and 18 more: `mesh train validate` lists them"),
]


@pytest.fixture
def desk(home: Path) -> Path:
    """A working folder with a model, data, and all that can be mistaken for them."""
    write_model_stub(home / "model")
    write_data(home / "data.jsonl")
    write_spec(home / "spec.json", **GOOD)
    (home / "empty").mkdir()
    (home / "empty.jsonl").touch()
    (home / "huge.yaml").write_text("x" * (1024 * 1024 + 1))
    (home / "latin.yaml").write_bytes("größe: 3".encode("latin-1"))
    return home


@pytest.mark.parametrize(("fields", "told"), FIELDS, ids=[json.dumps(row[0]) for row in FIELDS])
def test_a_wrong_field(alone: Mesh, desk: Path, fields: dict[str, Any], told: str) -> None:
    write_spec(desk / "wrong.json", **GOOD | fields)
    _refused(alone, desk, ("wrong.json",), told)


@pytest.mark.parametrize(("name", "content", "options", "told"), DATA)
def test_bad_data(alone: Mesh, desk: Path, name: str, content: bytes, options: dict[str, Any], told: str) -> None:
    (desk / name).mkdir() if name == "folder" else (desk / name).write_bytes(content)
    write_spec(desk / "wrong.json", **GOOD | {"dataset_path": name, "data": options})
    _refused(alone, desk, ("wrong.json",), told)


def test_bad_data_in_the_held_out_file(alone: Mesh, desk: Path) -> None:
    (desk / "held_out.jsonl").write_bytes(b"no json\n")
    write_spec(desk / "wrong.json", **GOOD | {"eval_path": "held_out.jsonl"})
    _refused(alone, desk, ("wrong.json",), "; eval_path line 1 is not JSON")


@pytest.mark.parametrize(("text", "told"), FILES)
def test_a_file_that_is_no_spec(alone: Mesh, desk: Path, text: str, told: str) -> None:
    (desk / "wrong.yaml").write_text(text)
    _refused(alone, desk, ("wrong.yaml",), told)


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(alone: Mesh, desk: Path, arguments: tuple[str, ...], told: str) -> None:
    _refused(alone, desk, arguments, told)


def test_a_missing_field_is_asked_for(alone: Mesh, desk: Path) -> None:
    write_spec(desk / "wrong.json", dataset_path="data.jsonl")
    _refused(alone, desk, ("wrong.json",), "model_name is missing: which model is to be trained?")


def test_all_problems_are_told_at_once(alone: Mesh, desk: Path) -> None:
    write_spec(desk / "wrong.json", model_name="nobody", dataset_path="no.jsonl", seq_len=1, lora={"r": 0, "s": 1})
    told = alone("train", "validate", "wrong.json").stdout.splitlines()
    assert [line.split()[0] for line in told] == ["seq_len", "lora.r", "lora.s", "model_name", "dataset_path"]
    report = json.loads(alone("train", "validate", "wrong.json", "--json").stdout)
    assert report["valid"] is False
    assert [problem["path"] for problem in report["problems"]] == [line.split()[0] for line in told]


def test_one_validation_tells_of_fields_machine_model_and_data(alone: Mesh, desk: Path) -> None:
    """What is wrong with one of them hides nothing of the others."""
    build_folder(desk / "tiny")
    long = json.dumps({"text": "the quick brown fox " * 5000})
    (desk / "data.jsonl").write_text("\n".join([long, "no json", '{"other": 1}', *["[]"] * 43]))
    (desk / "held_out.jsonl").write_text('{"prompt": "what?"}\n' + long)
    wrong = {
        "model_name": "tiny",
        "dataset_path": "data.jsonl",
        "eval_path": "held_out.jsonl",
        "eval_fraction": 0.1,
        "seq_len": 100_000,
        "lora": {"r": 0, "targets": ["q_proj", "nothing"]},
        "attention": "flash",
        "optimizer": "lion",
        "epochs": 3,
        "data": {"max_bad_records": 2},
    }
    write_spec(desk / "wrong.json", **wrong)
    before = sorted(desk.rglob("*"))
    done = alone("train", "validate", "wrong.json")
    assert (done.exit_code, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:8]] == [
        "lora.r",
        "epochs",
        "eval_fraction",
        "optimizer",
        "attention",
        "lora.targets",
        "data.max_bad_records",
        "line",
    ]
    assert "has nothing, but tiny has as linear layers: down_proj, gate_proj, k_proj" in lines[5]
    assert lines[6] == f"data.max_bad_records is 2, but 45 records of {desk / 'data.jsonl'} are bad"
    assert lines[7].startswith("line 2 is not JSON")
    assert lines[8].startswith("line 3 has no text")
    assert lines[27] == "and 25 more records are bad"
    assert lines[28].startswith("seq_len is 100,000, and the data has ")
    assert lines[28].endswith(f"but tiny was made for {CONTEXT_LENGTH:,}; set it to {CONTEXT_LENGTH}")
    assert lines[29].startswith("left out: eval_path line 1 has no text, prompt and completion")
    assert len(lines) == 30
    assert sorted(desk.rglob("*")) == before
    report = json.loads(alone("train", "validate", "wrong.json", "--json").stdout)
    assert [len(report[part]) for part in ("problems", "left_out", "unseen")] == [29, 1, 0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        # without the model, or with a file that is missing, the other files are looked at
        ({"model_name": "nobody"}, ["model_name", "line 2"]),
        ({"eval_path": "no.jsonl"}, ["eval_path", "line 2"]),
        ({"dataset_path": "no.jsonl", "eval_path": "bad.jsonl"}, ["dataset_path", "eval_path line 2"]),
        ({"dataset_path": 7, "eval_path": "bad.jsonl"}, ["dataset_path", "eval_path line 2"]),
        # without the task, for the one that the records fit
        ({"task": "train"}, ["task", "line 2"]),
        # but not without knowing how they are to be read
        ({"data": {"fields": {"question": "q"}}}, ["data.fields.question", "data: without data.fields.question"]),
        ({"data": {"formt": "csv"}}, ["data.formt", "data: without data.formt it is not known how to read it"]),
        ({"data": {"max_bad_records": -1}}, ["data.max_bad_records", "line 2"]),
    ],
    ids=str,
)
def test_what_is_there_is_looked_at(alone: Mesh, desk: Path, fields: dict[str, Any], told: list[str]) -> None:
    (desk / "model" / "tokenizer.json").touch()
    (desk / "bad.jsonl").write_bytes(GOOD_LINE + b"no json\n")
    write_spec(desk / "wrong.json", **{"model_name": "nobody", "dataset_path": "bad.jsonl"} | fields)
    shown = alone("train", "validate", "wrong.json").stdout.splitlines()
    said = [line for line in shown if not line.startswith("model_name") or told[0] == "model_name"]
    assert len(said) == len(told), shown
    for line, beginning in zip(said, told, strict=True):
        assert line.removeprefix("left out: ").removeprefix("not looked at: the ").startswith(beginning)


def test_an_adapter_is_no_model_yet(alone: Mesh, desk: Path) -> None:
    (desk / "adapter").mkdir()
    (desk / "adapter" / "adapter_config.json").write_text("{}")
    write_spec(desk / "wrong.json", **GOOD | {"model_name": "adapter"})
    _refused(
        alone, desk, ("wrong.json",), "holds an adapter, not a model: put it into its base first, with `mesh model"
    )


def test_a_folder_of_something_else_is_left_alone(alone: Mesh, desk: Path) -> None:
    (desk / "photos").mkdir()
    (desk / "photos" / "cat.png").touch()
    _refused(alone, desk, ("spec.json", "--out", "photos"), "photos exists and holds no run; take another --out")


def test_a_broken_plan_is_left_alone(alone: Mesh, desk: Path) -> None:
    (desk / "old").mkdir()
    (desk / "old" / "spec.json").write_text("{")
    _refused(alone, desk, ("spec.json", "--out", "old"), "can't be read as a run's plan")


def test_no_run_to_evaluate(alone: Mesh, desk: Path) -> None:
    for name in ("empty", "nothing"):
        done = alone("train", "eval", name)
        assert (done.exit_code, done.stderr) == (2, f"mesh: {name} holds no run\n")


def _refused(mesh: Mesh, folder: Path, arguments: tuple[str, ...], told: str) -> None:
    """By `run`, in one line, with the exit code of a wrong call, and without a trace on the disk."""
    before = sorted(folder.rglob("*"))
    done = mesh("train", "run", *arguments, "--local")
    assert told in done.stderr, done.stderr
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
    assert done.stderr.startswith("mesh: ")
    assert sorted(folder.rglob("*")) == before
