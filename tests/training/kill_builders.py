"""Kills builders of a corpus, one at each thing that they ask of the system, and says what became of the cache.

A program of its own: it forks, which a process with torch's threads must not.

    python -m tests.training.kill_builders MODEL DATA FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock")
"""Audit events of CPython: between two of them a builder changes nothing that another process could see but sizes."""
MOST_EVENTS = 1000
"""A builder that does more of them is not the one that was written."""


def builder(model: Path, data: Path) -> Callable[[Path], str]:
    """What opens the corpus of this data in a cache, and gives its digest."""
    from transformers import AutoTokenizer

    from tiermesh.kernel.training.data.coding import job_of
    from tiermesh.kernel.training.data.corpus import open_corpus
    from tiermesh.protocol.training import TrainingSpec

    job = job_of(TrainingSpec(model_name="m", dataset_path="d"), AutoTokenizer.from_pretrained(model))

    def build(cache: Path) -> str:
        corpus = open_corpus(data, job, cache=cache)
        assert corpus.documents == len(corpus.lines) > 0
        assert int(corpus.bounds[-1]) == len(corpus.tokens) == len(corpus.learned)
        return corpus.digest

    return build


def child(work: Callable[[], object], *, kill_at: int | None = None) -> int:
    """The exit status of a fork that works and, at the given event, kills itself."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    seen = 0

    def watch(event: str, _: object) -> None:
        nonlocal seen
        if event in WATCHED:
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def main(model: Path, data: Path, folder: Path) -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]
    build = builder(model, data)
    expected = build(folder / "whole")

    def finishes(cache: Path) -> None:
        assert build(cache) == expected
        assert not list((cache / "staging").iterdir())

    killed = good = 0
    for event in range(1, MOST_EVENTS):
        cache = folder / str(event)
        status = child(partial(build, cache), kill_at=event)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            break
        killed += 1
        good += child(partial(finishes, cache)) == 0
    print(json.dumps({"killed": killed, "good": good}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
