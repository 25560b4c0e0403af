"""Tiermesh: any node, one URL; the best machine does the work; pull any plug."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient, SyncClient

    __version__: str

__all__ = ["RemoteClient", "SyncClient", "__version__"]


def __getattr__(name: str) -> object:
    """Load the client, or look up the version, on first use: `import tiermesh` alone stays cheap (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tiermesh")
    if name in ("RemoteClient", "SyncClient"):
        from tiermesh import client

        return getattr(client, name)
    raise AttributeError(f"module 'tiermesh' has no attribute {name!r}")
