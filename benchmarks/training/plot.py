"""Speed and memory as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.training.report import MIB
from benchmarks.training.rounds import Measured


def draw(parts: Mapping[str, Mapping[str, Measured]], title: str, path: Path) -> None:
    """A column for each part: tokens a second with the range of the rounds; below, the peak memory. Raises
    `ImportError` where matplotlib is not installed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(parts), figsize=(6 * len(parts), 7), constrained_layout=True, squeeze=False)
    for column, (name, found) in enumerate(parts.items()):
        names = list(found)
        colours = ["tab:orange" if one.startswith("tiermesh") else "tab:grey" for one in names]
        speeds = [one.speed for one in found.values()]
        below = [max(0.0, one.speed - one.speeds[0]) for one in found.values()]
        above = [max(0.0, one.speeds[-1] - one.speed) for one in found.values()]
        upper, lower = axes[0][column], axes[1][column]
        upper.barh(names, speeds, xerr=[below, above], color=colours, capsize=3)
        upper.set_title(f"{name}: tokens/s")
        lower.barh(names, [one.peak_bytes / MIB for one in found.values()], color=colours)
        lower.set_title("peak memory, MiB")
        for one in (upper, lower):
            one.invert_yaxis()
            one.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
