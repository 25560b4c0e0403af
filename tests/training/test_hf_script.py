"""A spec as a script: it runs without this project and learns; names in it are never code; differences are told."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.training_runs import write_data, write_spec
from typer.testing import CliRunner

from tiermesh.cli.main import app
from tiermesh.errors import InvalidSpec
from tiermesh.protocol.hf_script import differences, hf_script
from tiermesh.protocol.training import TrainingSpec

ALONE = (
    "import runpy, sys; sys.modules['tiermesh'] = None; sys.argv = sys.argv[1:];"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs a script where this project can't be imported."""
HOSTILE = '"""\'\'\'\\"\nimport os\nos.system("touch pwned")\r#{}%\u202e\u2028é'


def spec_of(**fields: Any) -> TrainingSpec:
    return TrainingSpec.model_validate({"model_name": "m", "dataset_path": "d.jsonl", **fields})


def literal(script: str) -> Any:
    """The script's `SPEC`, read without running it."""
    tree = ast.parse(script)
    (found,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "SPEC"
    )
    return ast.literal_eval(found)


def test_the_spec_is_a_literal() -> None:
    spec = spec_of(lora={"r": 4}, samples=["one", "two"], eval_fraction=0.25, optimizer={"name": "sgd"})
    assert TrainingSpec.model_validate(literal(hf_script(spec))) == spec


def test_names_are_never_code(tmp_path: Path) -> None:
    hostile = spec_of(
        model_name=HOSTILE,
        dataset_path=HOSTILE,
        eval_path=HOSTILE,
        target_gpu=HOSTILE,
        wandb=HOSTILE,
        samples=[HOSTILE],
        lora={"targets": [HOSTILE]},
        data={"template": HOSTILE, "fields": {"text": HOSTILE, "weight": HOSTILE}},
    )
    script, plain = hf_script(hostile), hf_script(spec_of())
    assert literal(script)["model_name"] == HOSTILE
    kinds = [[type(node) for node in ast.parse(text).body] for text in (script, plain)]
    assert kinds[0] == kinds[1]
    assert all(line.startswith("#") for line in script.partition("\nimport argparse")[0].splitlines() if line)
    (tmp_path / "train.py").write_text(script, "utf-8")


def test_nothing_of_this_project_is_imported() -> None:
    tree = ast.parse(hf_script(spec_of()))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert roots == {"torch", "transformers", "peft", "bitsandbytes", "pyarrow"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"optimizer": "lion"}, "optimizer is a plugin, 'lion'"),
        ({"scheduler": "wsd"}, "scheduler is a plugin, 'wsd'"),
        ({"loss": "focal"}, "loss is a plugin, 'focal'"),
        ({"callbacks": ["log", "mine"]}, "callbacks has plugins, 'mine'"),
        ({"data": {"format": "xml"}}, "data.format is a plugin's, 'xml'"),
    ],
)
def test_plugins_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidSpec, match=re.escape(why)):
        hf_script(spec_of(**fields))


def test_what_differs_is_told_at_the_top() -> None:
    spec = spec_of(model_name="smollm2:135m", memory_limit="8 GB", tensorboard=True, data={"token_masking": 0.1})
    script = hf_script(spec)
    comments = " ".join(line.removeprefix("# ").strip("-# ") for line in script.splitlines() if line.startswith("#"))
    told = list(differences(spec))
    for sentence in told:
        assert sentence in comments
    for word in ("packs several", "memory_limit is not kept", "tensorboard, data.token_masking", "a mesh's own"):
        assert any(word in sentence for sentence in told), word
    assert not any("packs" in sentence for sentence in differences(spec_of(packing=False)))


def test_the_command_prints_it_or_writes_it(tmp_path: Path) -> None:
    write_spec(tmp_path / "spec.yaml", model_name="m", dataset_path="d.jsonl")
    run = CliRunner().invoke(app, ["train", "script", str(tmp_path / "spec.yaml"), "--set", "seed=7"])
    assert (run.exit_code, literal(run.stdout)["seed"]) == (0, 7)
    assert literal(run.stdout)["dataset_path"] == str(tmp_path / "d.jsonl")
    out = tmp_path / "train.py"
    run = CliRunner().invoke(app, ["train", "script", str(tmp_path / "spec.yaml"), "--out", str(out)])
    assert (run.exit_code, run.stdout) == (0, "")
    assert literal(out.read_text("utf-8"))["seed"] == 0
    run = CliRunner().invoke(app, ["train", "script", str(tmp_path / "spec.yaml"), "--set", "optimizer=lion"])
    assert (run.exit_code, run.stdout, "can't do this: optimizer is a plugin" in run.stderr) == (2, "", True)


RUNS: dict[str, dict[str, Any]] = {
    "finetune": {"learning_rate": 1e-2, "lora": {"r": 8}, "samples": ["hi"], "sample_tokens": 4, "merge": True},
    "pretrain": {"task": "pretrain", "method": "full_finetune", "learning_rate": 1e-2, "eval_interval": 4},
    "chat": {"learning_rate": 1e-2, "gradient_accumulation_steps": 2, "early_stop": {}, "eval_interval": 2},
    "preference": {"task": "preference", "learning_rate": 5e-3, "dpo": {"beta": 1.0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_it_runs_alone_and_its_loss_falls(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("torch")
    from tests import tiny_model

    model = tiny_model.build_folder(tmp_path / 'it\'s a "model"')
    data = _data(tmp_path, kind)
    spec = spec_of(
        model_name=str(model), dataset_path=str(data), num_epochs=3, seq_len=64, micro_batch_size=4, **RUNS[kind]
    )
    (tmp_path / "train.py").write_text(hf_script(spec), "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "train.py", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"^step \d+/\d+  loss (\S+)", done.stdout, re.MULTILINE)]
    held_out = [float(loss) for loss in re.findall(r"^held out after step \d+: loss (\S+),", done.stdout, re.MULTILINE)]
    few = len(losses) // 4
    assert sum(losses[-few:]) < 0.8 * sum(losses[:few]), done.stdout
    assert held_out[-1] < held_out[0]
    whole = kind in ("finetune", "pretrain")  # merged, or every weight
    assert ((tmp_path / "out" / "adapter_config.json").exists(), (tmp_path / "out" / "config.json").exists()) == (
        not whole,
        whole,
    )


def _data(folder: Path, kind: str) -> Path:
    path = folder / "d.jsonl"
    if kind == "finetune":
        return write_data(path, 64)
    rows: dict[str, Any] = {
        "pretrain": [{"text": f"after {n} comes {n + 1}, the quick brown fox " * 4} for n in range(32)],
        "chat": [
            {
                "messages": [
                    {"role": "user", "content": f"what comes after {n}?"},
                    {"role": "assistant", "content": f"after {n} comes {n + 1}"},
                ]
            }
            for n in range(64)
        ],
        "preference": [
            {"prompt": f"what comes after {n}?", "chosen": f" after {n} comes {n + 1}", "rejected": " the lazy dog"}
            for n in range(48)
        ],
    }
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[kind]))
    return path
