"""Tiermesh: any node, one URL; the best machine does the work; pull any plug."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient, SyncClient

__all__ = ["RemoteClient", "SyncClient", "__version__"]

__version__ = _version("tiermesh")


def __getattr__(name: str) -> object:
    """Load the client on first use: `import tiermesh` alone stays cheap (PEP 562)."""
    if name in ("RemoteClient", "SyncClient"):
        from tiermesh import client

        return getattr(client, name)
    raise AttributeError(f"module 'tiermesh' has no attribute {name!r}")
