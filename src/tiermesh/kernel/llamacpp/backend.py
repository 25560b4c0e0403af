"""llama.cpp's own server, inside this process, on a Unix socket (named `*.sock`) that only `front` uses."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiermesh.errors import EngineFailed

GGUF_MAGIC = b"GGUF"
QUIET = 1
"""llama.cpp's log level: errors. Its warnings come with every request."""
NO_POLLING = 0
"""Threads without work sleep; spinning, they ruin whatever else runs on the machine."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A loaded model. `context_length` is one slot's, in tokens."""

    socket: Path
    slots: int
    context_length: int
    _server: Any
    """Lives as long as this does."""

    @classmethod
    def load(cls, model: Path, *, socket: Path, name: str, threads: int, slots: int, context_length: int) -> Backend:
        """Load the weights and set the slots' memory apart. Blocks, all threads of Python. Raises `EngineFailed`."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise EngineFailed("GGUF models are computed by llama.cpp: pip install 'tiermesh[llamacpp]'")
        _check_file(model)
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.model_alias = {name}
        params.hostnames = [str(socket)]
        params.n_parallel, params.n_ctx = slots, slots * context_length
        params.kv_unified = False  # Each slot has its own share, so a long conversation can't take another's room.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cpuparams.poll = params.cpuparams_batch.poll = NO_POLLING
        params.fit_params = False  # What it was told is what it does,
        params.cache_ram_mib = 0  # and takes: prompts are kept in the slots alone, not in gigabytes beside them.
        params.ui = params.show_timings = params.endpoint_slots = params.endpoint_metrics = False
        params.offline = True
        params.verbosity = QUIET
        socket.unlink(missing_ok=True)
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise EngineFailed(f"llama.cpp can't load {model}; its log above says why") from error
        return cls(socket, slots, context_length, server)


def _check_file(model: Path) -> None:
    try:
        with model.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise EngineFailed(f"{model} can't be read: {error.strerror}") from error
    if magic != GGUF_MAGIC:
        raise EngineFailed(f"{model} is not a GGUF file")
