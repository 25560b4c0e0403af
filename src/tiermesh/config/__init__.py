"""What a person configures: the file `cluster.yaml`, the policy in it, and the resolved options of one daemon."""

from __future__ import annotations

from tiermesh.config.address import DEFAULT_PORT, parse_address
from tiermesh.config.file import AdapterEntry, ClusterFile, EngineEntry, ModelEntry, NodeEntry, Precision, find, load
from tiermesh.config.options import DaemonOptions, Flags, LogFormat, LogLevel, default_state_dir, resolve_options
from tiermesh.config.policy import PolicyDocument

__all__ = [
    "DEFAULT_PORT",
    "AdapterEntry",
    "ClusterFile",
    "DaemonOptions",
    "EngineEntry",
    "Flags",
    "LogFormat",
    "LogLevel",
    "ModelEntry",
    "NodeEntry",
    "PolicyDocument",
    "Precision",
    "default_state_dir",
    "find",
    "load",
    "parse_address",
    "resolve_options",
]
