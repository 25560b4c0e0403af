"""What a run leaves: an adapter as peft writes it, or a whole model, and a card that says where it comes from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
import yaml

from tiermesh.protocol.serving import ORIGIN_FILE, Origin

if TYPE_CHECKING:
    from tiermesh.kernel.training.models import Trainee
    from tiermesh.kernel.training.progress import Progress
    from tiermesh.protocol.run_folder import RunPlan

STAGING = ".result-staging"
LIBRARIES = ("tiermesh", "torch", "transformers", "peft")
LARGEST_SHARD = "5GB"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the card tells besides the spec."""

    plan: RunPlan
    progress: Progress
    data_digest: str
    data: Mapping[str, Any]
    precision: str


def write(folder: Path, trainee: Trainee, tokenizer: Any, provenance: Provenance) -> Path:
    """Write the result as `folder`, which appears whole or not at all; an older one is replaced."""
    staging = folder.with_name(STAGING)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    if trainee.method == "full_finetune":
        _write_model(staging, trainee.causal, tokenizer, Path(provenance.plan.model_path))
    else:
        _write_adapter(staging, trainee, provenance.plan.spec.model_name)
        if provenance.plan.spec.merge:
            merge(staging, tokenizer, Path(provenance.plan.model_path))
        else:
            _write_origin(staging, provenance.plan)
    (staging / "README.md").write_text(_card(provenance), "utf-8")
    readable = staging.stat().st_mode & 0o666
    for file in staging.iterdir():
        file.chmod(readable)  # a library's temporary file is its owner's alone; the umask decides, as for all others
        _sync(file)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    _sync(folder.parent)
    return folder


def merge(folder: Path, tokenizer: Any, base: Path) -> None:
    """Put a whole model in place of the adapter in `folder`. The base is read again: in training it was rounded."""
    import torch
    from peft import PeftModel

    causal = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    merged = PeftModel.from_pretrained(causal, folder).merge_and_unload(safe_merge=True)
    for file in folder.iterdir():
        file.unlink()
    _write_model(folder, merged, tokenizer, base)


def _write_adapter(folder: Path, trainee: Trainee, base: str) -> None:
    config = trainee.model.peft_config["default"]
    config.base_model_name_or_path = base  # not the folder that it lies in on this machine
    trainee.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, full of gaps


def _write_origin(folder: Path, plan: RunPlan) -> None:
    """Which weights it belongs beside: a name may come to mean others."""
    spec = plan.spec
    origin = Origin(base_model=spec.model_name, base_digest=plan.model_digest, task=spec.task, method=spec.method)
    (folder / ORIGIN_FILE).write_text(origin.model_dump_json(indent=1) + "\n", "utf-8")


def _write_model(folder: Path, causal: Any, tokenizer: Any, base: Path) -> None:
    """In the precision that the model had when it came."""
    dtype = transformers.AutoConfig.from_pretrained(base, local_files_only=True).dtype
    weights = {name: one.to(dtype or one.dtype) for name, one in causal.state_dict().items()}
    kept = causal.config.dtype
    causal.config.dtype = dtype or kept
    causal.save_pretrained(folder, state_dict=weights, safe_serialization=True, max_shard_size=LARGEST_SHARD)
    causal.config.dtype = kept
    tokenizer.save_pretrained(folder)


def _card(told: Provenance) -> str:
    """A model card as the hub reads them."""
    spec, progress = told.plan.spec, told.progress
    kind = "model" if spec.method == "full_finetune" or spec.merge else "adapter"
    head = {
        "base_model": spec.model_name,
        "library_name": "transformers" if kind == "model" else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tiermesh", spec.task, spec.method],
    }
    figures = {
        "Steps": progress.step,
        "Training loss, last step": progress.loss,
        "Held-out loss before": progress.loss_before,
        "Held-out loss after": progress.held_out,
        "Tokens seen": progress.tokens,
        "Steps passed over": progress.skipped_steps,
        "Returns to a good state": progress.rollbacks,
        "Seconds of training": progress.seconds,
    }
    sources = {
        "Base model": f"{spec.model_name} ({told.plan.model_digest or 'digest unknown'})",
        "Data": told.plan.data_digest or "digest unknown",
        "Data as rows": told.data_digest,
        "Computed in": told.precision,
        "Versions": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }
    return "\n".join(
        (
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# An {kind} trained from {spec.model_name}" if kind == "adapter" else f"# Trained from {spec.model_name}",
            "",
            *_table(("Figure", "Value"), {name: _shown(value) for name, value in figures.items()}),
            "",
            *_table(("From", ""), sources),
            "",
            "## Spec",
            "",
            "```json",
            json.dumps(_public(told.plan), indent=1),
            "```",
            "",
        )
    )


def _public(plan: RunPlan) -> dict[str, Any]:
    """The spec without the places of files on this machine."""
    told = plan.spec.model_dump(mode="json", exclude_defaults=True)
    return {name: Path(value).name if name in ("dataset_path", "eval_path") else value for name, value in told.items()}


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _shown(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
