"""A scripted trial of a run, with the real one's command line and answer, without a model.

`python -m tests.estimate_fake RUN_FOLDER --estimate --threads N` appends its plan to `$ESTIMATE_FAKE/started`, waits
for `$ESTIMATE_FAKE/hold` to go away, and answers what `$ESTIMATE_FAKE/answer.json` says: `{"estimate", "rows"}` or
`{"failed": event}`. When it begins and ends stands in `$ESTIMATE_FAKE/turns`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

PROGRAM = (sys.executable, "-m", "tests.estimate_fake")
VARIABLE = "ESTIMATE_FAKE"


def main() -> None:
    script, folder = Path(os.environ[VARIABLE]), Path(sys.argv[1])
    assert sys.argv[2] == "--estimate"
    _append(script / "turns", "begins")
    _append(script / "started", json.dumps(json.loads((folder / "spec.json").read_text())))
    while (script / "hold").exists():
        time.sleep(0.01)
    answer = json.loads((script / "answer.json").read_text())
    if "failed" in answer:
        _append(folder / "events.jsonl", json.dumps({"event": "failed", **answer["failed"]}))
        sys.exit(3)
    if answer["rows"]:
        _append(
            folder / "events.jsonl", json.dumps({"event": "data", "records": 1, "tokens": 1, "rows": answer["rows"]})
        )
    (folder / "estimate.json").write_text(json.dumps(answer["estimate"]))
    _append(script / "turns", "ends")


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
