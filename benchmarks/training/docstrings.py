"""Real text that is on every machine: what Python's standard library says of itself."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_READ = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
PAGE_CHARS = 4000
"""More than 512 tokens, so that a page fills a row whatever a library does with a longer one."""
SHORT_CHARS = (420, 1900)
"""Docstrings of about 200 tokens in the mean, and of 512 at most but for a few."""


@dataclass(frozen=True, slots=True)
class Described:
    """A function, method or class by its full name, and its docstring."""

    name: str
    text: str

    @property
    def paragraph(self) -> str:
        """The first, in one line."""
        return " ".join(self.text.strip().partition("\n\n")[0].split())


def described() -> list[Described]:
    """All that is described in the standard library, each text once, in an order that has nothing to do with names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Described] = {}
    for file in sorted(root.rglob("*.py")):
        where = file.relative_to(root)
        if not NOT_READ & set(where.parts):
            for one in _in_file(file, _module(where)):
                found.setdefault(" ".join(one.text.split()), one)
    return sorted(found.values(), key=lambda one: digest(one.name))


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


def digest(text: str) -> str:
    """SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """As JSON lines."""
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def _module(where: Path) -> str:
    parts = where.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _in_file(file: Path, module: str) -> Iterator[Described]:
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    yield from _within(tree, module)


def _within(parent: ast.Module | ast.ClassDef, name: str) -> Iterator[Described]:
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node, clean=False)
            if text and text.strip():
                yield Described(f"{name}.{node.name}", inspect.cleandoc(text))
            if isinstance(node, ast.ClassDef):
                yield from _within(node, f"{name}.{node.name}")
