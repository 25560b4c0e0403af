"""llama.cpp's own server on a Unix socket, through xllamacpp, until standard input ends."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tiermesh.kernel import lifeline


def main() -> None:
    """Serve with llama.cpp's defaults, but for what is asked for here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context-length", type=int, required=True, help="of each slot")
    options = parser.parse_args()
    lifeline.yield_to_daemon()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.hostnames = [str(options.socket)]
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.context_length
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.verbosity = 0
    server = xllamacpp.Server(params)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main()
