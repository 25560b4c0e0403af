"""What the head of a GGUF file says of the model in it: metadata, then the tensors' names and shapes, then weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tiermesh.errors import ModelSourceFailed

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 20
"""Of metadata or tensors; the largest models have a few thousand."""
MAX_STRING_BYTES = 16 << 20
"""Chat templates are the longest, with some tens of kilobytes."""
MAX_ARRAY = 1 << 24
"""Vocabularies have up to some hundred thousand tokens."""
MAX_DIMENSIONS = 8
STRING, ARRAY = 8, 9
NUMBERS: Mapping[int, struct.Struct] = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
F16_BYTES = 2
"""Of a number in llama.cpp's cache."""

Value = str | int | float | bool | list[int | float | bool] | None


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """`token_bytes`: what one token takes in the cache of keys and values; 0 where the file does not say enough."""

    parameters: int
    context_length: int | None
    token_bytes: int


def read_header(path: Path) -> GgufHeader:
    """Raises `ModelSourceFailed` for what is no GGUF file."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except OSError as error:
        raise ModelSourceFailed(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, struct.error) as error:
        raise ModelSourceFailed(f"{path} is not a GGUF file, or not all of one: {error}") from error


def _read(file: BinaryIO) -> GgufHeader:
    if (magic := file.read(len(MAGIC))) != MAGIC:
        raise ValueError(f"it begins with {magic!r}")
    if (version := _number(file, 4)) not in VERSIONS:
        raise ValueError(f"version {version} is not known")
    tensors, entries = _count(file, MAX_ENTRIES), _count(file, MAX_ENTRIES)
    metadata = {_string(file): _value(file, int(_number(file, 4))) for _ in range(entries)}
    parameters = sum(_tensor(file) for _ in range(tensors))
    context = _whole(metadata, "context_length")
    return GgufHeader(parameters, context or None, _token_bytes(metadata))


def _token_bytes(metadata: Mapping[str, Value]) -> int:
    """Keys and values of all layers. Heads may differ between layers, and widths may be said or follow from others."""
    layers, heads = _whole(metadata, "block_count"), _whole(metadata, "attention.head_count")
    each = metadata.get(f"{metadata.get('general.architecture')}.attention.head_count_kv")
    usual = _whole(metadata, "embedding_length") // heads if heads else 0
    width = (_whole(metadata, "attention.key_length") or usual) + (_whole(metadata, "attention.value_length") or usual)
    shared = sum(map(int, each)) if isinstance(each, list) else layers * (each if isinstance(each, int) else heads)
    return shared * width * F16_BYTES


def _whole(metadata: Mapping[str, Value], name: str) -> int:
    """A number of this file's architecture, 0 when it is not said; of a list the largest."""
    value = metadata.get(f"{metadata.get('general.architecture')}.{name}")
    if isinstance(value, list):
        return int(max(value, default=0))
    return value if isinstance(value, int) else 0


def _tensor(file: BinaryIO) -> int:
    """How many numbers are in the next tensor that is listed."""
    _string(file)
    shape = [_count(file, 1 << 40) for _ in range(_count(file, MAX_DIMENSIONS, kind=4))]
    file.seek(4 + 8, 1)  # type, offset
    return math.prod(shape)


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _number(file, kind)
    kind, length = int(_number(file, 4)), _count(file, MAX_ARRAY)
    if kind == STRING:
        for _ in range(length):  # The vocabulary; nobody asks for it here.
            _string(file)
        return None
    return [_number(file, kind) for _ in range(length)]


def _string(file: BinaryIO) -> str:
    length = _count(file, MAX_STRING_BYTES)
    raw = file.read(length)
    if len(raw) < length:
        raise ValueError("it ends too early")
    return raw.decode(errors="replace")


def _count(file: BinaryIO, limit: int, kind: int = 10) -> int:
    count = int(_number(file, kind))
    if count > limit:
        raise ValueError(f"a count of {count} is too large to be true")
    return count


def _number(file: BinaryIO, kind: int) -> int | float | bool:
    form = NUMBERS[kind]
    value: int | float | bool = form.unpack(file.read(form.size))[0]
    return value
