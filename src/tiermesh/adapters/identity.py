"""Who this node is and what it has promised, in a small file of its own: the two facts of its state folder that nobody
else could tell it again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tiermesh.adapters.passport import checked_node_id
from tiermesh.types import NO_BALLOT, Ballot, NodeId

FILE_NAME = "node.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """One node's."""

    node_id: NodeId
    promised: Ballot = NO_BALLOT


def read_identity(folder: Path) -> Identity | None:
    """None where there is none, or none that can be read."""
    try:
        told = json.loads((folder / FILE_NAME).read_text("utf-8"))
        leader = str(told["promised"]["node_id"])
        promised = Ballot(int(told["promised"]["term"]), checked_node_id(leader)) if leader else NO_BALLOT
        return Identity(checked_node_id(str(told["id"])), promised)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_identity(folder: Path, identity: Identity) -> None:
    """Whole or not at all, and on the disk when it returns. Raises `OSError`."""
    promised = {"term": identity.promised.term, "node_id": identity.promised.node_id}
    staged = folder / f".{FILE_NAME}.new"
    with staged.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"id": identity.node_id, "promised": promised}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    staged.replace(folder / FILE_NAME)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
