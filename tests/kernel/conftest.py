from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests import tiny_model
from tests.kernel.workers import WorkerProcess, start_worker, stop_worker, wait_until_ready


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def worker(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker for all tests that leave it as it was."""
    worker = start_worker(tiny_folder, tmp_path_factory.mktemp("w") / "s")
    try:
        wait_until_ready(worker)
        yield worker
    finally:
        stop_worker(worker)


@pytest.fixture
def own_worker(tiny_folder: Path, tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker that a test may end; not awaited."""
    worker = start_worker(tiny_folder, tmp_path / "s")
    try:
        yield worker
    finally:
        stop_worker(worker)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums have the same order in every test, whatever another one has set."""
    torch.set_num_threads(1)
