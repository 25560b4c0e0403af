"""`cluster.yaml`: every key has a default, and a missing file is all defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_config_path
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from tiermesh.config.address import DEFAULT_PORT, check_host, check_url, join_address
from tiermesh.config.explain import explain
from tiermesh.config.policy import (
    Admission,
    Budget,
    Evaluation,
    Jobs,
    Limits,
    Name,
    PolicyDocument,
    Routing,
    Section,
)
from tiermesh.config.yaml_text import plain_data
from tiermesh.core.price import Declared
from tiermesh.core.size import parse_size
from tiermesh.errors import InvalidConfig
from tiermesh.types import Address, Tier

FILE_NAME = "cluster.yaml"
KERNEL: Literal["kernel"] = "kernel"
SIZE_LIMIT_BYTES = 1024 * 1024
"""A configuration is written by hand; anything larger is some other file."""

MODELS_LIMIT = 64
"""All of them travel in every status of the node."""

ADAPTERS_LIMIT = 64
"""As models; and a worker keeps all adapters of its model in memory."""

MEMORY_FLOOR_BYTES = 256 * 1024 * 1024
"""A worker without any model takes more; what is smaller is a slip of the pen (`8` for `8 GB`)."""

LABEL_LIMIT_BYTES = 240
"""One string of a DNS record holds 255 bytes, its key included; only rare scripts come near it with 63 letters."""

ServerKind = Literal["ollama", "vllm", "sglang", "llamacpp", "openai"]
Backend = Literal["kernel", "ollama", "vllm", "sglang", "llamacpp", "openai"]


def check_label(text: str) -> str:
    """A name of a node, an engine or a cluster: it is shown in tables and travels in a DNS record."""
    if not re.fullmatch(r"[^\W_]([\w.-]{0,61}[^\W_])?", text) or len(text.encode()) > LABEL_LIMIT_BYTES:
        raise ValueError(
            "1 to 63 letters, digits, dots, dashes or underscores, and begin and end with a letter or digit"
        )
    return text


def check_service(text: str) -> str:
    """An mDNS service type."""
    if not re.fullmatch(r"_[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?\._tcp\.local\.", text):
        raise ValueError("like _tiermesh._tcp.local. (a name of at most 15 letters, and the dot at the end)")
    return text


def check_adapter_name(text: str) -> str:
    """A worker is told of its adapters as NAME=FOLDER."""
    if "=" in text:
        raise ValueError("a name without an equals sign")
    return text


def check_tier(value: object) -> object:
    """YAML reads `yes` as true, and Python takes true for 1."""
    if isinstance(value, bool):
        raise ValueError("0, 1 or 2")
    return value


Precision = Literal["auto", "fp32", "bf16"]
Label = Annotated[str, AfterValidator(check_label)]
Host = Annotated[str, AfterValidator(check_host)]
Url = Annotated[str, AfterValidator(check_url)]
TierField = Annotated[Tier, BeforeValidator(check_tier)]
Port = Annotated[int, Field(ge=1, le=65535)]
Token = Annotated[str, Field(min_length=1, max_length=1024)]


class Coordinator(Admission):
    """Where to look for the mesh first, and what its coordinator demands."""

    host: Host = "localhost"
    """A node to join at start-up; `localhost` means none in particular. The coordinator is elected all the same."""
    port: Port = DEFAULT_PORT


class Discovery(Section):
    """How nodes of one network find one another."""

    method: Literal["explicit", "mdns"] = "mdns"
    """`explicit` neither announces nor listens: only the hosts named here, `--join`, and nodes met before."""
    mdns_service: Annotated[str, AfterValidator(check_service)] = "_tiermesh._tcp.local."


class EngineEntry(Section):
    """An OpenAI-compatible server that this node puts into the mesh."""

    url: Url
    """Without the `/v1`."""
    name: Label | None = None
    kind: ServerKind | None = None
    """None: found out by asking it."""
    tier: TierField | None = None
    """Of all its models. None: the node's own."""
    model: Name | None = None
    """Serve only this one of its models. None: all."""
    token: Token | None = Field(None, repr=False)
    """What the server itself demands as bearer token."""
    slots: int | None = Field(None, ge=1, le=10_000)
    """Requests it works on at once. None: found out by asking it, or a cautious default."""

    @property
    def label(self) -> str:
        """Its name, or else `host-port`."""
        return self.name or re.sub(r"[^\w.-]+", "-", self.url.split("://", 1)[1]).strip("-._") or "engine"


