"""One JSON object, read as it is being written: its members are known before it is complete."""

from __future__ import annotations

import json
from typing import Literal

_State = Literal["open", "key?", "key", "colon", "value?", "string", "nested", "scalar", "next", "done", "broken"]


class ObjectReader:
    """Feed it text from the opening brace on. Members of inner objects are part of the outer member's value.

    Brackets are counted, not matched: a value that is complete may still be no JSON.
    """

    def __init__(self) -> None:
        self.raw = ""
        """What was read of it."""
        self.values: dict[str, str] = {}
        """Each member's value as it was written; the last one may be unfinished."""
        self._complete: set[str] = set()
        self._state: _State = "open"
        self._key = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def done(self) -> bool:
        """The closing brace was read."""
        return self._state == "done"

    @property
    def broken(self) -> bool:
        """This is no JSON object; what follows was not read."""
        return self._state == "broken"

    def complete(self, key: str) -> bool:
        """Whether this member's value will not grow."""
        return key in self._complete

    def feed(self, text: str) -> str:
        """Gives what comes after the object."""
        for at, character in enumerate(text):
            if self._state in ("done", "broken"):
                return text[at:]
            self._step(character)
            if self._state != "broken":
                self.raw += character
            else:
                return text[at:]
        return ""

    def _step(self, character: str) -> None:
        match self._state:
            case "key":
                self._in_key(character)
            case "string" | "nested":
                self._in_value(character)
            case "scalar" if character not in ",} \t\r\n":
                self.values[self._key] += character
            case "scalar":
                self._end_value()
                self._step(character)
            case _ if character not in " \t\r\n":
                self._between(character)

    def _between(self, character: str) -> None:
        """A character that begins or ends something."""
        match self._state, character:
            case "open", "{":
                self._state = "key?"
            case "key?", '"':
                self._state, self._key = "key", '"'
            case "key?", "}" if not self.values:
                self._state = "done"
            case "colon", ":":
                self._state = "value?"
            case "value?", _ if character not in ",:}]":
                self._begin_value(character)
            case ("next", ","):
                self._state = "key?"
            case ("next", "}"):
                self._state = "done"
            case _:
                self._state = "broken"

    def _in_key(self, character: str) -> None:
        self._key += character
        if self._ends_string(character):
            key = _string(self._key)
            self._state, self._key = ("broken", "") if key is None else ("colon", key)

    def _begin_value(self, character: str) -> None:
        self.values[self._key] = character
        self._in_string = character == '"'
        self._depth = 1 if character in "{[" else 0
        self._state = "string" if self._in_string else "nested" if self._depth else "scalar"

    def _in_value(self, character: str) -> None:
        self.values[self._key] += character
        if self._in_string:
            self._in_string = not self._ends_string(character)
        elif character == '"':
            self._in_string = True
        else:
            self._depth += (character in "{[") - (character in "}]")
        if self._depth == 0 and not self._in_string:
            self._end_value()

    def _end_value(self) -> None:
        self._complete.add(self._key)
        self._state = "next"

    def _ends_string(self, character: str) -> bool:
        escaped, self._escaped = self._escaped, character == "\\" and not self._escaped
        return character == '"' and not escaped


def _string(raw: str) -> str | None:
    """Models write line breaks into strings as they are; JSON's readers refuse them unless told otherwise."""
    try:
        value = json.loads(raw, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
