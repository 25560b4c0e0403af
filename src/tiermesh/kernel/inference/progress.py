"""How far the loading of a model has come, as transformers counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

IMPORTED = 0.2
"""The libraries are there: some seconds, whatever the size of the model."""
WEIGHTS_READ = 0.9
"""What comes then (packing, a first step) takes a second; reading the weights of a large model takes many."""

OnProgress = Callable[[float], None]
"""Told a number from 0 to 1, from the thread that loads."""


def ignored(_: float) -> None:
    """For those who do not want to know."""


@contextmanager
def weights_counted(on_progress: OnProgress) -> Iterator[None]:
    """While open, tell of each weight that transformers reads."""
    previous = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: _Counted(factory(*args, **kwargs), args, on_progress)
    )
    on_progress(IMPORTED)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
    on_progress(WEIGHTS_READ)


class _Counted:
    """A progress bar that also tells us."""

    def __init__(self, bar: Any, args: tuple[Any, ...], on_progress: OnProgress) -> None:
        self._bar = bar
        self._total = len(args[0]) if args and isinstance(args[0], Sized) else 0
        self._on_progress = on_progress

    def __iter__(self) -> Iterator[Any]:
        for count, item in enumerate(self._bar, start=1):
            yield item
            if self._total:
                self._on_progress(IMPORTED + (WEIGHTS_READ - IMPORTED) * count / self._total)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
