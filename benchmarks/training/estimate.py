"""How near the estimate comes: of memory, for many kinds of runs, and of time.

For each kind a worker estimates the run, and then another one does it. What was used is the most that was resident in
that process, as the system counted it (ru_maxrss), with the allocator set as the launcher sets it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training.workers import ALLOCATOR, WORKER, plan_run, write_texts
from tiermesh.protocol.run_folder import DONE, RunFolder

STEPS = 10
"""Until all is there that a long run has: gradients, optimizer, two states to go back to."""
MIB = 1 << 20
UNDER, OVER, IN_TIME = 0.10, 0.15, 0.20
"""How far estimates may be off, of what was used."""

MAKE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config
from tests.tiny_model import build_folder
folder = build_folder(Path(sys.argv[3]))
tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
if sys.argv[2] == "qwen2":
    config = Qwen2Config(vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=14,
                         num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=2048,
                         tie_word_embeddings=True, **tokens)
else:
    config = GPT2Config(vocab_size=32000, n_embd=640, n_layer=10, n_head=10, n_positions=1024, **tokens)
for name in ("model.safetensors", "generation_config.json", "config.json"):
    (folder / name).unlink(missing_ok=True)
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of run."""

    model: str
    method: str
    rows: int
    tokens: int
    checkpointing: bool

    def __str__(self) -> str:
        return (
            f"{self.model:8} {self.method:13} {self.rows:2}x{self.tokens:<4} {'ckpt' if self.checkpointing else '':4}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes and seconds a step."""

    kind: Kind
    estimated: int
    used: int
    seconds_estimated: float
    seconds: float
    """Of the whole run, from the start of its process to its end."""
    probe_s: float
    parts: dict[str, Any]

    @property
    def error(self) -> float:
        """Of the estimate; negative: too low."""
        return self.estimated / self.used - 1

    @property
    def error_in_time(self) -> float:
        """The same of the seconds."""
        return self.seconds_estimated / self.seconds - 1

    @property
    def kept(self) -> bool:
        """Whether both are as near as they must be."""
        return -UNDER <= self.error <= OVER and abs(self.error_in_time) <= IN_TIME


FIXED = (
    Kind("smollm2", "lora", 2, 512, False),
    Kind("smollm2", "lora", 2, 512, True),
    Kind("smollm2", "lora", 4, 256, False),
    Kind("smollm2", "qlora", 2, 256, False),
    Kind("smollm2", "qlora", 4, 256, True),
    Kind("smollm2", "full_finetune", 1, 256, False),
    Kind("smollm2", "full_finetune", 2, 512, True),
    Kind("qwen2", "lora", 4, 512, False),
    Kind("qwen2", "lora", 8, 256, True),
    Kind("qwen2", "full_finetune", 4, 256, False),
    Kind("qwen2", "qlora", 2, 512, False),
    Kind("gpt2", "lora", 4, 256, False),
)


def drawn(seed: int, count: int = 4) -> Iterator[Kind]:
    """Kinds that nobody chose."""
    chance = random.Random(seed)
    for _ in range(count):
        yield Kind(
            chance.choice(("smollm2", "qwen2", "gpt2")),
            chance.choice(("lora", "qlora", "full_finetune")),
            chance.choice((1, 2, 3, 4, 6)),
            chance.choice((128, 192, 256, 384, 512)),
            chance.random() < 0.4,
        )


def measure(kind: Kind, models: dict[str, Path], data: Path, threads: int, allocator: dict[str, str]) -> Result:
    """Estimate and run it."""
    with tempfile.TemporaryDirectory(prefix="bench-estimate-") as place:
        folder = plan_run(
            Path(place) / "run",
            models[kind.model],
            data,
            method=kind.method,
            micro_batch_size=kind.rows,
            seq_len=kind.tokens,
            checkpointing=kind.checkpointing,
            max_steps=STEPS,
            eval_fraction=0.02,
            samples=["the quick brown fox"],
            sample_tokens=16,
            num_epochs=1000,
            save_interval=5,
            precision="bf16",
            guard={"spike_z": None},
        )
        probe_s, _ = _worker(folder, threads, allocator, "--estimate")
        told = json.loads(folder.estimate.read_text())
        folder.events.unlink()
        seconds, used = _worker(folder, threads, allocator)
        return Result(kind, told["total_bytes"], used, told["seconds"], seconds, probe_s, told)


def _worker(folder: RunFolder, threads: int, allocator: dict[str, str], *arguments: str) -> tuple[float, int]:
    """Seconds, and the most that was resident."""
    began = time.monotonic()
    command = [*WORKER, str(folder.path), "--threads", str(threads), *arguments]
    with folder.log.open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **allocator}
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.stdin is not None
        child.stdin.close()
    if child.returncode != DONE:
        raise SystemExit(f"the worker ended with {child.returncode}:\n{folder.log.read_text()[-3000:]}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def main() -> None:
    """Print the table; fail when an estimate misses what it must reach."""
    parser = argparse.ArgumentParser(prog="scripts/bench_estimate", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the drawn kinds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of kinds in the table, from 0")
    parser.add_argument("--plain", action="store_true", help="without the launcher's allocator settings")
    options = parser.parse_args()
    allocator = {} if options.plain else ALLOCATOR
    kinds = [*FIXED, *drawn(options.seed)]
    wanted = range(len(kinds)) if options.only is None else options.only
    print(f"seed {options.seed}, {options.threads} threads, {allocator or 'plain glibc'}", flush=True)
    print(
        f"{'kind':40} {'estimated':>9} {'used':>9} {'error':>7}   {'told s':>6} {'took s':>6} {'error':>7}"
        f" {'probing':>7}",
        flush=True,
    )
    failed = 0
    with tempfile.TemporaryDirectory(prefix="bench-estimate-") as place:
        models = {"smollm2": Path.home() / ".cache/tiermesh/models/smollm2--135m"}
        for name in ("qwen2", "gpt2"):
            root = str(Path(__file__).parents[2])
            subprocess.run([sys.executable, "-c", MAKE, root, name, f"{place}/{name}"], check=True, capture_output=True)
            models[name] = Path(place) / name
        data = write_texts(Path(place) / "data.jsonl", 3000)
        for index in wanted:
            result = measure(kinds[index], models, data, options.threads, allocator)
            failed += not result.kept
            print(
                f"{result.kind!s:40} {result.estimated / MIB:8.0f}M {result.used / MIB:8.0f}M {result.error:+7.1%}"
                f"   {result.seconds_estimated:6.1f} {result.seconds:6.1f} {result.error_in_time:+7.1%}"
                f" {result.probe_s:7.1f}{'' if result.kept else '   MISSED'}",
                flush=True,
            )
            if os.environ.get("PARTS"):
                print({k: v >> 20 if k.endswith("bytes") else v for k, v in result.parts.items()}, flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