class ModelEntry(Section):
    """A model that this node runs itself, loaded when it is asked for."""

    name: Name
    """A name from `mesh model list`, a folder, a `.gguf` file, or ORG/NAME on the Hugging Face hub."""
    tier: TierField | None = None
    """None: the node's own."""
    pinned: bool = False
    """Loaded at the start and never unloaded: its memory is taken for good, and its first prompt waits for nothing."""


class AdapterEntry(Section):
    """A LoRA adapter, served under its own name beside the model that it was made for."""

    name: Annotated[Name, AfterValidator(check_adapter_name)]
    path: Annotated[str, Field(min_length=1)]
    """A folder with `adapter_config.json` and `adapter_model.safetensors`."""
    base: Name | None = None
    """The model's name as given here. None: the first one of this node."""


class NodePrice(Section):
    """What a second of training costs on this node: declared, or its power and the tariff. Neither, and the device's
    name is looked up among rented ones; what is not there is unknown."""

    usd_per_second: float | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    """Wins over the other two. 0: it costs nothing."""
    watts: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    """Of the whole machine while it trains."""
    usd_per_kwh: float | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    """The tariff. Without `watts` it says nothing."""

    def declared(self) -> Declared:
        """As the price is reckoned from."""
        return Declared(**self.model_dump())


class NodeEntry(Section):
    """A machine: a server backend makes it an engine of whoever reads the file, `kernel` another daemon to join."""

    name: Label
    host: Host
    port: Port = DEFAULT_PORT
    model: Name | None = None
    tier: TierField | None = None
    backend: Backend = KERNEL
    auth_token: Token | None = Field(None, repr=False)
    enabled: bool = True

    @property
    def address(self) -> Address:
        """Where it listens."""
        return join_address(self.host, self.port)


