"""The plan of the run that a folder holds, where it holds one."""

from __future__ import annotations

from tiermesh.errors import InvalidSpec
from tiermesh.protocol.run_folder import RunFolder, RunPlan


def begun_plan(folder: RunFolder) -> RunPlan | None:
    """Raises `InvalidSpec` for a folder of something else."""
    if not folder.plan.exists():
        if folder.path.exists() and _is_taken(folder):
            raise InvalidSpec(f"{folder.path} exists and holds no run; take another --out", param="out")
        return None
    try:
        return folder.read_plan()
    except (OSError, ValueError) as error:
        raise InvalidSpec(
            f"{folder.plan} can't be read as a run's plan ({type(error).__name__}); take another --out", param="out"
        ) from error


def _is_taken(folder: RunFolder) -> bool:
    """By anything but the lock of a run that never began?"""
    return not folder.path.is_dir() or any(path != folder.lock for path in folder.path.iterdir())
