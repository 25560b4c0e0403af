"""cluster.yaml: every default, every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiermesh.cli.cluster import template
from tiermesh.config import ClusterFile, find, load
from tiermesh.config.file import parse
from tiermesh.errors import InvalidConfig

ROOT = Path(__file__).parent.parent


def test_a_missing_file_means_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    file = load(env={})
    assert file == ClusterFile()
    assert file.cluster == "home"
    assert file.coordinator.host == "localhost"
    assert file.discovery.method == "mdns"
    assert file.discovery.mdns_service == "_tiermesh._tcp.local."
    assert (file.routing.prefer_local, file.routing.load_balance) == (True, True)
    assert file.routing.fallback_strategy == "graceful"
    assert (file.nodes, file.engines, file.join_hints(), file.engine_entries()) == ((), (), (), ())


def test_a_node_needs_a_name_and_a_host_only() -> None:
    (node,) = parse("nodes:\n- {name: pc, host: 10.0.0.2}\n", "f").nodes
    assert (node.port, node.model, node.tier, node.backend, node.auth_token, node.enabled) == (
        *(8000, None, None, "kernel", None),
        True,
    )


def test_the_example_the_template_and_the_defaults_are_one() -> None:
    assert (ROOT / "cluster.example.yaml").read_text("utf-8") == template()
    assert parse(template(), "template") == ClusterFile()


def test_the_template_loads_with_every_example_in_it_switched_on() -> None:
    """An example that would be refused is worse than none."""
    lines = []
    for line in template().splitlines():
        bare = line.lstrip()
        is_setting = bare.startswith("# ") and bare[2:].split(":")[0].isidentifier() and not bare.endswith(".")
        if line.startswith("# ") and is_setting and line[2:].split(":")[0] in ClusterFile.model_fields:
            lines.append(line[2:])
        elif bare.startswith("#  "):
            lines.append(line.replace("#", " ", 1) if not line.startswith("  #") else f"    {bare[1:].lstrip()}")
        else:
            lines.append(line.removesuffix(" []").removesuffix(" {}"))
    file = parse("\n".join(lines), "examples")
    assert file.engines[0].model == "qwen3:32b"
    assert [(m.tier, m.pinned) for m in file.models] == [(1, True)]
    assert [(a.name, a.base) for a in file.adapters] == [("pirate", "smollm2:135m")]
    assert file.memory_limit == 8 * 10**9
    assert [node.backend for node in file.nodes] == ["kernel", "ollama"]
    assert file.routing.aliases == {"gpt-4o": "qwen3:32b"}
    assert (file.name, file.port, file.tier, file.interface) == ("gaming-pc", 8000, 2, "eth0")


WRONG = [
    # text, param, what the message holds
    ("routing: {prefer_lokal: true}", "routing.prefer_lokal", "did you mean prefer_local?"),
    ("rooting: {}", "rooting", "did you mean routing?"),
    ("zzz: 1", "zzz", "there are cluster, name, port"),
    ("nodes: [{name: a, host: h, bakend: kernel}]", "nodes[0].bakend", "did you mean backend?"),
    ("coordinator: {min_memebers: 2}", "coordinator.min_memebers", "did you mean min_members?"),
    ("nodes: [{name: a, host: h}, {name: b, host: h, tier: 3}]", "nodes[1].tier", "is 3, but must be 0, 1 or 2"),
    ("tier: yes", "tier", "is true, but must be 0, 1 or 2"),
    ("tier: fast", "tier", "is 'fast', but must be 0, 1 or 2"),
    ("port: 70000", "port", "is 70000, but must be at most 65535"),
    ("port: '8000'", "port", "is '8000', but must be a whole number"),
    ("port: 80.5", "port", "but must be a whole number"),
    ("routing: {fallback_strategy: gracefull}", "routing.fallback_strategy", "'graceful' or 'strict'"),
    ("routing: {prefer_local: 1}", "routing.prefer_local", "is 1, but must be true or false"),
    ("routing: {complexity: {medium: 0.6}}", "routing.complexity", "must not lie below"),
    ("routing: {complexity: {enable: false}}", "routing.complexity.enable", "did you mean enabled?"),
    ("routing: {breaker: {open_s: 400}}", "routing.breaker", "at most open_most_s"),
    ("routing: {breaker: {rate_window: 5}}", "routing.breaker", "at most rate_window"),
    ("routing: {breaker: {failures: 0}}", "routing.breaker.failures", "at least 1"),
    ("price: {usd_per_second: -1}", "price.usd_per_second", "at least 0"),
    ("price: {watt: 300}", "price.watt", "did you mean watts?"),
    ("budget: {max_usd: .inf}", "budget.max_usd", "is inf"),
    ("budget: {max_usd: 1}", "budget", "soft_usd must be at most max_usd"),
    ("budget: {unknown: refuse}", "budget.unknown", "'approve' or 'wait'"),
    ("budget: {allow_auto_aprove: false}", "budget.allow_auto_aprove", "did you mean allow_auto_approve?"),
    ("jobs: {max_retries: 11}", "jobs.max_retries", "at most 10"),
    ("jobs: {lease_s: 0}", "jobs.lease_s", "at least 0.5"),
    (
        "evaluation: {max_final_loss: low}",
        "evaluation.max_final_loss",
        "is 'low', but must be a number of at least 0, or any",
    ),
    ("evaluation: {max_gap: -1}", "evaluation.max_gap", "is -1, but must be a number"),
    ("routing: 7", "routing", "is 7, but must be a group of settings"),
    ("routing: {aliases: {gpt-4o: 4}}", "routing.aliases.gpt-4o", "put it in quotes"),
    ("routing: {aliases: {'': m}}", "routing.aliases", "text that is not empty"),
    (
        f"routing: {{aliases: {{{', '.join(f'a{i}: m' for i in range(1001))}}}}}",
        "routing.aliases",
        "no longer than 1000 entries",
    ),
    ("discovery: {method: multicast}", "discovery.method", "'explicit' or 'mdns'"),
    ("discovery: {mdns_service: tiermesh}", "discovery.mdns_service", "like _tiermesh._tcp.local."),
    ("models: [{name: a, pined: true}]", "models[0].pined", "did you mean pinned?"),
    ("models: [{name: a}, {name: a}]", None, "'a' is given 2 times"),
    ("adapters: [{name: a}]", "adapters[0].path", "is missing"),
    ("adapters: [{name: a=b, path: x}]", "adapters[0].name", "without an equals sign"),
    ("adapters: [{name: a, path: x}, {name: a, path: y}]", None, "'a' is given 2 times"),
    ("memory_limit: 8", "memory_limit", "at least 268435456"),
    ("memory_limit: much", "memory_limit", "is 'much', but must be a size like 8 GB"),
    ("precision: fp16", "precision", "'auto', 'fp32' or 'bf16'"),
    ("nodes: {a: b}", "nodes", "is a group of settings, but must be a list"),
    ("nodes: [{host: h}]", "nodes[0].name", "is missing"),
    ("nodes: [{name: a, host: 'h:1'}]", "nodes[0].host", "a port has its own field"),
    ("nodes: [{name: a, host: 'http://h'}]", "nodes[0].host", "a host name or an IP address alone"),
    ("nodes: [{name: a, host: h, backend: gpt}]", "nodes[0].backend", "'ollama'"),
    ("nodes: [{name: a, host: h}, {name: a, host: i}]", None, "'a' is given 2 times"),
    ("engines: [{url: 'localhost:11434'}]", "engines[0].url", "http:// or https://"),
    ("engines: [{url: 'http://'}]", "engines[0].url", "http:// or https://"),
    ("engines: [{url: 'http://h', slots: 0}]", "engines[0].slots", "at least 1"),
    ("engines: [{url: 'http://h', name: kernel}]", None, "that one is built in"),
    ("engines: [{url: 'http://h:1'}, {url: 'http://h:1/v1'}]", None, "'h-1' is given 2 times"),
    ("cluster: 'my home'", "cluster", "letters, digits"),
    (f"cluster: {'𠀀' * 63}", "cluster", "letters, digits"),
    ("cluster: ''", "cluster", "letters, digits"),
    ("name: no", "name", "is false, but must be text; put it in quotes"),
    ("grace_s: .nan", "grace_s", "is nan"),
    ("grace_s: .inf", "grace_s", "is inf"),
    ("limits: {max_body_bytes: 1}", "limits.max_body_bytes", "at least 1024"),
    ("grace_s: -1", "grace_s", "at least 0"),
    ("token: ''", "token", "is hidden, but must be a text that is not empty"),
    ("token: a\nnodes: [{name: x, host: h, auth_token: b}]", None, "share one token"),
    ("- a\n- b", None, "a list, but must be a group of settings"),
    ("just text", None, "the file is 'just text'"),
    ("port: 1\nport: 2", None, "line 2, column 1: port is given twice"),
    ("routing: {", None, "line 1"),
    ("a: *b", None, "undefined alias 'b'"),
    ("!!python/object/apply:os.system [true]", None, "could not determine a constructor"),
    ("{" * 3000, None, "f: "),
    ("? {a: 1}\n: 2", None, "unhashable key"),
]


@pytest.mark.parametrize(("text", "param", "said"), WRONG, ids=[text[:40] for text, _, _ in WRONG])
def test_a_mistake_names_its_field_its_value_and_what_would_be_right(text: str, param: str | None, said: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        parse(text, "f")
    assert raised.value.param == param
    assert str(raised.value).startswith("f: ")
    assert said in str(raised.value)


def test_several_mistakes_are_told_at_once_and_a_flood_is_cut() -> None:
    with pytest.raises(InvalidConfig, match=r"port is .*; tier is .*"):
        parse("port: 0\ntier: 9", "f")
    with pytest.raises(InvalidConfig, match="and 3 more"):
        parse("\n".join(f"key{n}: 1" for n in range(8)), "f")


@pytest.mark.parametrize("text", ["token: [hunter2]", "nodes: [{name: a, host: h, auth_token: {a: hunter2}}]"])
def test_a_wrong_token_is_not_repeated_in_the_message(text: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        parse(text, "f")
    assert "hunter2" not in str(raised.value)


def test_a_token_is_not_shown_with_the_rest() -> None:
    file = parse("token: hunter2\nengines: [{url: 'http://h', token: hunter3}]", "f")
    assert "hunter" not in repr(file)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "routing:\nnodes:\ndiscovery:\n  method:\n"])
def test_nothing_said_is_all_defaults(text: str) -> None:
    assert parse(text, "f") == ClusterFile()


def test_servers_among_the_nodes_are_engines_and_daemons_are_join_hints() -> None:
    file = parse(
        """
        coordinator: {host: 10.0.0.1, port: 8001}
        engines: [{url: 'http://localhost:11434/v1/', tier: 1}]
        nodes:
        - {name: pc, host: 10.0.0.2}
        - {name: v6, host: 'fd00::7', port: 9000}
        - {name: gone, host: 10.0.0.3, enabled: false}
        - {name: big, host: 10.0.0.4, port: 8080, backend: vllm, tier: 2, model: qwen, auth_token: key}
        - {name: old, host: 10.0.0.5, backend: ollama, enabled: false}
        """,
        "f",
    )
    assert file.join_hints() == ("10.0.0.1:8001", "10.0.0.2:8000", "[fd00::7]:9000")
    assert [(e.label, e.url, e.kind, e.tier, e.model, e.token) for e in file.engine_entries()] == [
        ("localhost-11434", "http://localhost:11434", None, 1, None, None),
        ("big", "http://10.0.0.4:8080", "vllm", 2, "qwen", "key"),
    ]


def test_the_token_of_the_mesh_may_stand_at_its_nodes() -> None:
    assert parse("nodes: [{name: a, host: h, auth_token: key}]", "f").mesh_token() == "key"
    assert parse("nodes: [{name: a, host: h, backend: vllm, auth_token: key}]", "f").mesh_token() is None


def test_the_file_is_looked_for_in_its_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tiermesh.config.file.user_config_path", lambda _: tmp_path / "user")
    assert find(None, {}) is None
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "cluster.yaml").touch()
    assert find(None, {}) == tmp_path / "user" / "cluster.yaml"
    (tmp_path / "cluster.yaml").touch()
    assert find(None, {}) == Path("cluster.yaml")
    assert find(None, {"MESH_CONFIG": "/x"}) == Path("/x")
    assert find(Path("/y"), {"MESH_CONFIG": "/x"}) == Path("/y")


def test_a_file_that_was_named_must_be_there_and_be_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InvalidConfig, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        load(tmp_path / "binary")
    (tmp_path / "big").write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(InvalidConfig, match="larger than 1 MiB"):
        load(tmp_path / "big")
