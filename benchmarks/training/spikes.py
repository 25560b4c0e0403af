"""What the spike detector says in a long run on real text in which nothing is wrong, and in one spoiled on purpose.

A small model of random weights, and with `--real` an adapter of SmolLM2, learns docstrings of Python's standard library
in steps of few tokens, whose losses are as noisy as losses get. Whatever the detector says of the clean run is a false
alarm. In the other run each of three things happens again and again: a step's examples are noise, a step's learning
rate is a thousand times what it should be, weights are multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.training.docstrings import pages, shorts, write
from benchmarks.training.workers import ALLOCATOR, WORKER, events, plan_run
from tiermesh.adapters.model_source import resolve
from tiermesh.adapters.trainer import default_threads, environment
from tiermesh.protocol.run_folder import DONE, RunFolder
from tiermesh.protocol.training_events import RolledBack, StepDone, StepSkipped, TrainingEvent

Kind = Literal["data", "rate", "weights"]
KINDS: tuple[Kind, ...] = ("data", "rate", "weights")
FIRST, APART = 40, 80
"""Steps before the first injection and between two: the detector knows the run again by then."""
LATEST = 2
"""Steps after the damage within which it must be seen."""
MOST_ALARMS = 1
"""In a thousand clean steps."""
RECORDS = 3000
SPOILER = (sys.executable, "-m", "benchmarks.training.spoiled")
SMALL: dict[str, Any] = {
    "method": "full_finetune",
    "precision": "fp32",
    "seq_len": 128,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "warmup": 0.05,
}
REAL: dict[str, Any] = {"method": "lora", "seq_len": 128, "micro_batch_size": 1, "learning_rate": 2e-4}

MAKE = """
import shutil, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                     tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
LlamaForCausalLM(config).save_pretrained(sys.argv[2])
tokenizer.save_pretrained(sys.argv[2])
"""


@dataclass(frozen=True, slots=True)
class Injection:
    """What is done to the step after `step` steps: the next one told is spoiled, or spoils the weights."""

    kind: Kind
    step: int

    @property
    def damaged(self) -> int:
        """The first step that shows it."""
        return self.step + 1 if self.kind == "data" else self.step + 2


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that the detector said."""

    step: int
    back_to: int | None


def alarms(told: Iterable[TrainingEvent]) -> Iterator[Alarm]:
    """In the order in which they were told."""
    for event in told:
        if isinstance(event, StepSkipped):
            yield Alarm(event.step, None)
        elif isinstance(event, RolledBack):
            yield Alarm(event.step, event.to_step)


def drawn(seed: int, steps: int) -> list[Injection]:
    """Each kind by turns, at steps that nobody chose."""
    chance = random.Random(seed)
    kinds = list(KINDS)
    chance.shuffle(kinds)
    places = range(FIRST, steps - APART // 2, APART)
    return [Injection(kinds[i % len(kinds)], place + chance.randrange(APART // 2)) for i, place in enumerate(places)]


def judged(
    injections: Sequence[Injection], told: Sequence[TrainingEvent]
) -> Iterator[tuple[Injection, int | None, int]]:
    """Each with the steps from the first damaged one to the alarm (None: none within `LATEST`), and how many steps were
    done again for it. A run that went back counts its steps again, so alarms are matched in their order."""
    left = list(alarms(told))
    for one in injections:
        at = next((alarm for alarm in left if 0 <= alarm.step - one.damaged < LATEST), None)
        if at is None:
            yield one, None, 0
            continue
        back = next((a for a in left if a.back_to is not None and 0 <= a.step - one.damaged < LATEST), None)
        left = [a for a in left if a.step > one.damaged + LATEST]
        yield one, at.step - one.damaged + 1, 0 if back is None or back.back_to is None else back.step - back.back_to


def run(folder: RunFolder, *, threads: int, injections: Sequence[Injection] = ()) -> list[TrainingEvent]:
    """To its end."""
    worker = [*WORKER] if not injections else [*SPOILER, json.dumps([asdict(one) for one in injections])]
    settings = {**environment(threads), **ALLOCATOR, "TIERMESH_CACHE": str(folder.path.parent / "cache")}
    with folder.log.open("ab") as log:
        command = [*worker, str(folder.path), "--threads", str(threads)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **settings}
        ) as child:
            code = child.wait()
    if code != DONE:
        raise SystemExit(f"the worker ended with {code}:\n{folder.log.read_text()[-3000:]}")
    return events(folder)


def shown(told: Sequence[TrainingEvent]) -> str:
    """First and last losses, and how noisy they are."""
    losses = [event.loss for event in told if isinstance(event, StepDone) and event.loss is not None]
    last = losses[-200:]
    mean = sum(last) / len(last)
    noise = (sum((one - mean) ** 2 for one in last) / len(last)) ** 0.5
    return f"loss {losses[0]:.2f} to {mean:.2f} ± {noise:.2f} (of a step, over the last {len(last)})"


def main() -> None:
    """Print what was said; fail when it was too much or too little."""
    parser = argparse.ArgumentParser(prog="scripts/bench_spikes", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the injections")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--real", action="store_true", help="an adapter of SmolLM2 instead of a small model")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.threads} threads", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-spikes-") as name:
        place = Path(name)
        model, fields = resolve("smollm2:135m").path, REAL
        if not options.real:
            model, fields = _small(model, place / "model"), SMALL
        texts = shorts(RECORDS) if options.real else pages(RECORDS // 4)
        data = write(place / "data.jsonl", texts)
        common = {**fields, "num_epochs": 1000, "max_steps": options.steps, "save_interval": 10_000}
        clean = run(plan_run(place / "clean", model, data, **common), threads=options.threads)
        said = list(alarms(clean))
        print(f"clean, {options.steps} steps: {shown(clean)}: {len(said)} false alarms {said or ''}", flush=True)
        injections = drawn(options.seed, options.steps)
        guard = {"max_rollbacks": len(injections) + 1}
        spoiled = run(
            plan_run(place / "spoiled", model, data, guard=guard, **common),
            threads=options.threads,
            injections=injections,
        )
        found = list(judged(injections, spoiled))
    for one, steps, again in found:
        seen = "NOT SEEN" if steps is None else f"seen at the {('first', 'second')[steps - 1]} step that showed it"
        print(f"{one.kind:8} after step {one.step:4}: {seen}{f', {again} steps done again' if again else ''}")
    print(f"spoiled: {shown(spoiled)}")
    seen_all = all(steps is not None for _, steps, _ in found)
    raise SystemExit(0 if seen_all and len(said) <= MOST_ALARMS * max(1, options.steps // 1000) else 1)


def _small(tokenizer: Path, folder: Path) -> Path:
    subprocess.run([sys.executable, "-c", MAKE, str(tokenizer), str(folder)], check=True, capture_output=True)
    return folder


if __name__ == "__main__":
    main()
