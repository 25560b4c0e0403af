"""Under a limit below its plain need a run takes relief and ends as it would have without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.training.workers import WORKER, events, plan_run, write_texts
from tests.tiny_model import build_folder

from tiermesh.protocol.run_folder import DONE, FAILED, RunFolder
from tiermesh.protocol.training_events import Failed, Planned, Relieved, StepDone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts data as its limit does"),
]

STEPS = 6
FIELDS: dict[str, Any] = {
    "seq_len": 512,
    "micro_batch_size": 48,
    "max_steps": STEPS,
    "num_epochs": 100,
    "save_interval": 100,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "lora": {"dropout": 0.0},
    "guard": {"spike_z": None},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "data.jsonl", 3000)


MEASURED = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""
"""A small process between: what the system counts for a child begins with what its parent had when it was born."""


def so_much_is_free(free_bytes: int) -> tuple[str, ...]:
    """The worker, on a machine with less memory than this one; only what the system holds it at shall know of that."""
    program = (
        "from tiermesh.kernel.training import limits, memory\n"
        f"limits.available_bytes = lambda: {free_bytes} - memory.resident_bytes()\n"
        "from tiermesh.kernel.training.__main__ import main\n"
        "main()"
    )
    return (sys.executable, "-c", program)


def run(folder: RunFolder, *arguments: str, program: tuple[str, ...] = WORKER) -> tuple[int, int]:
    """Exit status and the most that was resident; the system holds it at its limit, nobody else."""
    worker = [*program, str(folder.path), "--threads", "1", *arguments]
    with folder.log.open("ab") as log:
        command = [sys.executable, "-c", MEASURED, *worker]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as child:
            assert child.stdout is not None
            code, used = child.stdout.read().split()
    return int(code), int(used)


def last_loss(folder: RunFolder) -> float:
    steps = {event.step: event.loss for event in events(folder) if isinstance(event, StepDone)}
    assert len(steps) == STEPS
    loss = steps[STEPS]
    assert loss is not None
    return loss


def test_it_finishes_with_the_same_effective_batch_and_loss(tmp_path: Path, model: Path, data: Path) -> None:
    plain = plan_run(tmp_path / "plain", model, data, **FIELDS)
    code, need = run(plain)
    assert code == DONE, plain.log.read_text()
    least = plan_run(tmp_path / "least", model, data, **FIELDS | {"micro_batch_size": 1, "max_steps": 1})
    code, least_need = run(least)
    assert code == DONE, least.log.read_text()

    capped = plan_run(tmp_path / "capped", model, data, **FIELDS)
    limit = least_need + (need - least_need) // 3
    code, used = run(capped, "--memory-limit", str(limit))
    assert code == DONE, capped.log.read_text()
    assert used < limit + (64 << 20), "pages of libraries are not counted by the limit"
    relieved = [event for event in events(capped) if isinstance(event, Relieved)]
    assert relieved
    # Refused by the system in the midst of a step: nobody had looked at how much there was.
    assert relieved[0].pressure is None
    assert relieved[-1].micro_batch_size < 48
    (planned,) = [event for event in events(capped) if isinstance(event, Planned)]
    assert planned.effective_batch == 48
    assert last_loss(capped) == pytest.approx(last_loss(plain), abs=1e-3)

    small = plan_run(tmp_path / "small", model, data, **FIELDS)
    code, used = run(small, program=so_much_is_free(limit))
    assert code == DONE, small.log.read_text()
    assert used < limit + (64 << 20)
    relieved = [event for event in events(small) if isinstance(event, Relieved)]
    assert relieved
    assert relieved[0].pressure is None
    assert last_loss(small) == pytest.approx(last_loss(plain), abs=1e-3)
    assert not [event for event in events(plain) if isinstance(event, Relieved)], "a run that fits is as it was"


def test_when_nothing_is_left_to_relieve_it_fails_typed(tmp_path: Path, model: Path, data: Path) -> None:
    fields = FIELDS | {
        "micro_batch_size": 1,
        "seq_len": 4096,
        "checkpointing": False,
        "lora": {"dropout": 0.0, "r": 512},
    }
    plain = plan_run(tmp_path / "plain", model, data, **fields | {"max_steps": 1})
    code, need = run(plain)
    assert code == DONE, plain.log.read_text()
    tight = plan_run(tmp_path / "tight", model, data, **fields)
    code, _ = run(tight, "--memory-limit", str(need - (120 << 20)))
    assert code == FAILED, tight.log.read_text()
    last = events(tight)[-1]
    assert isinstance(last, Failed)
    assert last.kind == "out_of_memory"
    assert "seq_len" in last.advice
    assert last.crash is not None
    names = {path.name for path in (tight.crash / last.crash).iterdir()}
    assert {"report.json", "stack.txt", "events.jsonl", "worker.log", "spec.json"} <= names


MAKE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from tests.tiny_model import VOCABULARY, build_folder
folder = build_folder(Path(sys.argv[2]))
config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=4096, num_hidden_layers=2,
                     num_attention_heads=8, max_position_embeddings=512)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
"""
WEIGHTS_BYTES = 135 << 20
"""Of this model in fp32; what AdamW keeps is twice that."""


@pytest.mark.long
@pytest.mark.long
def test_an_optimizer_that_finds_no_room_is_kept_in_a_file(tmp_path: Path, data: Path) -> None:
    """There is room for the weights and their gradients, and not for what the optimizer keeps. It used to be refused
    within the first update."""
    model = tmp_path / "model"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", MAKE, root, str(model)], check=True, capture_output=True)
    fields = FIELDS | {
        "method": "full_finetune",
        "seq_len": 64,
        "micro_batch_size": 1,
        "learning_rate": 1e-3,
        "checkpointing": False,
    }
    plain = plan_run(tmp_path / "plain", model, data, **fields)
    code, need = run(plain)
    assert code == DONE, plain.log.read_text()
    # Weights, gradients, the optimizer's two, and as many again of three of them as copies to go back to.
    least = need - 7 * WEIGHTS_BYTES

    tight = plan_run(tmp_path / "tight", model, data, **fields)
    code, _ = run(tight, "--memory-limit", str(least + int(2.6 * WEIGHTS_BYTES)))
    assert code == DONE, tight.log.read_text()
    relieved = [event for event in events(tight) if isinstance(event, Relieved)]
    assert [(event.step, event.action, event.pressure) for event in relieved] == [(0, "offload_optimizer", None)]
    assert last_loss(tight) == pytest.approx(last_loss(plain), abs=1e-5)
