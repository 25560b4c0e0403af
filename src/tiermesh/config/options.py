"""What one daemon runs with: the command line, over the environment, over the file, over the defaults."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from platformdirs import user_state_path
from pydantic import ValidationError

from tiermesh.config.address import DEFAULT_PORT, check_url, parse_address
from tiermesh.config.file import (
    KERNEL,
    AdapterEntry,
    ClusterFile,
    EngineEntry,
    ModelEntry,
    NodePrice,
    Precision,
    check_label,
    load,
)
from tiermesh.config.policy import PolicyDocument
from tiermesh.core.price import Declared
from tiermesh.errors import InvalidConfig
from tiermesh.types import Address, Tier

T = TypeVar("T")

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What was said on the command line; None (or an empty tuple) was not said."""

    config: Path | None = None
    state_dir: Path | None = None
    name: str | None = None
    port: int | None = None
    cluster: str | None = None
    tier: Tier | None = None
    model: str | None = None
    precision: Precision | None = None
    engines: tuple[str, ...] = ()
    no_engine: bool = False
    no_detect: bool = False
    interface: str | None = None
    join: tuple[str, ...] = ()
    usd_per_second: float | None = None
    watts: float | None = None
    usd_per_kwh: float | None = None
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """Everything `daemon.app.run` needs, checked and complete."""

    state_dir: Path
    cluster: str
    name: str
    port: int
    """0: any free one."""
    port_may_move: bool
    """Nobody chose the port: when it is taken, the next free one will do."""
    tier: Tier | None
    """None: derived from the hardware."""
    models: tuple[ModelEntry, ...]
    """What the kernel serves, the node's own first; none: its default, when no other engine is there."""
    adapters: tuple[AdapterEntry, ...]
    memory_limit_bytes: int | None
    """For all models together. None: a share of what this machine has."""
    precision: Precision
    kernel: bool
    """May this node run models itself?"""
    detect: bool
    """Look for servers on this machine's usual ports?"""
    engines: tuple[EngineEntry, ...]
    interface: str | None
    join: tuple[Address, ...]
    mdns_service: str | None
    """None: no mDNS at all."""
    token: str | None = field(repr=False)
    """None: an open mesh."""
    grace_s: float
    price: Declared
    """What the owner said of this machine's costs."""
    policy: PolicyDocument
    """What the file says; a mesh that has a policy already keeps its own."""
    log_format: LogFormat
    log_level: LogLevel


def resolve_options(flags: Flags, env: Mapping[str, str] = os.environ) -> DaemonOptions:
    """Read the file and merge. Raises `InvalidConfig` naming the option or the field."""
    file = load(flags.config, env)
    name = _label(host_name() if (said := _first(flags.name, file.name)) is None else said, "--name")
    own_port, own_tier, own_model = _own_facts(file, name)
    port = _first(flags.port, file.port, own_port)
    return DaemonOptions(
        state_dir=flags.state_dir.expanduser().absolute() if flags.state_dir else default_state_dir(env),
        cluster=_label(file.cluster if flags.cluster is None else flags.cluster, "--cluster"),
        name=name,
        port=DEFAULT_PORT if port is None else port,
        port_may_move=port is None,
        tier=_first(flags.tier, file.tier, own_tier),
        models=_models(_first(_model(flags.model), file.model, own_model), file),
        adapters=file.adapters,
        memory_limit_bytes=file.memory_limit,
        precision=_first(flags.precision, file.precision) or "auto",
        kernel=file.kernel and not flags.no_engine,
        detect=file.detect and not flags.no_detect and not flags.no_engine,
        engines=_engines(flags, file),
        interface=_first(flags.interface, file.interface),
        join=_join(flags, file),
        mdns_service=file.discovery.mdns_service if file.discovery.method == "mdns" else None,
        token=env.get("MESH_TOKEN") or file.mesh_token(),
        grace_s=file.grace_s,
        price=_price(flags, file),
        policy=file.policy(),
        log_format=flags.log_format,
        log_level=flags.log_level,
    )


