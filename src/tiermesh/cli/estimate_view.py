"""What a run will take, and how good it is by now, in tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiermesh.cli.render import size, table
from tiermesh.cli.run_view import duration

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "runtime", "total")


def show_estimate(found: Mapping[str, Any]) -> None:
    """The parts of memory, then the time."""
    rows = [(part, size(found[f"{part}_bytes"])) for part in PARTS if f"{part}_bytes" in found]
    table(("memory", "size"), rows)
    if (seconds := found.get("seconds")) is not None:
        low, high = found.get("seconds_low"), found.get("seconds_high")
        between = "" if low is None or high is None else f" (between {duration(low)} and {duration(high)})"
        print(f"\n{found['steps']:,} steps of {found['step_s']:.2f} s: {duration(seconds)}{between}")


def show_evaluation(found: Mapping[str, Any]) -> None:
    """The held-out figures and the samples."""
    loss = found.get("loss")
    if loss is None:
        print(f"step {found.get('step')}: no records are held out; set eval_fraction or eval_path")
    else:
        print(f"step {found.get('step')}: held-out loss {loss:.4f}, perplexity {found.get('perplexity') or 0:.2f}")
    for sample in found.get("samples", ()):
        print(f"\n> {sample['prompt']}\n{sample['text']}")
