"""The rounds as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.gateway.load import Run
from benchmarks.gateway.rounds import Trials

OURS, OTHERS = "tab:blue", "silver"


def draw(trials: Trials, names: Sequence[str], title: str, path: Path) -> None:
    """Three bars for each: medians, with the range of the rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    wanted: list[tuple[str, dict[str, list[Run]], Callable[[Run], float]]] = [
        ("requests/s (log)", trials.busy, lambda run: run.per_s),
        ("one connection: p50, ms (log)", trials.alone, Run.p50_ms),
        ("first event beside other streams: p50, ms (log)", trials.streams, lambda run: run.p50_ms(first=True)),
    ]
    for axes, (what, runs, read) in zip(panels, wanted, strict=True):
        found = [sorted(read(run) for run in runs[name]) for name in names]
        middle = [median(values) for values in found]
        reach = [
            [m - values[0] for m, values in zip(middle, found, strict=True)],
            [values[-1] - m for m, values in zip(middle, found, strict=True)],
        ]
        bars = axes.bar(names, middle, yerr=reach, color=[OURS if name == "tiermesh" else OTHERS for name in names])
        axes.bar_label(bars, fmt="%.3g")
        axes.set_yscale("log")
        axes.set_title(what, fontsize=10)
        axes.tick_params(axis="x", labelrotation=20)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
