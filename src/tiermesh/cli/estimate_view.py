"""What a run will take, and how good it is by now, in tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiermesh.cli.render import size, table
from tiermesh.cli.run_view import duration

PARTS = {
    "runtime": "Python, torch and their libraries",
    "weights": "the model and what is trained of it",
    "gradients": "of what is trained",
    "optimizer": "its state",
    "rollback": "the state to go back to after a spike",
    "activations": "kept for the backward pass",
    "logits": "scores of the vocabulary, and what comes and goes within a step",
    "allocator": "what the C library keeps besides",
    "total": "at its highest",
    "limit": "what the run may take",
}


def show_estimate(found: Mapping[str, Any]) -> None:
    """The parts of memory, whether they fit, then the time."""
    rows = [(part, size(found[f"{part}_bytes"]), about) for part, about in PARTS.items()]
    table(("memory", "size", "about"), rows)
    how = f"{found['micro_batch_size']} rows at once{', activations computed again' if found['checkpointing'] else ''}"
    print(f"\n{'it fits' if found['fits'] else 'it does not fit'}, with {how}")
    if found["seconds"] is None:
        print(f"{found['steps']:,} steps; how long they take was not tried")
    else:
        between = f"{duration(found['seconds_low'])} to {duration(found['seconds_high'])}"
        print(f"{found['steps']:,} steps of {found['step_s']:.2f} s: about {duration(found['seconds'])} ({between})")
    if (compiling_s := found.get("compiling_s")) is not None:
        first_s = found.get("compiling_first_s")
        before = "" if first_s is None else f" (the first time, just now: {duration(first_s)})"
        print(f"of that to compile the layers: {duration(compiling_s)} at each start here{before}")


def show_evaluation(found: Mapping[str, Any]) -> None:
    """The held-out figures and the samples."""
    loss = found.get("loss")
    if loss is None:
        print(f"step {found.get('step')}: no records are held out; set eval_fraction or eval_path")
    else:
        print(f"step {found.get('step')}: held-out loss {loss:.4f}, perplexity {found.get('perplexity') or 0:.2f}")
    for sample in found.get("samples", ()):
        print(f"\n> {sample['prompt']}\n{sample['text']}")
