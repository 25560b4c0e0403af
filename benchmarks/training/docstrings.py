"""Python's standard library, as pages and as short texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tiermesh.cli.demo.docstrings import described

PAGE_CHARS = 4000
"""More than 512 tokens, so that a page fills a row whatever a library does with a longer one."""
SHORT_CHARS = (420, 1900)
"""Docstrings of about 200 tokens in the mean, and of 512 at most but for a few."""


def pages(count: int) -> Iterator[dict[str, Any]]:
    """Texts longer than a row."""
    every = described()
    at = 0
    for _ in range(count):
        parts: list[str] = []
        while sum(map(len, parts)) < PAGE_CHARS:
            one = every[at % len(every)]
            parts.append(f"{one.name}\n{one.text}\n")
            at += 1
        yield {"text": "\n".join(parts)}


def shorts(count: int) -> Iterator[dict[str, Any]]:
    """Texts of mixed lengths, shorter than a row."""
    least, most = SHORT_CHARS
    fitting = [one for one in described() if least <= len(one.text) <= most]
    for number in range(count):
        one = fitting[number % len(fitting)]
        yield {"text": f"{one.name}\n{one.text}"}


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """As JSON lines."""
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path
