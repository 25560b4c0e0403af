from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums have the same order in every test, whatever another one has set."""
    torch.set_num_threads(1)
