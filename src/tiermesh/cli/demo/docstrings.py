"""Real text that is on every machine: what Python's standard library says of itself."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

NOT_READ = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}


@dataclass(frozen=True, slots=True)
class Described:
    """A function, method or class by its full name, and its docstring."""

    name: str
    text: str

    @property
    def paragraph(self) -> str:
        """The first, in one line."""
        return " ".join(self.text.strip().partition("\n\n")[0].split())

    @property
    def question(self) -> str:
        """As a user asks it."""
        return f"What does Python's {self.name} do?"


def described(modules: Collection[str] = ()) -> list[Described]:
    """All that is described in the standard library, or in these top-level modules of it: each text once, in an order
    that has nothing to do with names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Described] = {}
    for file in sorted(root.rglob("*.py")):
        where = file.relative_to(root)
        module = _module(where)
        if not NOT_READ & set(where.parts) and (not modules or module.partition(".")[0] in modules):
            for one in _in_file(file, module):
                found.setdefault(" ".join(one.text.split()), one)
    return sorted(found.values(), key=lambda one: digest(one.name))


def digest(text: str) -> str:
    """SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


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
