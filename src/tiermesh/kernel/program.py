"""What the workers' programs share: their options, how they begin, how they log, and how they end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

from tiermesh.errors import TiermeshError
from tiermesh.kernel import lifeline
from tiermesh.kernel.inference.threads import default_threads, environment

LOAD_FAILED = 3
"""Exit status when the model can't be loaded; why is the last line of the log."""

MAX_REASON_CHARACTERS = 300
"""The daemon shows one line of it; the traceback above has the rest."""

log = logging.getLogger(__name__)


def parser(module: str, about: str, *, model: str) -> argparse.ArgumentParser:
    """The options of every worker; `model` says what it can load."""
    options = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    options.add_argument("--socket", type=Path, required=True, help="where to listen; an old file is replaced")
    options.add_argument("--model", type=Path, required=True, help=model)
    options.add_argument("--name", required=True, help="what the model is called")
    options.add_argument("--digest", required=True, help="what the model is, exactly")
    options.add_argument("--threads", type=int, help="default: the cores this process may run on")
    return options


def run(options: argparse.Namespace, serve: Callable[[argparse.Namespace], Coroutine[None, None, None]]) -> None:
    """Serve until killed, or until standard input ends. `serve` imports what is slow, and knows the threads by then."""
    lifeline.hold()
    lifeline.yield_to_daemon()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    options.threads = options.threads or default_threads()
    os.environ.update(environment(options.threads))  # The libraries read it once, when they are loaded.
    options.socket.unlink(missing_ok=True)
    os.umask(0o077)  # The sockets have no guard but their permissions.
    try:
        asyncio.run(serve(options))
    except Exception as error:
        log.exception("can't serve")
        sys.stderr.write(f"{options.name} can't be served: {_reason(error)}\n")
        sys.stderr.flush()
        os._exit(LOAD_FAILED)


def _reason(error: Exception) -> str:
    """Our own errors are sentences; of others the kind says as much as the text."""
    text = str(error) if isinstance(error, TiermeshError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:MAX_REASON_CHARACTERS]