class ClusterFile(Section):
    """The whole file: this node's own facts at the top, then what concerns the mesh."""

    cluster: Label = "home"
    """Nodes with the same name form one mesh; two meshes on one network never mix."""
    name: Label | None = None
    """None: the host name."""
    port: Port | None = None
    """None: 8000, or the next free one after it."""
    tier: TierField | None = None
    """None: derived from the hardware."""
    model: Name | None = None
    """What the kernel serves first. None: the small default, when torch is installed and no other engine is there."""
    models: tuple[ModelEntry, ...] = Field((), strict=False, max_length=MODELS_LIMIT)
    """What it serves besides; `model` may be among them, with more said about it."""
    adapters: tuple[AdapterEntry, ...] = Field((), strict=False, max_length=ADAPTERS_LIMIT)
    memory_limit: Annotated[int, BeforeValidator(parse_size), Field(ge=MEMORY_FLOOR_BYTES)] | None = None
    """Bytes for all models in memory together. None: 60 % of this machine's."""
    precision: Precision = "auto"
    """What the kernel computes in. fp32 gives the same answers on every machine; bf16 takes half the memory, and where
    the processor has instructions for it half the time; auto measures at each start of a worker."""
    interface: str | None = Field(None, min_length=1)
    """A network interface or address to use. None: all but loopback."""
    token: Token | None = Field(None, repr=False)
    """Demanded from everyone. None: an open mesh, for callers on the local network only."""
    grace_s: float = Field(30.0, ge=0, le=3600)
    """How long SIGTERM lets running requests finish. Long enough for most answers, short enough for a shutdown."""
    kernel: bool = True
    """May this node run models itself?"""
    detect: bool = True
    """Look for Ollama, LM Studio and llama.cpp on this machine's usual ports?"""
    engines: tuple[EngineEntry, ...] = Field((), strict=False)
    price: NodePrice = NodePrice()
    """Of a second of training on this node."""
    coordinator: Coordinator = Coordinator()
    discovery: Discovery = Discovery()
    routing: Routing = Routing()
    limits: Limits = Limits()
    budget: Budget = Budget()
    jobs: Jobs = Jobs()
    evaluation: Evaluation = Evaluation()
    nodes: tuple[NodeEntry, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _refuse_repeats("nodes[].name", [n.name for n in self.nodes])
        _refuse_repeats("the engine name", [e.label for e in self.engine_entries()])
        _refuse_repeats("models[].name", [m.name for m in self.models])
        _refuse_repeats("adapters[].name", [a.name for a in self.adapters])
        if KERNEL in (e.label for e in self.engine_entries()):
            raise ValueError(f"an engine is named {KERNEL!r}, but that one is built in; give it another name")
        tokens = {t for t in (self.token, *(n.auth_token for n in self._peers())) if t}
        if len(tokens) > 1:
            raise ValueError(
                "the daemons of a mesh share one token, but `token` and `auth_token` of kernel nodes differ"
            )
        return self

    def engine_entries(self) -> tuple[EngineEntry, ...]:
        """The servers that the daemon reading this file puts into the mesh: `engines`, and `nodes` with a server."""
        return self.engines + tuple(_as_engine(node) for node in self.nodes if node.enabled and node.backend != KERNEL)

    def join_hints(self) -> tuple[Address, ...]:
        """Where other daemons may be: `coordinator.host` unless it is localhost, and `nodes` with the kernel behind."""
        host = self.coordinator.host
        first = () if host == "localhost" else (join_address(host, self.coordinator.port),)
        return tuple(dict.fromkeys(first + tuple(node.address for node in self._peers())))

    def mesh_token(self) -> str | None:
        """The one token of the mesh: `token`, or the `auth_token` of the kernel nodes."""
        return self.token or next((n.auth_token for n in self._peers() if n.auth_token), None)

    def policy(self) -> PolicyDocument:
        """The part that must be the same on every node."""
        return PolicyDocument(
            routing=self.routing,
            coordinator=Admission(min_members=self.coordinator.min_members),
            limits=self.limits,
            budget=self.budget,
            jobs=self.jobs,
            evaluation=self.evaluation,
        )

    def _peers(self) -> tuple[NodeEntry, ...]:
        return tuple(node for node in self.nodes if node.enabled and node.backend == KERNEL)


def find(path: Path | None, env: Mapping[str, str] = os.environ) -> Path | None:
    """The file to read: `path`, else `$MESH_CONFIG`, else `./cluster.yaml`, else the user's; None: there is none."""
    named = path or (Path(env["MESH_CONFIG"]) if env.get("MESH_CONFIG") else None)
    if named is not None:
        return named
    usual = (Path(FILE_NAME), user_config_path("tiermesh") / FILE_NAME)
    return next((p for p in usual if p.is_file()), None)


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> ClusterFile:
    """Read the file that `find` names, or all defaults when there is none.

    Raises `InvalidConfig`, also when a file that was named doesn't exist.
    """
    found = find(path, env)
    return ClusterFile() if found is None else parse(_read(found), str(found))


def parse(text: str, source: str) -> ClusterFile:
    """The file's content; `source` is its name in errors. Raises `InvalidConfig`."""
    data = plain_data(text, source)
    try:
        return ClusterFile.model_validate({} if data is None else _without_nulls(data))
    except ValidationError as error:
        raise explain(error, ClusterFile, source) from error


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > SIZE_LIMIT_BYTES:
            raise InvalidConfig(f"{path} is larger than 1 MiB: is it a cluster.yaml?", param="config")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidConfig(
            f"can't read the configuration {path}: {reason}. `mesh cluster init` writes a new one", param="config"
        ) from error


def _without_nulls(data: object) -> object:
    """A key without a value (all below it commented out) means its default."""
    if isinstance(data, dict):
        return {str(k): _without_nulls(v) for k, v in data.items() if v is not None}
    return [_without_nulls(v) for v in data] if isinstance(data, list) else data


def _as_engine(node: NodeEntry) -> EngineEntry:
    assert node.backend != "kernel"
    url = f"http://{node.address}"
    return EngineEntry(
        url=url, name=node.name, kind=node.backend, tier=node.tier, model=node.model, token=node.auth_token
    )


def _refuse_repeats(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} {name!r} is given {names.count(name)} times, but each must differ")
