"""A LoRA adapter as a folder on this machine: what peft saves, and what names it exactly."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from tiermesh.adapters.model_cache import sha256_of
from tiermesh.errors import ModelSourceFailed

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Never a pickle. The worker reads them and refuses by name what it can't apply."""


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """An adapter that is on this machine.

    Its model is the one with the digest `base_digest`, or, where that is "", the one that is called `base`; None is the
    node's first one. `job` left it, if one did.
    """

    name: str
    path: Path
    digest: str
    size_bytes: int
    base: str | None = None
    base_digest: str = ""
    job: str = ""

    def digest_on(self, base_digest: str) -> str:
        """Names the weights that answer: the same adapter on another base is another model."""
        both = f"{base_digest} {self.digest}"
        return f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"


def read_adapter(name: str, folder: str, base: str | None = None, base_digest: str = "", job: str = "") -> LocalAdapter:
    """Look at a folder and hash it; blocks. Raises `ModelSourceFailed` when it is no adapter."""
    path = Path(folder).expanduser().resolve()
    missing = [file for file in FILES if not (path / file).is_file()]
    if missing:
        raise ModelSourceFailed(f"adapter {name}: {path} has no {' and no '.join(missing)}")
    _demand_lora(name, path / FILES[0])
    total = hashlib.sha256()
    for file in FILES:
        total.update(f"{file}\0{sha256_of(path / file)}\n".encode())
    size_bytes = sum((path / file).stat().st_size for file in FILES)
    return LocalAdapter(name, path, f"sha256:{total.hexdigest()}", size_bytes, base, base_digest, job)


def _demand_lora(name: str, config: Path) -> None:
    """What a person gets wrong most often is told at once; the worker refuses the rest by name."""
    try:
        told = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelSourceFailed(f"adapter {name}: {config} can't be read: {error}") from error
    if not isinstance(told, dict) or told.get("peft_type") != "LORA" or not isinstance(told.get("r"), int):
        raise ModelSourceFailed(f"adapter {name}: {config} describes no LoRA (peft_type LORA, and a rank r)")
