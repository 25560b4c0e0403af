"""A reader: called with the file's path; gives its records one after the other, each a mapping of fields.

The fields mean what they mean in JSON lines: `text`, or `prompt` and `completion`, or `messages`, or `prompt`, `chosen`
and `rejected`. A record that lacks them is counted as a bad one, under its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path


def faq(path: Path) -> Iterator[Mapping[str, str]]:
    """Blocks of text between empty lines: the first line is asked, the others are the answer."""
    block: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                block.append(line.rstrip())
            elif block:
                yield _record(block)
                block = []
    if block:
        yield _record(block)


def _record(block: list[str]) -> Mapping[str, str]:
    question, *answer = block
    return {"prompt": question, "completion": "\n".join(answer)} if answer else {}
