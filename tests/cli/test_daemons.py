"""The commands against real daemons: two processes on the loopback interface, and one server behind one of them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tiermesh import SyncClient

LIMIT_S = 30.0
TOKEN = secrets.token_hex(8)
ROOT = Path(__file__).parent.parent.parent
MESH = (sys.executable, "-m", "tiermesh.cli.main")


@dataclass
class Machine:
    """A folder, a cluster, and the daemons that were started in it."""

    folder: Path
    cluster: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        return kept | {"MESH_TOKEN": TOKEN, "MESH_STATE_DIR": str(self.folder / "nobody")}

    def start(self, *command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, cwd=cwd or self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def up(self, name: str, *options: str) -> str:
        """Start a daemon; gives its URL."""
        process = self.start(
            *(*MESH, "up", "--name", name, "--cluster", self.cluster, "--port", "0", "--interface", "127.0.0.1"),
            *("--no-detect", "--state-dir", str(self.folder / name), *options),
        )
        note = self.folder / name / "runtime.json"
        deadline = time.monotonic() + LIMIT_S
        while not note.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"{name} is not ready"
            time.sleep(0.01)
        return str(json.loads(note.read_text())["url"])

    def mesh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*MESH, *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        yield machine
    finally:
        machine.stop()


@pytest.fixture(scope="module")
def url(machine: Machine) -> str:
    """A node without an engine, in a mesh with one that has one."""
    server = machine.start(sys.executable, "-m", "tests.openai_fake", cwd=ROOT)
    assert server.stdout is not None
    engine = server.stdout.readline().strip()
    machine.up("server", "--engine", engine, "--tier", "2")
    url = machine.up("laptop", "--no-engine", "--tier", "0")
    deadline = time.monotonic() + LIMIT_S
    with SyncClient(url, token=TOKEN) as client:
        while not (client.models() and client.cluster().coordinator):
            assert time.monotonic() < deadline, client.cluster()
            time.sleep(0.01)
    return url


def test_status(machine: Machine, url: str) -> None:
    done = machine.mesh("cluster", "status", "--url", url)
    assert done.returncode == 0, done.stderr
    assert f"{machine.cluster} · 2 up · coordinator " in done.stdout
    assert "token required" in done.stdout
    assert "laptop (asked)" in done.stdout
    assert "fake-model" in done.stdout


def test_every_node_is_proved(machine: Machine, url: str) -> None:
    done = machine.mesh("cluster", "test", "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "says one token of fake-model" in done.stdout
    assert "is reached at every address by: laptop" in done.stdout
    assert "is reached at every address by: server" in done.stdout
    assert done.stdout.endswith("checks passed\n")


def test_ask_through_a_node_without_an_engine(machine: Machine, url: str) -> None:
    done = machine.mesh("ask", "hello there", "--url", url, "--temperature", "0", "--max-tokens", "3")
    assert (done.returncode, done.stdout) == (0, "fake: hello there\n"), done.stderr
    assert done.stderr.startswith("— fake-model on server, tier 2, 3 tokens")


def test_a_policy_reaches_every_node(machine: Machine, url: str) -> None:
    (machine.folder / "policy.yaml").write_text("routing: {aliases: {gpt-4o: fake-model}}\n")
    done = machine.mesh("config", "apply", "policy.yaml", "--url", url)
    assert (done.returncode, done.stdout) == (0, 'routing.aliases.gpt-4o: nothing -> "fake-model"\n'), done.stderr
    assert "gpt-4o: fake-model" in machine.mesh("config", "show", "--url", url).stdout
    assert machine.mesh("ask", "hi", "--model", "gpt-4o", "--url", url).stdout == "fake: hi\n"


def test_a_node_is_found_by_mdns(machine: Machine, url: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        (machine.folder / "cluster.yaml").write_text(
            f"cluster: {machine.cluster}\ninterface: 127.0.0.1\nport: {sock.getsockname()[1]}\n"
        )
        done = machine.mesh("ask", "where are you?")
    assert (done.returncode, done.stdout) == (0, "fake: where are you?\n"), done.stderr
    (machine.folder / "cluster.yaml").unlink()
    with SyncClient.discover(cluster=machine.cluster, interface="127.0.0.1", token=TOKEN) as client:
        assert client.health().cluster == machine.cluster


def test_without_the_token_nothing_is_told(machine: Machine, url: str) -> None:
    done = subprocess.run(
        [*MESH, "cluster", "status", "--url", url],
        env={**machine.env, "MESH_TOKEN": "wrong"},
        cwd=machine.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "set MESH_TOKEN" in done.stderr


def test_a_node_that_is_lost_is_named_with_a_remedy(machine: Machine, url: str) -> None:
    """The last test of the module: it takes a node away."""
    victim = machine.up("victim", "--no-engine")
    process = machine.processes[-1]
    with SyncClient(url, token=TOKEN) as client:
        deadline = time.monotonic() + LIMIT_S
        while not any(node.name == "victim" for node in client.cluster().nodes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        while not any(node.name == "victim" and node.state == "down" for node in client.cluster().nodes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    done = machine.mesh("cluster", "test", "--url", url)
    assert done.returncode == 1
    assert "  ✗ is up: marked down\n" in done.stdout
    assert "run `mesh up` on victim" in done.stdout
    assert machine.mesh("cluster", "status", "--url", victim).returncode == 1
