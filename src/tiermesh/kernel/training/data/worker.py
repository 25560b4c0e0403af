"""A process that tokenises: a job comes first, then blocks, until there are no more; each is answered in turn."""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Pickles come and go between this process and the parent that started it, and nobody else."""
    # Tokenizers need no torch, and without it transformers is there in a third of the time and of the memory.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from tiermesh.kernel.training.data.coding import BlockCoder

    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What libraries print must not come between the answers.
    coder = BlockCoder(pickle.load(incoming))  # noqa: S301
    while True:
        try:
            raws = pickle.load(incoming)  # noqa: S301
        except EOFError:
            return
        pickle.dump(coder.code(raws), outgoing)
        outgoing.flush()


if __name__ == "__main__":
    main()
