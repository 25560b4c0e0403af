"""The inference worker: `python -m tiermesh.kernel.inference --socket PATH --model FOLDER --name NAME --digest D`.

Started and watched by the daemon's supervisor, which holds the other end of standard input. Logs go to stderr.
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

MAX_REASON_CHARACTERS = 300
"""The daemon shows one line of it; the traceback above has the rest."""


def main() -> None:
    """Serve until killed, or until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.inference", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen; an old file is replaced")
    parser.add_argument("--model", type=Path, required=True, help="folder with safetensors, configuration, tokenizer")
    parser.add_argument("--name", required=True, help="what the model is called")
    parser.add_argument("--digest", required=True, help="what the model is, exactly")
    parser.add_argument("--threads", type=int, help="default: the cores this process may run on")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: the faster one here"
    )
    parser.add_argument("--memory-bytes", type=int, metavar="N", help="for the cache of keys and values")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="a LoRA; repeatable")
    options = parser.parse_args()
    lifeline.hold()
    lifeline.yield_to_daemon()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    _limit_threads(options)
    options.socket.unlink(missing_ok=True)
    os.umask(0o077)  # The socket has no guard but its permissions.
    try:
        asyncio.run(_serve(options))
    except Exception as error:
        logging.getLogger(__name__).exception("can't serve")
        why = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
        sys.stderr.write(f"{options.name} can't be served: {type(error).__name__}: {why}\n")
        sys.stderr.flush()
        os._exit(LOAD_FAILED)


def _limit_threads(options: argparse.Namespace) -> None:
    """Before torch is imported, because its libraries read this once."""
    options.threads = options.threads or default_threads()
    os.environ.update(environment(options.threads), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")


async def _serve(options: argparse.Namespace) -> None:
    from tiermesh.kernel.inference.server import Loaded, Server

    adapters = {name: Path(folder) for name, _, folder in (text.partition("=") for text in options.adapter)}

    def load() -> Loaded:
        from tiermesh.kernel.inference.generation import Generator
        from tiermesh.kernel.inference.loading import load

        model = load(
            options.model,
            threads=options.threads,
            precision=options.precision,
            memory_bytes=options.memory_bytes,
            adapters=adapters,
            on_progress=server.loading,
        )
        generator = Generator(model)
        generator.start()
        return Loaded(model, generator)

    server = Server(name=options.name, digest=options.digest, load=load, adapters=tuple(adapters))
    await server.run(options.socket)


if __name__ == "__main__":
    main()
