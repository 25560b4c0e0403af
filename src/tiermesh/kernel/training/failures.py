"""What an exception means for a run. The one place where the texts of torch and its libraries are read."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from tiermesh.errors import (
    BadSpec,
    CheckpointUnusable,
    DiskFull,
    EnvironmentUnfit,
    InvalidInput,
    OutOfMemory,
    TrainingFailure,
    Unexplained,
)

MAX_REASON_CHARACTERS = 400
"""One failure is one paragraph; the traceback is in the log and in the crash report."""

MAX_CAUSES = 8
"""How far a chain of causes is followed: libraries wrap an error twice or thrice."""

_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"  # torch on CPU: a bare RuntimeError
    r"|out of memory"  # CUDA, HIP and MPS, where it did not become an OutOfMemoryError
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|cannot allocate memory|\(os error 12\)|unable to mmap \d+ bytes"
    r"|std::bad_alloc|bad allocation"
    r"|could not create a memory|could not execute a primitive"  # oneDNN, refused its scratch space
    r"|can't start new thread",
    re.IGNORECASE,
)
_GPU = re.compile(r"\b(CUDA|HIP|MPS|XPU)\b|CUBLAS|CUDNN")
_BYTES = re.compile(r"(?:tried to allocate|unable to mmap|[Tt]ried to allocate) ([\d.]+)( ?[KMGT]i?B| bytes)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|\(os error (?:28|122)\)", re.IGNORECASE)
_UNFIT = re.compile(
    r"not compiled with CUDA|no kernel image is available|driver version is insufficient|no NVIDIA driver"
    r"|invalid device ordinal|is not available on this|requires the following libraries",
    re.IGNORECASE,
)


def translate(error: BaseException) -> TrainingFailure:
    """The failure that `error` is. One that is typed already is given back; memory and disk are looked for along
    the chain of causes too, because libraries wrap them."""
    if isinstance(error, TrainingFailure):
        return error
    for cause in _chain(error):
        failure = _of_resources(cause)
        if failure is not None:
            return failure
    match error:
        case InvalidInput():
            return BadSpec(f"{error.param}: {error}" if error.param else str(error))
        case ImportError():
            return EnvironmentUnfit(f"a library is missing here: {_reason(error)}")
        case SafetensorError():
            return CheckpointUnusable(f"a file of tensors can't be read: {_reason(error)}")
        case RuntimeError() if _UNFIT.search(str(error)):
            return EnvironmentUnfit(_reason(error))
        case OSError():
            return EnvironmentUnfit(f"the system refused: {_reason(error)}")
    return Unexplained(f"{type(error).__name__}: {_reason(error)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Is it one that less memory would have spared?"""
    return isinstance(translate(error), OutOfMemory)


def _of_resources(error: BaseException) -> TrainingFailure | None:
    text = str(error)
    match error:
        case TrainingFailure():
            return error
        case torch.OutOfMemoryError():
            return _out_of_memory(text, device="cuda")
        case MemoryError():
            return _out_of_memory(text, device="cpu")
        case OSError(errno=errno.ENOMEM):
            return _out_of_memory(text, device="cpu")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            where = f" at {error.filename}" if error.filename else ""
            return DiskFull(f"no space is left{where}; what was saved before is untouched")
        case RuntimeError() | SafetensorError() if _NO_MEMORY.search(text):
            return _out_of_memory(text, device="cuda" if _GPU.search(text) else "cpu")
        case RuntimeError() | SafetensorError() if _NO_SPACE.search(text):
            return DiskFull("no space is left; what was saved before is untouched")
    return None


def _out_of_memory(text: str, *, device: str) -> OutOfMemory:
    wanted = _BYTES.search(text)
    size = int(float(wanted[1]) * _UNITS.get(wanted[2].strip(), 1)) if wanted else None
    told = f" ({size / 2**20:,.0f} MiB more were wanted)" if size else ""
    whose = "the GPU's memory" if device != "cpu" else "memory"
    return OutOfMemory(f"out of {whose}{told}", wanted_bytes=size, device=device)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or "no reason given"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it, outermost first."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
