"""The command line wins over the environment, that over the file, that over the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiermesh.config import DaemonOptions, Flags, PolicyDocument, parse_address, resolve_options
from tiermesh.config.options import host_name
from tiermesh.core.evaluation import Gates
from tiermesh.core.gate import Budget
from tiermesh.core.price import Declared
from tiermesh.errors import InvalidConfig


def resolve(tmp_path: Path, text: str = "", env: dict[str, str] | None = None, **flags: object) -> DaemonOptions:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return resolve_options(Flags(config=path, **flags), env or {})  # type: ignore[arg-type]


def test_defaults(tmp_path: Path) -> None:
    options = resolve(tmp_path)
    assert (options.cluster, options.port, options.port_may_move) == ("home", 8000, True)
    assert options.name == host_name()
    assert (options.kernel, options.detect, options.engines, options.join) == (True, True, (), ())
    assert (options.tier, options.models, options.interface, options.token) == (None, (), None, None)
    assert options.mdns_service == "_tiermesh._tcp.local."
    assert options.policy == PolicyDocument()


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = "cluster: den\nname: a\nport: 8100\ntier: 1\nmodel: m\ninterface: eth0\n"
    read = resolve(tmp_path, file)
    assert (read.cluster, read.name, read.port, read.tier, read.models[0].name, read.interface) == (
        *("den", "a", 8100, 1, "m"),
        "eth0",
    )
    assert not read.port_may_move
    told = resolve(tmp_path, file, cluster="lab", name="b", port=0, tier=0, model="n", interface="lo")
    assert (told.cluster, told.name, told.port, told.tier, told.models[0].name, told.interface) == (
        "lab",
        "b",
        0,
        0,
        "n",
        "lo",
    )


def test_a_price_is_declared_in_the_file_or_said(tmp_path: Path) -> None:
    assert resolve(tmp_path).price == Declared()
    file = "price: {watts: 300, usd_per_kwh: 0.4}"
    assert resolve(tmp_path, file).price == Declared(watts=300, usd_per_kwh=0.4)
    assert resolve(tmp_path, file, watts=50.0).price == Declared(watts=50, usd_per_kwh=0.4)
    assert resolve(tmp_path, file, usd_per_second=0.0).price == Declared(usd_per_second=0, watts=300, usd_per_kwh=0.4)
    with pytest.raises(InvalidConfig, match="--watts is nan"):
        resolve(tmp_path, watts=float("nan"))


def test_what_jobs_may_cost_and_must_reach_is_policy(tmp_path: Path) -> None:
    text = "budget: {max_usd: 9, unknown: wait}\njobs: {max_retries: 1, replicas: 3}\nevaluation: {max_final_loss: any}"
    policy = PolicyDocument.from_body(resolve(tmp_path, text).policy.to_body())
    rules = policy.job_rules()
    assert (rules.max_retries, rules.replicas, rules.lease_s) == (1, 3, 5.0)
    assert rules.budget == Budget(max_usd=9, unknown="wait")
    assert policy.evaluation.gates() == Gates(max_final_loss=None)
    assert policy.evaluation.gates({"max_final_loss": 3.0, "canary": False}) == Gates(max_final_loss=3, canary=False)


def test_the_token_of_the_environment_wins_and_is_not_shown(tmp_path: Path) -> None:
    assert resolve(tmp_path, "token: file").token == "file"
    options = resolve(tmp_path, "token: file", {"MESH_TOKEN": "hunter2"})
    assert options.token == "hunter2"
    assert "hunter2" not in repr(options)


def test_the_state_folder(tmp_path: Path) -> None:
    assert resolve(tmp_path, state_dir=Path("here")).state_dir == Path.cwd() / "here"
    assert resolve(tmp_path, env={"MESH_STATE_DIR": str(tmp_path / "s")}).state_dir == tmp_path / "s"
    assert resolve(tmp_path).state_dir.name == "tiermesh"


def test_engines_are_those_of_the_command_line_and_the_file(tmp_path: Path) -> None:
    file = "engines: [{url: 'http://localhost:8080', tier: 2}]"
    options = resolve(tmp_path, file, engines=("localhost:1234", "http://localhost:8080/v1", "http://localhost:1234/"))
    assert [(e.url, e.tier) for e in options.engines] == [("http://localhost:1234", None), ("http://localhost:8080", 2)]


def test_no_engine_is_a_node_that_only_routes(tmp_path: Path) -> None:
    options = resolve(tmp_path, "engines: [{url: 'http://h'}]", no_engine=True)
    assert (options.kernel, options.detect, options.engines) == (False, False, ())
    with pytest.raises(InvalidConfig, match="contradict"):
        resolve(tmp_path, engines=("http://h",), no_engine=True)
    with pytest.raises(InvalidConfig, match="contradict"):
        resolve(tmp_path, model="smollm2:135m", no_engine=True)


def test_an_empty_name_is_a_mistake_and_not_the_default(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="--cluster is '', but must be"):
        resolve(tmp_path, cluster="")
    with pytest.raises(InvalidConfig, match="--name is '', but must be"):
        resolve(tmp_path, name="")


def test_detection_is_turned_off_by_either(tmp_path: Path) -> None:
    assert not resolve(tmp_path, no_detect=True).detect
    assert not resolve(tmp_path, "detect: false").detect
    assert resolve(tmp_path, no_detect=True).kernel


def test_explicit_discovery_is_no_mdns(tmp_path: Path) -> None:
    assert resolve(tmp_path, "discovery: {method: explicit}").mdns_service is None


def test_join_hints_come_from_both_and_once(tmp_path: Path) -> None:
    file = "coordinator: {host: pc}\nnodes: [{name: n, host: pc}, {name: m, host: q}]"
    assert resolve(tmp_path, file, join=("r:1", "pc")).join == ("r:1", "pc:8000", "q:8000")


def test_one_file_may_serve_all_machines(tmp_path: Path) -> None:
    file = "nodes:\n- {name: pc, host: pc, port: 8200, tier: 1, model: m}\n- {name: big, host: big, tier: 2}\n"
    pc = resolve(tmp_path, file, name="pc")
    assert (pc.port, pc.tier, pc.models[0].name, pc.port_may_move) == (8200, 1, "m", False)
    assert resolve(tmp_path, file, name="pc", tier=0).tier == 0
    assert resolve(tmp_path, file, name="else").tier is None


def test_the_nodes_own_model_comes_first_with_what_the_file_says_of_it(tmp_path: Path) -> None:
    file = "models: [{name: a, pinned: true}, {name: b, tier: 2}]"
    assert [m.name for m in resolve(tmp_path, file).models] == ["a", "b"]
    told = resolve(tmp_path, file, model="b").models
    assert [(m.name, m.tier, m.pinned) for m in told] == [("b", 2, False), ("a", None, True)]
    assert [m.name for m in resolve(tmp_path, f"model: c\n{file}").models] == ["c", "a", "b"]


def test_the_precision_of_the_command_line_wins(tmp_path: Path) -> None:
    assert resolve(tmp_path).precision == "auto"
    assert resolve(tmp_path, "precision: bf16").precision == "bf16"
    assert resolve(tmp_path, "precision: bf16", precision="fp32").precision == "fp32"


def test_a_memory_limit_is_a_size(tmp_path: Path) -> None:
    assert resolve(tmp_path).memory_limit_bytes is None
    assert resolve(tmp_path, "memory_limit: 8 GB").memory_limit_bytes == 8 * 10**9


def test_an_adapters_base_is_a_model_of_this_node(tmp_path: Path) -> None:
    file = "model: m\nadapters: [{name: x, path: /x}, {name: y, path: /y, base: %s}]"
    assert [a.base for a in resolve(tmp_path, file % "m").adapters] == [None, "m"]
    with pytest.raises(InvalidConfig, match="base is 'm', but no model is named; name it as `model` too"):
        resolve(tmp_path, "adapters: [{name: y, path: /y, base: m}]")
    with pytest.raises(InvalidConfig, match=r"adapters\[1\].base is 'n', but this node runs m"):
        resolve(tmp_path, file % "n")


@pytest.mark.parametrize(
    ("flags", "param"),
    [
        ({"name": "two words"}, "--name"),
        ({"name": "x" * 64}, "--name"),
        ({"cluster": "-"}, "--cluster"),
        ({"join": ("host:port",)}, "--join"),
        ({"join": ("",)}, "--join"),
        ({"engines": ("ftp://h",)}, "--engine"),
        ({"model": ""}, "--model"),
        ({"model": "x" * 300}, "--model"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, flags: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        resolve(tmp_path, **flags)
    assert raised.value.param == param
    assert param in str(raised.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("pc", "pc:8000"),
        ("pc.local:9", "pc.local:9"),
        ("10.0.0.1", "10.0.0.1:8000"),
        ("fd00::1", "[fd00::1]:8000"),
        ("[fd00::1]", "[fd00::1]:8000"),
        ("[fd00::1]:9", "[fd00::1]:9"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text, param="--join") == address


@pytest.mark.parametrize(
    "text",
    ["", ":1", "h:", "h:0", "h:65536", "h:x", "h:²", "a b", "http://h", "u@h", "[::1", "[::1]x", "a:b:c", "::1:8000:"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidConfig, match="HOST:PORT"):
        parse_address(text, param="--join")


@pytest.mark.parametrize(
    ("host", "name"), [("Gaming-PC.local", "Gaming-PC"), ("my host's", "my-host-s"), ("___", "node"), ("", "node")]
)
def test_the_host_name_becomes_a_node_name(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert host_name() == name


def test_the_policy_is_what_must_be_the_same_everywhere(tmp_path: Path) -> None:
    file = "coordinator: {host: x, min_members: 3}\nrouting: {fallback_strategy: strict, aliases: {a: b}}\n"
    body = resolve(tmp_path, file).policy.to_body()
    assert body == PolicyDocument().to_body() | {
        "routing": PolicyDocument().routing.model_dump() | {"fallback_strategy": "strict", "aliases": {"a": "b"}},
        "coordinator": {"min_members": 3},
    }
    assert PolicyDocument.from_body(body) == resolve(tmp_path, file).policy


def test_a_newer_nodes_policy_is_read_and_a_persons_mistake_is_not() -> None:
    newer = {"routing": {"prefer_local": False, "by_mood": True}, "weather": {}}
    assert not PolicyDocument.from_body(newer).routing.prefer_local
    with pytest.raises(InvalidConfig, match="by_mood is no setting"):
        PolicyDocument.parse(newer)
    with pytest.raises(InvalidConfig, match="policy: routing"):
        PolicyDocument.from_body({"routing": 3})
