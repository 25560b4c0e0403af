"""What tests of training need again and again: a spec, its data, a model folder that resolves without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_data(path: Path, records: int = 40) -> Path:
    """Questions and answers that a small model learns quickly; no two alike."""
    rows = [
        {"prompt": f"what comes after {n}?", "completion": f"after {n} comes {n + 1}, the quick brown fox"}
        for n in range(records)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model_stub(folder: Path) -> Path:
    """Looks like a model to whoever does not load it: one weight of four bytes."""
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}')
    return folder


def write_spec(path: Path, **fields: Any) -> Path:
    """As JSON, which YAML reads too."""
    path.write_text(json.dumps(fields))
    return path
