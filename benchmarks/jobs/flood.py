"""Many small jobs at once, submitted by several clients, and prompts to the coordinator all the while."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.failover.daemons import Machine, coordinator_of, started, until, until_well
from benchmarks.jobs.verdicts import ENDED_S, Flood
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid

MODEL = "tiny"
PROMPT_EVERY_S = 1.0
PROMPT_LIMIT_S = 30.0
QUIET_PROMPTS = 20
LOOK_S = 2.0
SUBMIT_LIMIT_S = 120.0
OVER = frozenset({"completed", "failed", "cancelled", "refused"})
SPEC: dict[str, Any] = {
    "model_name": MODEL,
    "seq_len": 32,
    "max_steps": 2,
    "micro_batch_size": 2,
    "precision": "fp32",
    "eval_fraction": 0,
    "save_interval": 100,
    "lora": {"r": 4},
}
ROWS = "".join(json.dumps({"prompt": f"after {n}?", "completion": f"{n + 1}"}) + "\n" for n in range(32))
CONFIG: dict[str, Any] = {
    "precision": "fp32",
    "evaluation": {"max_final_loss": "any", "max_gap": "any", "canary": False},
}
"""A random model meets no threshold after two steps."""


async def run(folder: Path, model: Path, *, jobs: int, clients: int, nodes: int) -> Flood:
    """Start the mesh, flood it, and measure."""
    config = folder / "cluster.yaml"
    config.write_text(json.dumps(CONFIG))
    options = ("--config", str(config), "--model", str(model))
    names = {f"n{number}": options for number in range(nodes)}
    flood = Flood(jobs, clients, nodes)
    async with started(folder, names) as machines, aiohttp.ClientSession() as http:
        await until_well(http, machines.values(), warm=[])
        leader = machines[await _leader(http, machines)]
        await _until_answers(http, leader)
        for _ in range(QUIET_PROMPTS):
            await _prompt(http, leader, flood.quiet_s, flood.prompts_failed)
        prompting = asyncio.create_task(_keep_prompting(http, leader, flood))
        try:
            await _submit_all(machines, flood)
            await _until_ended(http, leader, flood)
        finally:
            prompting.cancel()
            await asyncio.gather(prompting, return_exceptions=True)
    return flood


async def _leader(http: aiohttp.ClientSession, machines: Mapping[str, Machine]) -> str:
    name: str | None = None

    async def known() -> bool:
        nonlocal name
        name = await coordinator_of(http, machines.values())
        return name is not None

    await until(known)
    assert name is not None
    return name


async def _submit_all(machines: Mapping[str, Machine], flood: Flood) -> None:
    """All clients at once, each with its own connections, to the nodes in turn."""
    urls = [machine.url for machine in machines.values()]
    shares = [range(client, flood.jobs, flood.clients) for client in range(flood.clients)]
    began = time.monotonic()
    await asyncio.gather(*(_client(urls[at % len(urls)], share, flood, began) for at, share in enumerate(shares)))


async def _client(url: str, share: range, flood: Flood, began: float) -> None:
    limit = aiohttp.ClientTimeout(total=SUBMIT_LIMIT_S)
    async with aiohttp.ClientSession(url, timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(_submit(http, number, flood, began) for number in share))


async def _submit(http: aiohttp.ClientSession, number: int, flood: Flood, began: float) -> None:
    ident = make_ulid(int(time.time() * 1000), os.urandom(CHANCE_BYTES))
    body = {
        "id": ident,
        "name": f"flood-{number}",
        "spec": SPEC | {"seed": number},
        "data": {"name": "rows.jsonl", "text": ROWS},
    }
    try:
        async with http.post("/api/train", json=body) as response:
            told = await response.json()
            if response.status == 200:
                flood.accepted_s.append(time.monotonic() - began)
            else:
                flood.refused.append(f"HTTP {response.status}: {told['error']['message']}")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        flood.refused.append(f"{type(error).__name__}: {error}")


async def _until_ended(http: aiohttp.ClientSession, leader: Machine, flood: Flood) -> None:
    began = time.monotonic() - max(flood.accepted_s, default=0.0)
    listed: list[dict[str, Any]] = []
    while time.monotonic() < began + ENDED_S:
        listed = await _listed(http, leader) or listed
        if len(listed) >= len(flood.accepted_s) and all(job["state"] in OVER for job in listed):
            flood.ended_s = time.monotonic() - began
            break
        print(f"{time.monotonic() - began:6.0f} s: {_counted(listed)}", flush=True)
        await asyncio.sleep(LOOK_S)
    flood.states = [job["state"] for job in listed]
    for job in listed:
        async with http.get(f"{leader.url}/api/jobs/{job['id']}") as response:
            attempts = (await response.json())["attempts"]
        flood.attempts += len(attempts)
        flood.results.append(sum(attempt["state"] == "completed" for attempt in attempts))


def _counted(listed: list[dict[str, Any]]) -> str:
    states = [job["state"] for job in listed]
    return ", ".join(f"{states.count(state)} {state}" for state in sorted({*states}))


async def _listed(http: aiohttp.ClientSession, leader: Machine) -> list[dict[str, Any]]:
    try:
        async with http.get(f"{leader.url}/api/jobs", timeout=aiohttp.ClientTimeout(total=30)) as response:
            jobs: list[dict[str, Any]] = (await response.json())["jobs"]
            return jobs
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return []


async def _until_answers(http: aiohttp.ClientSession, leader: Machine) -> None:
    """The model is loaded by now."""

    async def answers() -> bool:
        failed: list[str] = []
        await _prompt(http, leader, [], failed)
        return not failed

    await until(answers)


async def _keep_prompting(http: aiohttp.ClientSession, leader: Machine, flood: Flood) -> None:
    while True:
        await _prompt(http, leader, flood.prompts_s, flood.prompts_failed)
        await asyncio.sleep(PROMPT_EVERY_S)


async def _prompt(http: aiohttp.ClientSession, leader: Machine, answered_s: list[float], failed: list[str]) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    asked = time.monotonic()
    try:
        limit = aiohttp.ClientTimeout(total=PROMPT_LIMIT_S)
        async with http.post(f"{leader.url}/v1/chat/completions", json=body, timeout=limit) as response:
            told = await response.text()
            if response.status == 200:
                answered_s.append(time.monotonic() - asked)
            else:
                failed.append(f"HTTP {response.status}: {told[:200]}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        failed.append(f"{type(error).__name__}: {error}")
