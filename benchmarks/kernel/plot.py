"""The rounds as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.kernel.rounds import Trials


def draw(trials: Trials, engines: Sequence[str], counts: Sequence[int], title: str, path: Path) -> None:
    """Speed and first token over requests at once, medians with the range of the rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speed, first) = plt.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    for engine in engines:
        rounds = [trials.speeds(engine, count) for count in counts]
        style = {"marker": "o", "linewidth": 3 if engine == "tiermesh" else 1.3, "label": engine}
        (line,) = speed.plot(counts, [median(speeds) for speeds in rounds], **style)
        speed.fill_between(counts, [s[0] for s in rounds], [s[-1] for s in rounds], alpha=0.12, color=line.get_color())
        first.plot(counts, [trials.first(engine, count) * 1000 for count in counts], **style)
    for axes, what in ((speed, "tokens/s, all requests together"), (first, "first token, ms (median)")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("requests at once")
        axes.set_title(what)
        axes.grid(alpha=0.3)
    first.set_yscale("log")
    speed.set_ylim(bottom=0)
    speed.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
