"""Who stands between load and upstream, each started as its own documents say, with one process to work in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateway.exchange import MODEL, answer, question
from benchmarks.gateway.load import Target, problem_of
from benchmarks.gateway.wire import Connection

HOST = "127.0.0.1"
READY_S = 120.0
"""LiteLLM imports for half a minute."""


class Contender:
    """A program between load and upstream; without a command, the upstream itself."""

    def __init__(self, name: str, folder: Path, *, exact: bool = True) -> None:
        self.name = name
        self.exact = exact
        self.port = _free_port()
        self.headers: tuple[tuple[str, str], ...] = ()
        self._folder = folder
        self._process: psutil.Popen | None = None

    @property
    def target(self) -> Target:
        return Target(name=self.name, host=HOST, port=self.port, exact=self.exact, headers=self.headers)

    def command(self) -> list[str]:
        """May write the files it names."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    async def start(self) -> None:
        """Start, and wait until a question is answered right. Raises `RuntimeError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "output.log").open("wb") as output:
            self._process = psutil.Popen(
                self.command(),
                env=os.environ | self.environment(),
                cwd=self._folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ends, problem = time.monotonic() + READY_S, ""
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(OSError):
                connection = await Connection.open(HOST, self.port)
                problem = await self._problem(connection) or ""
                connection.close()
                if not problem:
                    return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"{self.name} does not answer {problem}; see {self._folder}/output.log")

    def stop(self) -> None:
        """End it and what it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(psutil.TimeoutExpired):
                self._process.wait(10)
                return
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def cpu_s(self) -> float:
        """Spent so far, by all its processes."""
        return sum(sum(one.cpu_times()[:2]) for one in self._processes())

    def memory_bytes(self) -> int:
        """Resident, of all its processes."""
        return sum(one.memory_info().rss for one in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)] if self._process else []

    async def _problem(self, connection: Connection) -> str | None:
        try:
            reply = await asyncio.wait_for(connection.ask(self.target.request(question(0))), 10)
        except (TimeoutError, ConnectionError) as error:
            return repr(error)
        return problem_of(reply, answer(0), exact=self.exact)


class Upstream(Contender):
    """The model server, asked directly."""

    def __init__(self, folder: Path, event_gap_ms: float) -> None:
        super().__init__("direct", folder)
        self._event_gap_ms = event_gap_ms
        self.url = f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        module = ["-m", "benchmarks.gateway.upstream", str(self.port), "--event-gap-ms", str(self._event_gap_ms)]
        return [sys.executable, *module]

    def environment(self) -> Mapping[str, str]:
        return _HERE


class Bare(Contender):
    """aiohttp's server and client, and nothing else."""

    def __init__(self, folder: Path, upstream: str) -> None:
        super().__init__("bare aiohttp", folder)
        self._upstream = upstream

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gateway.bare", str(self.port), self._upstream]

    def environment(self) -> Mapping[str, str]:
        return _HERE


class Nginx(Contender):
    """A reverse proxy with kept connections and one worker."""

    def __init__(self, folder: Path, upstream: str, program: str) -> None:
        super().__init__("nginx", folder)
        self._upstream, self._program = upstream.removeprefix("http://"), program

    def command(self) -> list[str]:
        places = "".join(
            f"    {kind}_temp_path {self._folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self._folder / "nginx.conf").write_text(
            f"daemon off;\nworker_processes 1;\npid {self._folder}/pid;\nerror_log {self._folder}/error.log;\n"
            "events { worker_connections 2048; }\n"
            f"http {{\n{places}"
            "    access_log off;\n    keepalive_requests 1000000;\n"
            f"    upstream model {{ server {self._upstream}; keepalive 256; keepalive_requests 1000000; }}\n"
            f"    server {{\n        listen {HOST}:{self.port};\n        location / {{\n"
            "            proxy_pass http://model;\n            proxy_http_version 1.1;\n"
            '            proxy_set_header Connection "";\n            proxy_buffering off;\n'
            "        }\n    }\n}\n"
        )
        return [self._program, "-c", f"{self._folder}/nginx.conf", "-p", str(self._folder)]


class LiteLLM(Contender):
    """Its proxy as a command starts it: local prices, no database, no callbacks, one worker."""

    def __init__(self, folder: Path, upstream: str, program: str) -> None:
        super().__init__("LiteLLM", folder, exact=False)
        self._upstream, self._program = upstream, program
        self._key = f"sk-{secrets.token_hex(32)}"
        self.headers = (("Authorization", f"Bearer {self._key}"),)

    def command(self) -> list[str]:
        where = {"model": f"openai/{MODEL}", "api_base": f"{self._upstream}/v1", "api_key": "none"}
        config: dict[str, Any] = {
            "model_list": [{"model_name": MODEL, "litellm_params": where}],
            "litellm_settings": {"callbacks": [], "telemetry": False},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        }
        (self._folder / "config.yaml").write_text(json.dumps(config))
        where_to = ["--host", HOST, "--port", str(self.port)]
        return [self._program, "--config", "config.yaml", "--num_workers", "1", *where_to]

    def environment(self) -> Mapping[str, str]:
        return {
            "LITELLM_MASTER_KEY": self._key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_LOG": "ERROR",
            "NO_PROXY": "*",
        }


class Tiermesh(Contender):
    """`mesh up`, with the upstream as its engine."""

    def __init__(self, folder: Path, upstream: str) -> None:
        super().__init__("tiermesh", folder)
        self._upstream = upstream

    def command(self) -> list[str]:
        mesh = Path(sys.executable).with_name("mesh")
        where = ["--interface", HOST, "--port", str(self.port), "--state-dir", str(self._folder / "state")]
        alone = ["--cluster", secrets.token_hex(8), "--no-detect"]
        return [str(mesh), "up", *where, *alone, "--engine", self._upstream]


def contenders(folder: Path, upstream: Upstream, *, nginx: str | None, litellm: Path | None) -> list[Contender]:
    """In the order of the table; those that are not on this machine are left out."""
    found: list[Contender] = [upstream]
    if nginx is not None:
        found.append(Nginx(folder / "nginx", upstream.url, nginx))
    found.append(Bare(folder / "bare", upstream.url))
    found.append(Tiermesh(folder / "tiermesh", upstream.url))
    if litellm is not None:
        found.append(LiteLLM(folder / "litellm", upstream.url, str(litellm)))
    return found


def find_nginx() -> str | None:
    """Its program, also where only administrators' paths lead."""
    return os.environ.get("NGINX") or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


_HERE = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
