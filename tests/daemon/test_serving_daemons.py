"""From a submission to an answer by what it taught, over real daemons and workers with a tiny model."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemon.training_daemon import LIMIT_S, SPEC, Machine, data

from tiermesh.client import RemoteClient
from tiermesh.errors import TiermeshError

torch = pytest.importorskip("torch")
from peft import PeftModel  # noqa: E402
from tests import tiny_model  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks
]
QUESTION = "what does the fox do"
TOKENS = 24
LEARNT = SPEC | {"num_epochs": 4, "learning_rate": 2e-2}
"""Enough to change what is said."""


@asynccontextmanager
async def two_machines(folder: Path, model: Path) -> AsyncIterator[tuple[list[Machine], list[RemoteClient]]]:
    """On one mesh with a token, both with the model."""
    machines: list[Machine] = []
    clients: list[RemoteClient] = []
    try:
        for name in ("one", "two"):
            (folder / name).mkdir()
            made = Machine(folder / name, model, token="secret", name=name)
            if machines:
                made.cluster, made.join = machines[0].cluster, machines[0].url.removeprefix("http://")
            machines.append(made)
            clients.append(await RemoteClient(await made.up(), token="secret", timeout_s=LIMIT_S).__aenter__())
        for client in clients:
            await served_on(client, "tiny", "one", "two")
        yield machines, clients
    finally:
        for client in clients:
            await client.close()
        for machine in machines:
            await machine.end(signal.SIGKILL)


async def said(client: RemoteClient, model: str) -> str:
    answer = await client.complete(QUESTION, model=model, temperature=0.0, max_tokens=TOKENS)
    return answer.content or ""


async def served_on(client: RemoteClient, name: str, *nodes: str) -> None:
    """Wait until these nodes, and no others, serve it in this node's view."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            report = await client.cluster()
            have = {node.name for node in report.nodes if name in {model.name for model in node.models}}
            if have == set(nodes):
                return
            await asyncio.sleep(0.05)


def by_peft(base: Path, adapter: Path) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        output = model.generate(input_ids=prompt, max_new_tokens=TOKENS, do_sample=False)
    text: str = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


async def test_what_was_trained_answers_from_every_node_and_after_every_death(tmp_path: Path) -> None:
    model = tiny_model.build_folder(tmp_path / "tiny")
    async with two_machines(tmp_path, model) as (machines, clients):
        before = await said(clients[0], "tiny")
        job = await clients[1].train(LEARNT, data(), name="pirate", gates={"max_final_loss": "any", "canary": False})
        report = await job.wait()
        assert report.state == "completed", report
        for client in clients:
            await served_on(client, "pirate", "one", "two")
        assert (await job.refresh()).served == ["one", "two"]
        assert [model.id for model in await clients[0].models()].count("pirate") == 1

        told = await clients[0].trained_model("pirate")
        assert (told.job, told.base, told.nodes, told.shared) == (job.id, "tiny", ["one", "two"], True)
        folder = tmp_path / "exported"
        folder.mkdir()
        for file in told.files:
            content = b"".join([chunk async for chunk in clients[0].model_file("pirate", file.name)])
            (folder / file.name).write_bytes(content)
        expected = await asyncio.to_thread(by_peft, model, folder)
        answers = [await said(client, "pirate") for client in clients]
        assert answers == [expected, expected]
        assert expected != before == await said(clients[1], "tiny")

        trained_on = [machine.name for machine in machines].index(report.node)
        await machines[trained_on].end(signal.SIGKILL)
        assert await said(clients[1 - trained_on], "pirate") == expected
        await machines[trained_on].up()
        async with RemoteClient(machines[trained_on].url, token="secret", timeout_s=LIMIT_S) as again:
            await served_on(again, "pirate", "one", "two")
            removal = await again.remove_model("pirate")
            assert removal.nodes == ["one", "two"]
            await served_on(again, "pirate")
            with pytest.raises(TiermeshError):
                await said(again, "pirate")
