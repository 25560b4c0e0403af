"""The inference worker: `python -m tiermesh.kernel.inference --socket PATH --model FOLDER --name NAME --digest D`.

Started and watched by the daemon's supervisor, which holds the other end of standard input. Logs go to stderr.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tiermesh.kernel import program


def main() -> None:
    """Serve until killed, or until standard input ends."""
    model = "folder with safetensors, configuration, tokenizer"
    parser = program.parser("tiermesh.kernel.inference", __doc__, model=model)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: the faster one here"
    )
    parser.add_argument("--memory-bytes", type=int, metavar="N", help="for the cache of keys and values")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="a LoRA; repeatable")
    program.run(parser.parse_args(), _serve)


async def _serve(options: argparse.Namespace) -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")  # As the threads: read once.
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
            digest=options.digest,
            on_progress=server.loading,
        )
        generator = Generator(model)
        generator.start()
        return Loaded(model, generator)

    server = Server(name=options.name, digest=options.digest, load=load, adapters=tuple(adapters))
    await server.run(options.socket)


if __name__ == "__main__":
    main()
