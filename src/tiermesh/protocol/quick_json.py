"""JSON on the way of every prompt: msgspec's, and the standard library's wherever the two could differ.

What msgspec reads, it reads as `json` does, whole numbers of any length included. What it refuses is the caller's to
read with `json`, which accepts a little more (half a surrogate pair) and says better what is wrong.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

_REFUSED = (msgspec.MsgspecError, ValueError, TypeError, OverflowError)


def decode(text: bytes) -> Any:
    """Plain data. Raises `ValueError` for what `json` must be asked about, and `RecursionError`."""
    try:
        return _DECODER.decode(text)
    except _REFUSED as error:
        raise ValueError(str(error)) from None


def read(text: bytes) -> Any:
    """All that `json` reads. Raises `ValueError` and `RecursionError`."""
    try:
        return _DECODER.decode(text)
    except _REFUSED:
        return json.loads(text)


def canonical(value: object) -> bytes:
    """The same bytes for equal values, in whatever order their keys came."""
    try:
        return _SORTING.encode(value)
    except _REFUSED:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def encode(value: object) -> bytes:
    """UTF-8, as short as it goes. Numbers are finite."""
    try:
        return _ENCODER.encode(value)
    except _REFUSED:
        return json.dumps(value, separators=(",", ":")).encode()


_DECODER, _ENCODER = msgspec.json.Decoder(), msgspec.json.Encoder()
_SORTING = msgspec.json.Encoder(order="sorted")
