"""`mesh config`: the policy, which is the same on every node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tiermesh.cli import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tiermesh.protocol.cluster import PolicyReport

app = typer.Typer(help="Show or change what holds on every node.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(as_json: connect.JsonOption = False, url: connect.UrlOption = None) -> None:
    """Print the mesh's policy, in the form that `apply` reads."""
    report = connect.run(_fetch(url))
    if as_json:
        print(report.model_dump_json(indent=2))
        return
    print(f"# policy {report.ballot.term}.{report.version} of the mesh")
    print(_yaml(_meaning(report)), end="")


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="A cluster.yaml; what must be the same everywhere is applied.")],
    as_json: connect.JsonOption = False,
    url: connect.UrlOption = None,
) -> None:
    """Make a file's policy that of the whole mesh. What the file leaves out becomes the default."""
    from tiermesh.config import load

    wanted = load(file).policy().to_body()
    before, after = connect.run(_apply(url, wanted))
    if as_json:
        print(after.model_dump_json(indent=2))
        return
    changes = list(_changes(_meaning(before), wanted))
    print("\n".join(changes) if changes else "nothing to change: the mesh has this policy already")


async def _fetch(url: str | None) -> PolicyReport:
    async with connect.open_mesh(url) as mesh:
        return await mesh.policy()


async def _apply(url: str | None, wanted: Mapping[str, object]) -> tuple[PolicyReport, PolicyReport]:
    async with connect.open_mesh(url) as mesh:
        before = await mesh.policy()
        return before, before if _meaning(before) == wanted else await mesh.set_policy(wanted)


def _meaning(report: PolicyReport) -> dict[str, object]:
    """The policy with its defaults filled in."""
    from tiermesh.config import PolicyDocument

    return PolicyDocument.from_body(report.policy).to_body()


def _changes(before: Mapping[str, object], after: Mapping[str, object], path: str = "") -> Iterator[str]:
    """`routing.prefer_local: true -> false`, a line a change."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}: {_said(old)} -> {_said(new)}"


def _said(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _yaml(body: Mapping[str, object]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(body), sort_keys=False, allow_unicode=True))
