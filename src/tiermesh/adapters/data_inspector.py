"""A file of data as the training kernel sees it. It is read in a process of its own: tokenizers are heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiermesh import errors
from tiermesh.adapters.model_cache import cache_folder
from tiermesh.errors import EnvironmentUnfit, TiermeshError

QUIET: Mapping[str, str] = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
LAST_WORDS = 300
"""Characters of what a process said before it failed."""


def inspect_data(file: Path, *, tokenizer: Path | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, bad records, token lengths, how it packs, and a sample; of tokens only where there is a tokenizer.

    `spec` has those fields of a training spec that matter for data. Raises `BadData`, and what else the kernel says.
    """
    asked = {
        "file": str(file),
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "cache": str(cache_folder() / "tokens"),
        "spec": dict(spec),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tiermesh.kernel.training.data.inspect"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET},
        check=False,
    )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        said = " ".join(done.stderr.split())[-LAST_WORDS:]
        raise EnvironmentUnfit(f"the data can't be looked at here: {said}") from None
    if "error" in told:
        raise _known(told["error"]["type"])(told["error"]["message"])
    assert isinstance(told, dict)
    return told


def _known(name: str) -> type[TiermeshError]:
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TiermeshError))
    return next((kind for kind in kinds if kind.type == name), TiermeshError)
