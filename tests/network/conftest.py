"""Networks of namespaces for tests; skipped, saying why, where there can be none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from tests.network.lan import Lan
from tests.network.netns import obstacle

_obstacle = cache(obstacle)


@pytest.fixture
def make_lan() -> Iterator[Callable[[int], Lan]]:
    """Makes networks of so many nodes, and removes them after the test, also when it fails."""
    why_not = _obstacle()
    if why_not is not None:
        pytest.skip(why_not)
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(Lan(size))


@pytest.fixture
def lan(make_lan: Callable[[int], Lan]) -> Lan:
    """Five nodes on one switch."""
    return make_lan(5)
