"""How tests are shared out when they run in several processes at once, as `scripts/test` has them do.

Files stay whole, because their tests share what is slow to make. Tests of many daemons and of how soon they notice
something are one unit, begun first: never two of them at a time. Properties are tried with the same examples each time,
however slow the machine is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

ROOT = Path(__file__).parent

MESHES = (
    "network/",
    "cli/test_jobs.py",
    "daemon/test_chaos.py",
    "daemon/test_clients_openai_tuning.py",
    "daemon/test_jobs_gates.py",
    "daemon/test_jobs_mesh.py",
    "daemon/test_resume_daemons.py",
    "daemon/test_serving_daemons.py",
    "daemon/test_training_daemon.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Meshes first: they are what takes longest."""
    items.sort(key=lambda item: not _is_mesh(item.path.relative_to(ROOT).as_posix()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's own groups need a name in a test's id, which pytest 9 no longer takes."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].removeprefix("tests/")
            return "meshes" if _is_mesh(file) else file

    config.option.loadscopereorder = False
    return Units(config, log)


def _is_mesh(file: str) -> bool:
    return file.startswith(MESHES)