def default_state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where a daemon keeps its state unless its command line says otherwise: `$MESH_STATE_DIR`, else the user's."""
    return Path(env["MESH_STATE_DIR"]).absolute() if env.get("MESH_STATE_DIR") else user_state_path("tiermesh")


def host_name() -> str:
    """This machine's name as a node name: without its domain, and with other signs than a label has made dashes."""
    short = re.sub(r"[^\w-]+", "-", socket.gethostname().split(".", 1)[0]).strip("-_")[:63].strip("-_")
    return short or "node"


def _own_facts(file: ClusterFile, name: str) -> tuple[int | None, Tier | None, str | None]:
    """One file may serve all machines: the kernel entry with this node's name holds its port, tier and model."""
    own = next((n for n in file.nodes if n.enabled and n.backend == KERNEL and n.name == name), None)
    return (own.port, own.tier, own.model) if own else (None, None, None)


def _engines(flags: Flags, file: ClusterFile) -> tuple[EngineEntry, ...]:
    if flags.no_engine and flags.model:
        raise InvalidConfig("--no-engine and --model contradict each other; leave one out", param="--model")
    if flags.no_engine and flags.engines:
        raise InvalidConfig("--no-engine and --engine contradict each other; leave one out", param="--engine")
    if flags.no_engine:
        return ()
    known = file.engine_entries()
    urls = dict.fromkeys(_url(text) for text in flags.engines)
    return tuple(EngineEntry(url=url) for url in urls if url not in {e.url for e in known}) + known


def _model(said: str | None) -> str | None:
    """What the command line names, checked as the file's is."""
    try:
        return None if said is None else ModelEntry(name=said).name
    except ValidationError as error:
        right = "a name from `mesh model list`, a folder, or ORG/NAME"
        raise InvalidConfig(f"--model is {said!r:.60}, but must be {right}", param="--model") from error


def _models(first: str | None, file: ClusterFile) -> tuple[ModelEntry, ...]:
    """The node's own model, with whatever the file says of it, then the others in their order."""
    named = [entry for entry in file.models if entry.name == first] or [ModelEntry(name=first)] if first else []
    models = (*named, *(entry for entry in file.models if entry.name != first))
    names = [entry.name for entry in models]
    for index, adapter in enumerate(file.adapters):
        if adapter.base is not None and adapter.base not in names:
            raise InvalidConfig(
                f"adapters[{index}].base is {adapter.base!r}, but "
                + (f"this node runs {', '.join(names)}" if names else "no model is named; name it as `model` too"),
                param=f"adapters[{index}].base",
            )
    return models


def _join(flags: Flags, file: ClusterFile) -> tuple[Address, ...]:
    said = tuple(parse_address(text, param="--join") for text in flags.join)
    return tuple(dict.fromkeys(said + file.join_hints()))


def _price(flags: Flags, file: ClusterFile) -> Declared:
    """What is said on the command line, over what the file says."""
    named = {name: getattr(flags, name) for name in NodePrice.model_fields}
    said = {name: value for name, value in named.items() if value is not None}
    try:
        return NodePrice.model_validate({**file.price.model_dump(), **said}).declared()
    except ValidationError as error:
        wrong = error.errors()[0]
        option = f"--{str(wrong['loc'][0]).replace('_', '-')}"
        raise InvalidConfig(f"{option} is {wrong['input']}: {wrong['msg'].lower()}", param=option) from error


def _url(text: str) -> str:
    try:
        return check_url(text if "://" in text else f"http://{text}")
    except ValueError as error:
        raise InvalidConfig(f"--engine is {text!r}, but must be {error}", param="--engine") from error


def _label(text: str, param: str) -> str:
    try:
        return check_label(text)
    except ValueError as error:
        raise InvalidConfig(f"{param} is {text!r}, but must be {error}", param=param) from error


def _first(*values: T | None) -> T | None:
    """The first that was said."""
    return next((v for v in values if v is not None), None)
