"""`mesh demo`: a mesh on this machine that is found, asked, hit, taught, hit again, and asked again. Everything it says
is measured.

It uses the loopback interface, a random cluster name and a temporary folder, and stops all that it started.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tiermesh.cli.demo.story import StepFailed, print_logs


def run(*, keep_logs: bool = False, train: bool = True) -> int:
    """Show it; 0 when every step was as promised. `train`: the second act, which takes minutes."""
    from tiermesh.cli.demo.acts import play

    with tempfile.TemporaryDirectory(prefix="tiermesh-demo-") as folder:
        try:
            asyncio.run(play(Path(folder), train=train))
        except StepFailed as error:
            print(f"\ndemo: {error}", file=sys.stderr)
            if keep_logs:
                print_logs(Path(folder))
            return 1
        except KeyboardInterrupt:
            return 130
    return 0
