"""How a command ends: 0 it worked, 1 it did not, 2 it was called wrongly, 3 it waits for somebody's decision.

What went wrong is one line on stderr, never a traceback."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from tiermesh.errors import InvalidConfig, InvalidSpec, TiermeshError

FAILED = 1
USAGE = 2
UNDECIDED = 3
"""A person is to decide, and nobody was there to ask."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


class MeshGroup(TyperGroup):
    """Turns errors of any command below into its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TiermeshError as error:
            say_error(str(error))
            raise typer.Exit(USAGE if isinstance(error, InvalidConfig | InvalidSpec) else FAILED) from error
        except typer.BadParameter as error:
            error.message = _in_plain_words(error.message)
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Later writes, the interpreter's last flush too, go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def say_error(text: str) -> None:
    """One line on stderr."""
    print(f"mesh: {' '.join(text.split())}", file=sys.stderr)


def _in_plain_words(message: str) -> str:
    """typer passes on what pydantic says of a value."""
    return message.removeprefix("Value error, ").replace("Input should be ", "must be ", 1)
