"""YAML as people write it, with its best-known traps closed. JSON is read too, being YAML."""

from __future__ import annotations

import re

import yaml

from tiermesh.errors import InvalidConfig


def plain_data(text: str, source: str) -> object:
    """Lists, mappings, texts and numbers; None for an empty text. Raises `InvalidConfig` that names `source`."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidConfig(f"{source}: {_sentence(error)}") from error


class _Loader(yaml.SafeLoader):
    """Plain data. A key given twice is a mistake, and `5e-5` is a number although it has no dot."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _sentence(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "it is nested too deeply or is not YAML"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
