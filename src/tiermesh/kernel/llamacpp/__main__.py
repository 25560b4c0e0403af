"""The worker for GGUF: `python -m tiermesh.kernel.llamacpp --socket PATH --model FILE --name NAME --digest D`.

llama.cpp's own server computes, in this process; what stands before it speaks as the other worker does. Started and
watched by the daemon's supervisor, which holds the other end of standard input. Logs go to stderr.
"""

from __future__ import annotations

import argparse

from tiermesh.kernel import program

DEFAULT_SLOTS = 8
DEFAULT_CONTEXT = 4096
"""Of each slot. All slots' memory is set apart at the start, so whoever knows the machine chooses better."""


def main() -> None:
    """Serve until killed, or until standard input ends."""
    parser = program.parser("tiermesh.kernel.llamacpp", __doc__, model="a GGUF file")
    parser.add_argument("--slots", type=int, default=DEFAULT_SLOTS, help="sequences that are computed at once")
    parser.add_argument("--context-length", type=int, default=DEFAULT_CONTEXT, help="of each slot, in tokens")
    program.run(parser.parse_args(), _serve)


async def _serve(options: argparse.Namespace) -> None:
    """The library holds the interpreter while it loads, so it listens only afterwards."""
    from tiermesh.kernel.llamacpp.backend import Backend
    from tiermesh.kernel.llamacpp.front import Front

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
