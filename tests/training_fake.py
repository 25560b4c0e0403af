"""A scripted training worker: the real one's command line, events and exits, without a model.

`python -m tests.training_fake RUN_FOLDER --threads N [...]` plays the line of `RUN_FOLDER/script.json` (a list of them,
one a start, the last one again and again), each a list of acts:

- `{"say": {event}}` appends an event; `{"tear": text}` appends text without an end of line;
- `{"signal": n}` ends it by that signal, `{"exit": n}` by that code; `{"print": text}` is its last words;
- `{"until_told": true}` waits for SIGTERM; `{"until": name}` for a file in the folder.

Where the folder has none, its script is `script-FOLDER.json` beside it: a folder that is there has begun.

It appends its arguments to `RUN_FOLDER/started`, a line a start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "tests.training_fake")


def write_script(folder: Path, *lines: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.json").write_text(json.dumps(lines))


def write_later_script(folder: Path, *lines: list[dict[str, Any]]) -> None:
    """For a folder that is not there yet."""
    _later(folder).write_text(json.dumps(lines))


def starts(folder: Path) -> list[list[str]]:
    """The arguments of each start, without the folder."""
    path = folder / "started"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    told = False

    def hear(*_: object) -> None:
        nonlocal told
        told = True

    signal.signal(signal.SIGTERM, hear)
    folder = Path(sys.argv[1])
    before = len(starts(folder))
    with (folder / "started").open("a") as file:
        file.write(json.dumps(sys.argv[2:]) + "\n")
    script = folder / "script.json"
    lines = json.loads((script if script.exists() else _later(folder)).read_text())
    for act in lines[min(before, len(lines) - 1)]:
        match act:
            case {"say": event}:
                _append(folder, json.dumps(event) + "\n")
            case {"tear": text}:
                _append(folder, text)
            case {"print": text}:
                print(text, flush=True)
            case {"until_told": _}:
                while not told:
                    time.sleep(0.01)
            case {"until": name}:
                while not (folder / name).exists():
                    time.sleep(0.01)
            case {"signal": number}:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            case {"exit": code}:
                sys.exit(code)


def _later(folder: Path) -> Path:
    return folder.with_name(f"script-{folder.name}.json")


def _append(folder: Path, text: str) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(text)


if __name__ == "__main__":
    main()
