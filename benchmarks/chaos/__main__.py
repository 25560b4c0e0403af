"""`python -m benchmarks.chaos --seconds 300 --seed 7`: exit status 1 when there is a violation."""

from __future__ import annotations

import argparse
import asyncio
import sys

from benchmarks.chaos.storm import run

SECONDS = 300.0
SEED = 1


def main() -> None:
    """Run, and print the verdict; with violations, all that was done as well."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    outcome = asyncio.run(run(options.seconds, options.seed))
    print(f"seed {options.seed}, {options.seconds:g} s\n{outcome.told}")
    if outcome.verdict.violations or outcome.left_over:
        print("\n".join(outcome.journal.lines))
        sys.exit(1)


if __name__ == "__main__":
    main()
