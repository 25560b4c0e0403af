"""`mesh health`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.cli.conftest import Mesh
from tests.mesh_fake import ID, OTHER_ID, FakeMesh

GB = 10**9
GPU = {
    "name": "RTX 3090",
    "used_percent": 98.0,
    "memory_used_bytes": 22 * GB,
    "memory_bytes": 24 * GB,
    "temperature_c": 88.0,
    "power_w": 340.4,
}
HOT = {"name": "gpu_temperature", "level": "warning", "message": "a GPU is at 88 °C"}


def node(node_id: str, name: str, health: str, **facts: Any) -> dict[str, Any]:
    return {"id": node_id, "name": name, "state": "up", "health": health, **facts}


@pytest.fixture(autouse=True)
def health(fake: FakeMesh) -> None:
    full = {
        "at": 1.0,
        "cpu_percent": 12.3,
        "cpu_temperature_c": 55.0,
        "memory_used_bytes": 8 * GB,
        "memory_bytes": 32 * GB,
        "disk_used_bytes": 600 * GB,
        "disk_bytes": 1000 * GB,
        "gpus": [GPU],
        "score": 75,
        "alerts": [HOT],
    }
    fake.health = {
        "node": "alpha",
        "level": "warning",
        "nodes": [
            node(ID, "alpha", "degraded", round_trip_ms=0.0, now=full),
            node(OTHER_ID, "beta", "healthy", round_trip_ms=2.44, now={"at": 1.0, "score": 100}),
            node("c" * 32, "attic", "unknown", state="down", problem="it is down"),
        ],
    }


def test_every_node_has_one_line_with_what_is_known_or_why_not(mesh: Mesh) -> None:
    done = mesh("health")
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert lines[0] == ["warning · 2 of 3 nodes answer alpha · unreachable: attic"]
    assert lines[2] == ["name", "health", "cpu", "memory", "disk", "gpu", "latency", "about"]
    gpu = "RTX 3090 98 % 88 °C 22.0 GB of 24.0 GB 340 W"
    parts = ["8.0 GB of 32.0 GB", "600 GB of 1.0 TB"]
    assert lines[4] == ["alpha", "degraded 75", "12 % 55 °C", *parts, gpu, "-", "a GPU is at 88 °C"]
    assert lines[5] == ["beta", "healthy 100", "-", "-", "-", "-", "2.4 ms"]
    assert lines[6] == ["attic", "unreachable", "-", "-", "-", "-", "-", "it is down"]
    assert done.exit_code == 0


def test_critical_is_a_failure_for_scripts(fake: FakeMesh, mesh: Mesh) -> None:
    fake.health["level"] = "critical"
    assert mesh("health").exit_code == 1


def test_as_json_it_is_what_the_nodes_said(fake: FakeMesh, mesh: Mesh) -> None:
    assert json.loads(mesh("health", "--json").stdout)["nodes"][0]["now"]["gpus"] == [GPU]
    mesh("health", "--json", "--history")
    assert [path for _, path, _, _ in fake.requests if path == "/api/health"] == ["/api/health"] * 2
