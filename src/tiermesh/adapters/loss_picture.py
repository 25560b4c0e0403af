"""A run's loss as a picture, by matplotlib where it is installed.

It is drawn in a process of its own: matplotlib loads slowly, is made for one thread, and a daemon would keep its
memory for ever.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from tiermesh.errors import EnvironmentUnfit, TiermeshError

ADVICE = "matplotlib is not installed on this node; `pip install 'tiermesh[report]'` draws the curve"
PROGRAM = ("-m", "tiermesh.adapters.loss_picture")
DRAWN_S = 60.0
"""A picture takes a second or two, of which loading is the most; a slow machine takes ten times that."""
POINTS_LIMIT = 4000
"""Of a curve: more than a picture has columns."""
WIDTH_IN, HEIGHT_IN, DPI = 8.0, 4.5, 110

Points = Sequence[tuple[int, float]]


def obstacle() -> str | None:
    """Why there can be no picture here; None: there can."""
    return None if find_spec("matplotlib") else ADVICE


async def draw(title: str, losses: Points, held_out: Points) -> bytes:
    """A PNG. Raises `EnvironmentUnfit` without matplotlib, `TiermeshError` when it fails."""
    if (why_not := obstacle()) is not None:
        raise EnvironmentUnfit(why_not)
    asked = json.dumps({"title": title, "losses": _thinned(losses), "held_out": _thinned(held_out)})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DRAWN_S):
            picture, told = await process.communicate(asked.encode())
    except TimeoutError:
        raise TiermeshError(f"the picture was not drawn within {DRAWN_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = told.decode(errors="replace").strip().splitlines()[-1:]
        raise TiermeshError(f"the picture can't be drawn: {' '.join(last) or f'exit code {process.returncode}'}")
    return picture


def _thinned(points: Points) -> list[tuple[int, float]]:
    """Evenly, with the last."""
    stride = -(-len(points) // POINTS_LIMIT) or 1
    return [point for at, point in enumerate(points) if at % stride == 0 or at == len(points) - 1]


def _main() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    asked = json.load(sys.stdin)
    figure, axes = plt.subplots(figsize=(WIDTH_IN, HEIGHT_IN), constrained_layout=True)
    for key, label, style in (("losses", "training", "-"), ("held_out", "held out", "o--")):
        if points := asked[key]:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, style, label=label, markersize=4, linewidth=1.2)
            axes.legend()
    axes.set_title(asked["title"], parse_math=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    figure.savefig(sys.stdout.buffer, dpi=DPI, format="png")


if __name__ == "__main__":
    _main()
