"""`python -m benchmarks.jobs`: a flood of small jobs; exit status 1 when a row of the table does not hold."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from pathlib import Path

from tests import tiny_model

from benchmarks.jobs.flood import MODEL, run
from benchmarks.jobs.verdicts import judge, table
from benchmarks.training.machine import Others


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=3)
    options = parser.parse_args()
    others = Others()
    with tempfile.TemporaryDirectory(prefix="bench-jobs-") as folder:
        model = tiny_model.build_folder(Path(folder) / MODEL)
        flood = asyncio.run(run(Path(folder), model, jobs=options.jobs, clients=options.clients, nodes=options.nodes))
        rows = judge(flood)
        if not all(row.holds for row in rows):
            for log in sorted(Path(folder).glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
    name = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    print(f"\nAll nodes on one machine: {name}; others took {others.share():.0%} of it.\n\n{table(rows)}")
    sys.exit(not all(row.holds for row in rows))


if __name__ == "__main__":
    main()
