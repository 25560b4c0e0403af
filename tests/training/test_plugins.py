"""Plugins: found by their entry points, checked when they are loaded, named when they are wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_model import build_folder
from tests.training_runs import write_spec

from tiermesh.errors import BadSpec, PluginFailed
from tiermesh.kernel.training import plugins
from tiermesh.kernel.training.events import Events
from tiermesh.protocol.training import Named, TrainingSpec
from tiermesh.protocol.training_events import TrainingEvent, Warned, from_line
from tiermesh.protocol.training_plugins import GROUPS, Kind, installed, unknown_plugins
from tiermesh.protocol.training_problems import read_spec

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
RUN_LIMIT_S = 250.0

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make a package with one plugin, `name`, of a module with this code, and put it where packages are looked for."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(kind: Kind, code: str, *, name: str = "mine", package: str = "broken") -> None:
        (tmp_path / f"{package}.py").write_text(f"import torch\n{code}\n")
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{GROUPS[kind]}]\n{name} = {package}:{name}\n")
        sys.modules.pop(package, None)

    return make


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a folder of its own, without a network."""
    source, target = tmp_path_factory.mktemp("source") / "plugins", tmp_path_factory.mktemp("target")
    shutil.copytree(EXAMPLES, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, timeout=60)
    return target


def load(kind: Kind, **options: Any) -> object:
    """As the run does it."""
    choice, weight = Named(name="mine", options=options), torch.nn.Parameter(torch.ones(2, 2))
    match kind:
        case "optimizer":
            return plugins.make_optimizer(choice, [{"params": [weight], "weight_decay": 0.0}], 0.1)
        case "scheduler":
            return plugins.make_schedule(choice, 10, 2)
        case "loss":
            return plugins.make_loss(choice)
        case "callback":
            return plugins.make_callback(choice)
        case "reader":
            return list(plugins.readers_for(spec(data={"format": "mine"}))["mine"](Path("file")))


def spec(**fields: Any) -> TrainingSpec:
    return read_spec({"model_name": "m", "dataset_path": "d", **fields})


SGD = "lambda groups, rate, **options: torch.optim.SGD("
MISTAKES: list[tuple[Kind, str, dict[str, Any], str]] = [
    ("optimizer", "raise RuntimeError('no such\\nlibrary')", {}, "can't be loaded: RuntimeError: no such library"),
    ("optimizer", "import nowhere", {}, "can't be loaded: ModuleNotFoundError: No module named 'nowhere'"),
    ("optimizer", "other = 3", {}, "can't be loaded: AttributeError"),
    ("optimizer", "mine = 3", {}, "is a int, which can't be called"),
    ("optimizer", "def mine(groups): pass", {}, "does not take these options: too many positional arguments"),
    (
        "optimizer",
        "def mine(groups, rate): pass",
        {"betas": 1},
        "got an unexpected keyword argument 'betas' (it takes none",
    ),
    ("optimizer", "def mine(groups, rate, *, beta): pass", {}, "missing a required argument: 'beta' (it takes beta)"),
    ("optimizer", "def mine(groups, rate): return None", {}, "gave nothing instead of a torch.optim.Optimizer"),
    ("optimizer", "def mine(groups, rate): 1 / 0", {}, "raised ZeroDivisionError: division by zero"),
    ("optimizer", f"mine = {SGD}[torch.nn.Parameter(torch.ones(1))], 1)", {}, "left out 1 of 1 parameters"),
    ("scheduler", "def mine(steps, warmup): return 1.0", {}, "gave a float, which can't be called"),
    ("scheduler", "def mine(steps, warmup): return lambda step: 'fast'", {}, "gave 'fast' for step 0"),
    ("scheduler", "def mine(steps, warmup): return lambda step: -step", {}, "gave -2 for step 2"),
    ("scheduler", "def mine(steps, warmup): return lambda step: 1 / (9 - step)", {}, "raised ZeroDivisionError"),
    ("scheduler", "def mine(steps, warmup): return lambda: 1.0", {}, "raised TypeError"),
    ("loss", "def mine(): return None", {}, "gave nothing, which can't be called"),
    ("loss", "def mine(): return torch.nn.functional.cross_entropy", {}, "gave [] for 3 targets"),
    ("loss", "def mine(): return lambda logits, labels: 0.0", {}, "gave a float for 3 targets"),
    ("loss", "def mine(): return lambda logits, labels: torch.ones(3)", {}, "not finite, or have no gradient"),
    ("loss", "def mine(): return lambda logits, labels: logits.sum(1) / 0", {}, "not finite, or have no gradient"),
    ("loss", "def mine(): return lambda logits, labels: logits[labels == 9][0]", {}, "raised IndexError"),
    ("callback", "def mine(): return 'no'", {}, "gave a str, which can't be called"),
    ("callback", "def mine(path): return print", {}, "missing a required argument: 'path'"),
    ("reader", "def mine(): return []", {}, "does not take these options"),
    ("reader", "def mine(path): return 3", {}, "raised TypeError: 'int' object is not iterable"),
    ("reader", "def mine(path):\n    yield {}\n    raise OSError('gone')", {}, "raised OSError: gone"),
]


