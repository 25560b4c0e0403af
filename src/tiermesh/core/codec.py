"""Frozen dataclasses to and from plain JSON data, by their type hints.

Encoding leaves out fields that hold their default. Decoding ignores unknown fields and fills in defaults, so that
neighbouring versions understand each other, and raises ValueError, naming the field, for anything of a wrong type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

LONGEST_TEXT = 4096
"""Characters of any one string: names, addresses, digests are far shorter."""
DEEPEST = 32
"""Levels of plain data within data: a policy has four. What is deeper could be read here and not be written again."""
LARGEST_INTEGER = 2**53
"""Beyond it JSON readers lose digits. A term reaches it after 2^37 elections."""

Decoder = Callable[[object], Any]


def encode_value(value: object) -> object:
    """`value` as JSON data; dataclasses become objects without the fields that hold their default."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case tuple() | list():
            return [encode_value(each) for each in value]
        case Mapping():
            return {key: encode_value(each) for key, each in value.items()}
        case _:
            kind: Any = type(value)
            return {
                name: encode_value(each)
                for name, default in _plan(kind)
                if (each := getattr(value, name)) is not default and each != default
            }


def decode_value(kind: Any, data: object) -> Any:
    """The `kind` that `data` describes. Raises ValueError when it describes none."""
    return _decoder(kind)(data)


@cache
def _plan(kind: Any) -> tuple[tuple[str, object], ...]:
    assert is_dataclass(kind), f"{kind} can't be encoded"
    return tuple((each.name, _default(each)) for each in fields(kind))


def _default(each: Field[Any]) -> object:
    if each.default is not MISSING:
        return each.default
    return MISSING if each.default_factory is MISSING else each.default_factory()


@cache
def _decoder(kind: Any) -> Decoder:
    if isinstance(kind, NewType):
        return _decoder(kind.__supertype__)
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_decoder(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return _optional_decoder(arguments)
    if origin is Literal:
        return _literal_decoder(arguments)
    if origin is tuple:
        return _tuple_decoder(arguments)
    if origin is Mapping:
        return _mapping_decoder(arguments[1])
    return _SCALARS[kind]


def _dataclass_decoder(kind: type) -> Decoder:
    hints = get_type_hints(kind)
    known = {each.name: (_decoder(hints[each.name]), _default(each)) for each in fields(kind)}

    def decode(data: object) -> object:
        if not isinstance(data, dict):
            raise ValueError(f"an object was expected for {kind.__name__}, not {type(data).__name__}")
        found: dict[str, object] = {}
        for name, (decoder, default) in known.items():
            if name in data:
                try:
                    found[name] = decoder(data[name])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
            elif default is MISSING:
                raise ValueError(f"{kind.__name__} lacks {name}")
        return kind(**found)

    return decode


def _optional_decoder(arguments: tuple[Any, ...]) -> Decoder:
    (inner,) = (each for each in arguments if each is not type(None))
    decoder = _decoder(inner)
    return lambda data: None if data is None else decoder(data)


def _literal_decoder(allowed: tuple[Any, ...]) -> Decoder:
    def decode(data: object) -> object:
        for each in allowed:
            if type(data) is type(each) and data == each:
                return data
        raise ValueError(f"one of {', '.join(map(str, allowed))} was expected")

    return decode


def _tuple_decoder(arguments: tuple[Any, ...]) -> Decoder:
    if arguments[-1] is Ellipsis:
        each_decoder = _decoder(arguments[0])
        return lambda data: tuple(map(each_decoder, _list(data)))
    decoders = tuple(map(_decoder, arguments))

    def decode(data: object) -> object:
        items = _list(data)
        if len(items) != len(decoders):
            raise ValueError(f"{len(decoders)} values were expected, not {len(items)}")
        return tuple(decoder(item) for decoder, item in zip(decoders, items, strict=True))

    return decode


def _mapping_decoder(inner: Any) -> Decoder:
    decoder: Decoder = _plain if inner is object else _decoder(inner)

    def decode(data: object) -> object:
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise ValueError("an object with text keys was expected")
        return {key: decoder(value) for key, value in data.items()}

    return decode


def _list(data: object) -> list[object]:
    if not isinstance(data, list):
        raise ValueError(f"a list was expected, not {type(data).__name__}")
    return data


def _plain(data: object, room: int = DEEPEST) -> object:
    """Any JSON data that is not nested too deeply."""
    if not room:
        raise ValueError(f"data of at most {DEEPEST} levels was expected")
    if isinstance(data, dict):
        return {key: _plain(each, room - 1) for key, each in data.items()}
    return [_plain(each, room - 1) for each in data] if isinstance(data, list) else data


def _text(data: object) -> str:
    if not isinstance(data, str) or len(data) > LONGEST_TEXT or not _is_unicode(data):
        raise ValueError(f"text of at most {LONGEST_TEXT} characters was expected")
    return data


def _is_unicode(text: str) -> bool:
    """Has no lone surrogate, which JSON may carry and no disk or wire takes."""
    return text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text)


def _integer(data: object) -> int:
    if isinstance(data, bool) or not isinstance(data, int) or abs(data) > LARGEST_INTEGER:
        raise ValueError("an integer was expected")
    return data


def _number(data: object) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float)) or not math.isfinite(data):
        raise ValueError("a finite number was expected")
    return float(data)


def _boolean(data: object) -> bool:
    if not isinstance(data, bool):
        raise ValueError("true or false was expected")
    return data


_SCALARS: Mapping[Any, Decoder] = {str: _text, int: _integer, float: _number, bool: _boolean}
