"""What a shell completes: names of jobs, models and methods. Silent and soon, whatever is wrong."""

from __future__ import annotations

import asyncio
import os
from typing import get_args

import typer

WAIT_S = 1.0
"""Longer, and a person wonders what became of the key that was pressed."""


def jobs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of the mesh's jobs, the newest first, with their state."""
    try:
        found = asyncio.run(asyncio.wait_for(_jobs(ctx.params.get("url") or os.environ.get("MESH_URL")), WAIT_S))
    except Exception:  # noqa: BLE001  a shell's prompt is no place for errors
        return []
    return [(name, state) for name, state in reversed(found) if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Names of the models that are known here, and can be trained."""
    try:
        return [name for name in trainable() if name.startswith(incomplete)]
    except Exception:  # noqa: BLE001  see `jobs`
        return []


def methods(incomplete: str) -> list[str]:
    """Ways of training."""
    from tiermesh.protocol.training import Method

    return [method for method in get_args(Method) if method.startswith(incomplete)]


def trainable() -> list[str]:
    """Those that are here or could be had, but for files that only llama.cpp reads."""
    from tiermesh.adapters.catalogue import CATALOGUE
    from tiermesh.adapters.model_source import list_models

    return [model.name for model in list_models() if model.name not in CATALOGUE or CATALOGUE[model.name].converted]


async def _jobs(url: str | None) -> list[tuple[str, str]]:
    from tiermesh.cli import connect

    async with connect.open_mesh(url, timeout_s=WAIT_S) as mesh:
        return [(job.name, job.state) for job in await mesh.jobs()]