@pytest.mark.parametrize(("kind", "code", "options", "told"), MISTAKES, ids=[f"{m[0]}: {m[3]}" for m in MISTAKES])
def test_a_mistake_names_the_plugin(
    install: Install, kind: Kind, code: str, options: dict[str, Any], told: str
) -> None:
    install(kind, code)
    with pytest.raises(PluginFailed) as failed:
        load(kind, **options)
    assert str(failed.value).startswith(f"the {kind} 'mine' of broken 1.2 ")
    assert told in str(failed.value)


@pytest.mark.parametrize("kind", GROUPS)
def test_an_unknown_name_is_told_with_those_that_there_are(kind: Kind) -> None:
    with pytest.raises(BadSpec, match=f"there is no {kind} 'mine' on this machine; there are"):
        load(kind)


def test_two_packages_with_one_name(install: Install) -> None:
    install("loss", "def mine(): pass")
    install("loss", "def mine(): pass", package="other")
    with pytest.raises(PluginFailed, match=r"'mine' is of both (broken|other) 1.2 and (broken|other) 1.2"):
        load("loss")
    assert "both have; remove one of them" in unknown_plugins(spec(loss="mine"))[0][1]


def test_a_package_can_not_take_a_built_in_name(install: Install) -> None:
    install("optimizer", "def adamw(groups, rate): pass", name="adamw")
    with pytest.raises(PluginFailed, match=r"tiermesh itself and broken 1\.2"):
        plugins.make_optimizer(Named(name="adamw"), [], 0.1)


def test_a_lack_of_memory_is_not_the_plugins_mistake(install: Install) -> None:
    install("loss", "def mine(): raise MemoryError")
    with pytest.raises(MemoryError):
        load("loss")


@pytest.mark.parametrize("kind", ["optimizer", "scheduler", "loss", "callback"])
def test_what_is_built_in_comes_through_the_same_door(kind: Kind) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    for name in installed(kind):
        choice = Named(name=name)
        match kind:
            case "optimizer":
                plugins.make_optimizer(choice, [{"params": [weight], "weight_decay": 0.1}], 0.1)
            case "scheduler":
                assert plugins.make_schedule(choice, 10, 2)(2) == 1.0
            case "loss":
                plugins.make_loss(choice)
            case _:
                plugins.make_callback(choice)


def test_a_callback_that_raises_is_dropped_with_a_word(install: Install, tmp_path: Path) -> None:
    install("callback", "def mine():\n    def call(event):\n        raise KeyError(event.event)\n    return call")
    heard: list[TrainingEvent] = []
    events = Events(tmp_path / "events.jsonl")
    events.listen(plugins.make_callback(Named(name="mine")))
    events.listen(heard.append)
    events.say(Warned(message="first"))
    events.say(Warned(message="second"))
    events.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    told = [event.message for line in lines if isinstance(event := from_line(line), Warned)]
    assert told == [
        "first",
        "it is told of no more events: the callback 'mine' of broken 1.2 raised KeyError: 'warned'",
        "second",
    ]
    assert len(heard) == 3


def test_the_examples_are_used_by_a_real_run(examples: Path, tmp_path: Path) -> None:
    build_folder(tmp_path / "model")
    faq = "\n".join(f"what is {n} and {n}?\nit is {2 * n}, the quick brown fox\n" for n in range(60))
    (tmp_path / "faq.txt").write_text(faq + "\na question without an answer\n")
    write_spec(
        tmp_path / "spec.json",
        model_name=str(tmp_path / "model"),
        dataset_path="faq.txt",
        optimizer={"name": "lion", "options": {"betas": [0.9, 0.98]}},
        scheduler={"name": "stable", "options": {"decay": 0.3}},
        loss={"name": "focal", "options": {"gamma": 1.5}},
        callbacks=[{"name": "table", "options": {"path": str(tmp_path / "steps.csv")}}],
        data={"format": "faq"},
        precision="fp32",
        seq_len=64,
        max_steps=12,
        num_epochs=9,
        learning_rate=0.003,
        tensorboard=True,
    )
    env = {**os.environ, "PYTHONPATH": str(examples), "TIERMESH_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tiermesh.cli.main", "train", "run", "spec.json", "--local", "--json"]
    command += ["--out", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = [json.loads(line) for line in done.stdout.splitlines()]
    data = next(event for event in told if event["event"] == "data")
    assert (data["records"], data["bad_records"]) == (60, 1)
    steps = [event for event in told if event["event"] == "step"]
    assert len(steps) == 12
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[5]["learning_rate"] == pytest.approx(0.003)
    assert steps[-1]["learning_rate"] == pytest.approx(0.003 / 4)
    with (tmp_path / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [step["loss"] for step in steps]
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))
