"""The long forms of the kill tests: `scripts/bench_resume`."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.training.resume import disturbed
from benchmarks.training.workers import write_texts

TINY = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from tests.tiny_model import build_folder
build_folder(Path(sys.argv[2]))
"""
ROOT = str(Path(__file__).parents[2])
SMALL: dict[str, Any] = {
    "seq_len": 64,
    "micro_batch_size": 2,
    "max_steps": 120,
    "save_interval": 3,
    "precision": "bf16",
}
REAL: dict[str, Any] = {"seq_len": 128, "micro_batch_size": 2, "max_steps": 24, "save_interval": 3, "precision": "bf16"}


def main() -> None:
    """Print what the kills did; fail when anything was lost."""
    parser = argparse.ArgumentParser(prog="scripts/bench_resume", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of the kills")
    parser.add_argument("--kills", type=int, default=20, help="of a small random model's run")
    parser.add_argument("--real", type=int, default=3, help="kills of SmolLM2's run")
    parser.add_argument("--saves", type=int, default=200, help="kills aimed at the saving of a checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    good = True
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as name:
        place = Path(name)
        data = write_texts(place / "data.jsonl", 1500)
        if options.saves:
            # Before anything starts threads: it forks.
            from benchmarks.training.saving import kill_while_saving

            tally = kill_while_saving(place / "saving", options.saves, options.seed)
            kills, bad = tally.kills, tally.unusable + tally.wrong + tally.lost + tally.damaged
            print(
                f"{kills} kills while saving: {tally.unusable} unusable, {tally.wrong} wrong, {tally.damaged} damaged, "
                f"{tally.lost} lost a save that had ended",
                flush=True,
            )
            good &= bad == 0
        tiny = place / "tiny"
        subprocess.run([sys.executable, "-c", TINY, ROOT, str(tiny)], check=True, capture_output=True)
        real = Path.home() / ".cache/tiermesh/models/smollm2--135m"
        runs = ((tiny, options.kills, SMALL, "a small random model"), (real, options.real, REAL, "SmolLM2"))
        for index, (model, kills, fields, about) in enumerate(runs):
            if not kills:
                continue
            began = time.monotonic()
            outcome = disturbed(
                place / f"run{index}", model, data, kills=kills, seed=options.seed, threads=options.threads, **fields
            )
            print(
                f"{about}, {outcome.steps} steps, {outcome.kills} kills: {outcome.steps_done_again} steps done again, "
                f"losses {'equal' if outcome.equal_losses else 'DIFFERENT'}, "
                f"weights {'equal' if outcome.equal_weights else 'DIFFERENT'} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
            good &= outcome.exact and outcome.kills == kills
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
