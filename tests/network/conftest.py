"""Networks of namespaces and disks for tests; skipped, saying why, where there can be none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from tests.network import disk, netns
from tests.network.disk import Disk
from tests.network.lan import Lan

_no_lan = cache(netns.obstacle)
_no_disk = cache(disk.obstacle)


@pytest.fixture
def make_lan() -> Iterator[Callable[[int], Lan]]:
    """Makes networks of so many nodes, and removes them after the test, also when it fails."""
    why_not = _no_lan()
    if why_not is not None:
        pytest.skip(why_not)
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(Lan(size))


@pytest.fixture
def lan(make_lan: Callable[[int], Lan]) -> Lan:
    """Five nodes on one switch."""
    return make_lan(5)


@pytest.fixture
def make_disk() -> Iterator[Callable[[Path], Disk]]:
    """Mounts a small disk at a folder, and removes it after the test, also when it fails."""
    why_not = _no_disk()
    if why_not is not None:
        pytest.skip(why_not)
    with ExitStack() as stack:
        yield lambda place: stack.enter_context(Disk(place))
