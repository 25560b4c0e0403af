"""How tests are shared out when they run in several processes at once, as `scripts/test` has them do."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent

MESHES = ("network", "daemon/test_chaos.py", "daemon/test_resume_daemons.py")
"""Tests of many daemons and of how soon they notice something: never two of them at a time."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Files stay whole, because their tests share what is slow to make."""
    place = item.path.relative_to(ROOT).as_posix()
    item.add_marker(pytest.mark.xdist_group("meshes" if place.startswith(MESHES) else place))
