"""Every way in which memory, disk and machine refuse is told by its type; the texts are torch's own."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from tiermesh.errors import (
    BadSpec,
    CheckpointUnusable,
    DiskFull,
    Diverged,
    EnvironmentUnfit,
    InvalidInput,
    OutOfMemory,
    TrainingFailure,
    Unexplained,
)
from tiermesh.kernel.training.failures import is_out_of_memory, translate


def of_torch(size: int) -> BaseException:
    try:
        torch.empty(size)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has more memory than exists")


def wrapped(inner: BaseException) -> BaseException:
    try:
        try:
            raise inner
        except type(inner) as error:
            raise ValueError("while loading") from error
    except ValueError as outer:
        return outer


def test_torch_that_was_refused_memory_says_how_much() -> None:
    failure = translate(of_torch(10**15))
    assert isinstance(failure, OutOfMemory)
    assert (failure.wanted_bytes, failure.device) == (4 * 10**15, "cpu")


CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1 GiB is free."


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (torch.OutOfMemoryError(CUDA), OutOfMemory, "2,560 MiB"),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory, "GPU"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), OutOfMemory, "GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory, ""),
        (RuntimeError("std::bad_alloc"), OutOfMemory, "out of memory"),
        (RuntimeError("can't start new thread"), OutOfMemory, ""),
        (RuntimeError("unable to mmap 1048576 bytes from file <x>: Cannot allocate memory (12)"), OutOfMemory, "1 MiB"),
        (MemoryError(), OutOfMemory, "out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), OutOfMemory, "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), DiskFull, "/x/y"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), DiskFull, "no space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DiskFull, "no space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), EnvironmentUnfit, "Permission denied"),
        (ImportError("No module named 'flash_attn'"), EnvironmentUnfit, "flash_attn"),
        (RuntimeError("Torch not compiled with CUDA enabled"), EnvironmentUnfit, "CUDA"),
        (InvalidInput("no such optimizer", param="optimizer.name"), BadSpec, "optimizer.name: no such optimizer"),
        (ZeroDivisionError("division by zero"), Unexplained, "ZeroDivisionError: division by zero"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Unexplained, "shapes"),
        (wrapped(MemoryError()), OutOfMemory, "out of memory"),
        (wrapped(Diverged("the loss jumped")), Diverged, "the loss jumped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_and_what_they_mean(error: BaseException, kind: type[TrainingFailure], text: str) -> None:
    failure = translate(error)
    assert type(failure) is kind
    assert text in str(failure)
    assert is_out_of_memory(error) == (kind is OutOfMemory)


def test_a_typed_failure_stays_itself() -> None:
    failure = CheckpointUnusable("of another run")
    assert translate(failure) is failure


def test_every_kind_has_a_type_of_its_own() -> None:
    kinds: list[type[TrainingFailure]] = [TrainingFailure, *TrainingFailure.__subclasses__()]
    assert len({kind.type for kind in kinds}) == len(kinds)
