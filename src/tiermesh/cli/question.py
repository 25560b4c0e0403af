"""What a person is asked at the gate, on a terminal: approve, optimize or cancel."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tiermesh.client.jobs import Decision

ANSWERS: dict[str, Decision] = {
    "a": "approve",
    "y": "approve",
    "yes": "approve",
    "approve": "approve",
    "o": "optimize",
    "optimize": "optimize",
    "c": "cancel",
    "n": "cancel",
    "no": "cancel",
    "cancel": "cancel",
}


def on_terminal() -> bool:
    """Is there somebody to ask?"""
    return sys.stdin.isatty() and sys.stdout.isatty()


def decide() -> Decision | Literal["later"]:
    """Ask until the answer is one. The end of the input, or Ctrl-C, is `later`."""
    while True:
        try:
            said = input("[a]pprove, [o]ptimize (make it cheaper), [c]ancel, or Ctrl-C to decide later? ")
        except (EOFError, KeyboardInterrupt):
            print()
            return "later"
        if (answer := ANSWERS.get(said.strip().lower())) is not None:
            return answer


def confirm(question: str, *, default: bool) -> bool:
    """Yes or no; an empty answer is the default, the end of the input is no."""
    while True:
        try:
            said = input(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()
        except EOFError:
            print()
            return False
        if not said or said in ("y", "yes", "n", "no"):
            return default if not said else said.startswith("y")
