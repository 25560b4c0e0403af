"""A thousand nodes join, lose their coordinator, and agree again; every message costs its ends 0.1 ms."""

from __future__ import annotations

import pytest

from tiermesh.core.constants import TIMING
from tiermesh.sim.large import run_large

NODES = 1000


@pytest.mark.slow
@pytest.mark.long
def test_a_thousand_nodes() -> None:
    report = run_large(NODES)
    assert report.value("agreed after the last start") <= 2.0
    assert report.value("agreed after SIGKILL of the coordinator") <= 2.0
    assert report.value("one more joined") <= 1.0
    assert report.value("agreed after silence of the coordinator") <= TIMING.silence(NODES) + 2.0
    assert report.value("elections") == 3, "one for each coordinator that was needed"
    assert report.value("messages a node at rest") <= 3.0
    assert report.value("views sent for it, a node") <= 3.0
    assert report.value("bytes a view") <= 1000, "a view of one change is a delta"
