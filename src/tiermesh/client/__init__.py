"""Ask a mesh from Python: `RemoteClient` for asyncio, `SyncClient` for scripts and notebooks."""

from __future__ import annotations

from tiermesh.client.data import Data
from tiermesh.client.jobs import TrainingJob
from tiermesh.client.remote import RemoteClient
from tiermesh.client.stream import Stream
from tiermesh.client.sync import SyncClient, SyncStream
from tiermesh.client.sync_job import SyncJob

__all__ = ["Data", "RemoteClient", "Stream", "SyncClient", "SyncJob", "SyncStream", "TrainingJob"]
