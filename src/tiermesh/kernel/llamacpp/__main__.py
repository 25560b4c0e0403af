"""The worker for GGUF: `python -m tiermesh.kernel.llamacpp --socket PATH --model FILE --name NAME --digest D`.

llama.cpp's own server computes, in this process; what stands before it speaks as the other worker does. Started and
watched by the daemon's supervisor, which holds the other end of standard input. Logs go to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from tiermesh.kernel import lifeline
from tiermesh.kernel.inference.threads import default_threads, environment

LOAD_FAILED = 3
"""Exit status when the model can't be loaded; why is the last line of the log."""
DEFAULT_SLOTS = 8
DEFAULT_CONTEXT = 4096
"""Of each slot. All slots' memory is set apart at the start, so whoever knows the machine chooses better."""

log = logging.getLogger(__name__)


def main() -> None:
    """Serve until killed, or until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.llamacpp", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen; an old file is replaced")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--name", required=True, help="what the model is called")
    parser.add_argument("--digest", required=True, help="what the model is, exactly")
    parser.add_argument("--threads", type=int, help="default: the cores this process may run on")
    parser.add_argument("--slots", type=int, default=DEFAULT_SLOTS, help="sequences that are computed at once")
    parser.add_argument("--context-length", type=int, default=DEFAULT_CONTEXT, help="of each slot, in tokens")
    options = parser.parse_args()
    lifeline.hold()
    lifeline.yield_to_daemon()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    options.threads = options.threads or default_threads()
    os.environ.update(environment(options.threads))  # Before the library is loaded, which reads it once.
    os.umask(0o077)  # The sockets have no guard but their permissions.
    try:
        asyncio.run(_serve(options))
    except Exception as error:
        log.exception("can't serve")
        sys.stderr.write(f"{options.name} can't be served: {error}\n")
        sys.stderr.flush()
        os._exit(LOAD_FAILED)


async def _serve(options: argparse.Namespace) -> None:
    """The library holds the interpreter while it loads, so it listens only afterwards."""
    from tiermesh.kernel.llamacpp.backend import Backend
    from tiermesh.kernel.llamacpp.front import Front

    options.socket.unlink(missing_ok=True)
    backend = Backend.load(
        options.model,
        socket=options.socket.with_name(f"{options.socket.stem}.l.sock"),
        name=options.name,
        threads=options.threads,
        slots=options.slots,
        context_length=options.context_length,
    )
    await Front(backend, name=options.name, digest=options.digest).run(options.socket)


if __name__ == "__main__":
    main()
