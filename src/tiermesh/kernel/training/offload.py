"""An optimizer's state kept where there is more room, for a run that would not fit otherwise.

On a CPU: in a file that is mapped into memory. After each step a thread writes what was changed and lets go of the
pages, while the next step computes its gradients; they come back as the optimizer touches them. On a GPU: in the
machine's memory, brought over for the step of the optimizer and back.

The file is no checkpoint: it is removed at once, and the system frees it when the process ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tiermesh.kernel.training.failures import translate

ALIGNMENT = 64
"""Bytes between the beginnings of two tensors, so that wide instructions read them as well as any others."""

MIN_SPARED_SHARE = 0.02
"""Of the limit: a state smaller than this is not worth a file."""


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What offloading would spare."""
    return sum(tensor.nbytes for _, _, tensor in _large(optimizer))


def offload(optimizer: torch.optim.Optimizer, folder: Path) -> MappedState | None:
    """Move the state of `optimizer` out of memory; call it again after a state was loaded. `folder` is where a file
    may be made. Raises `DiskFull` and changes nothing when it can't be. None on a GPU, where hooks do it all."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter.is_cuda for parameter in parameters):
        _offload_to_cpu(optimizer)
        return None
    return MappedState(optimizer, folder)


class MappedState:
    """The state in a mapped file. Its hook is called after each step of the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        states = list(_large(optimizer))
        sizes = [_aligned(tensor.nbytes) for _, _, tensor in states]
        self._map = _mapped_file(folder, max(mmap.PAGESIZE, sum(sizes)))
        self._writer = ThreadPoolExecutor(1, "offload")
        self._writing: Future[None] | None = None
        begin = 0
        for (state, name, tensor), size in zip(states, sizes, strict=True):
            place = torch.frombuffer(self._map, dtype=torch.uint8, count=tensor.nbytes, offset=begin)
            moved = place.view(tensor.dtype).view(tensor.shape)
            moved.copy_(tensor)
            state[name] = moved
            begin += size
        self._let_go()
        self._hook = optimizer.register_step_post_hook(lambda *_: self._write_later())

    def close(self) -> None:
        """Wait for the writer. The tensors stay usable."""
        self._hook.remove()
        self._writer.shutdown()

    def _write_later(self) -> None:
        if self._writing is not None:
            self._writing.result()  # raises what went wrong while it wrote the step before
        self._writing = self._writer.submit(self._let_go)

    def _let_go(self) -> None:
        """The pages are in the file, or on the way there; the system may use their place."""
        try:
            self._map.flush()
        except OSError as error:
            raise translate(error) from error
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _mapped_file(folder: Path, size: int) -> mmap.mmap:
    """Its space is reserved: a disk that fills up later would end the process without a word (SIGBUS)."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
                file.flush()
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise translate(error) from error


def _large(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """The tensors that are as large as their parameter; counters and tables stay where they are."""
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if isinstance(tensor, torch.Tensor) and tensor.numel() == parameter.numel() > 1:
                yield state, name, tensor


def _offload_to_cpu(optimizer: torch.optim.Optimizer) -> None:
    def move(to: str) -> None:
        for state, name, tensor in list(_large(optimizer)):
            state[name] = tensor.to(to, non_blocking=True)

    device = str(optimizer.param_groups[0]["params"][0].device)
    optimizer.register_step_pre_hook(lambda *_: move(device))
    optimizer.register_step_post_hook(lambda *_: move("cpu"))
    move("cpu")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
