"""Ask a mesh from Python: `RemoteClient` for asyncio, `SyncClient` for scripts and notebooks."""

from __future__ import annotations

from tiermesh.client.jobs import Data, TrainingJob
from tiermesh.client.remote import RemoteClient
from tiermesh.client.stream import Stream
from tiermesh.client.sync import SyncClient, SyncStream

__all__ = ["Data", "RemoteClient", "Stream", "SyncClient", "SyncStream", "TrainingJob"]
