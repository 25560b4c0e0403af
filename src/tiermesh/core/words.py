"""A training job from a sentence, by rules alone: what they know is taken out of it, and what is left is told.

    fine-tune smollm2 with LoRA on data.jsonl for 3 epochs, batch size 8

Rules are tried in the order of `core.word_rules`, the particular ones first; each takes its words out, so no later one
reads them again. A word that no rule and no list of fillers knows is never passed over in silence: it comes back in
`strange`. What is said twice and differently comes back in `unclear`. Nothing is guessed that was not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tiermesh.core.word_rules import DATA_ENDINGS, PRETRAIN, RULES, VERB, WORD, Rule

LENGTH_LIMIT = 1000
"""Characters of a sentence. What is longer is a document, and belongs into a spec."""
DEFAULT_MICRO_BATCH = 4
"""As the spec has it; an effective batch is made of these."""
TAKEN = "\x00"
"""Stands for a character that a rule has read."""
QUOTED_FILE, QUOTED = 0xE000, 0xF000
"""From here on, characters of nobody's use stand for what was between quotes: the name of a data file, and the rest."""

_FILLERS = """
a adapter an and as at base be by can could data dataset do examples file fine-tune fine-tuning finetune finetuning for
from give i i'd in into it its job let's lets like long make me mesh method model my need new of on our over please
quick quickly records run should size spec start take teach that the them then this to train training tune tuning use
using want we will with would you your
"""
FILLERS = frozenset(_FILLERS.split())
"""Words that say nothing which a rule would have to know."""


@dataclass(frozen=True, slots=True)
class Said:
    """`words` of the sentence stand for `value` of `field`: a path in the spec, `name`, or `max_usd`."""

    field: str
    value: Any
    words: str
    at: int = 0
    """Where they begin, in characters."""


@dataclass(frozen=True, slots=True)
class Understood:
    """A sentence, taken apart."""

    said: tuple[Said, ...] = ()
    strange: tuple[str, ...] = ()
    """Stretches of words that no rule knows, in their order."""
    unclear: tuple[str, ...] = ()
    """What has no one meaning, each in a sentence."""

    @property
    def is_clear(self) -> bool:
        """Was every word understood, in one way only?"""
        return not self.strange and not self.unclear

    def value(self, field: str) -> Any:
        """What was said of this field; None: nothing."""
        return next((one.value for one in self.said if one.field == field), None)

    def spec(self) -> dict[str, Any]:
        """As the plain data of a training spec, without `name` and `max_usd`."""
        made: dict[str, Any] = {}
        for one in self.said:
            if one.field in ("name", "max_usd"):
                continue
            *groups, last = one.field.split(".")
            place = made
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = one.value
        return made


def understood(sentence: str, models: Iterable[str] = ()) -> Understood:
    """What it asks for. `models` are names that are known; the part before a colon is short for the only one of it."""
    if len(sentence) > LENGTH_LIMIT:
        return Understood(
            unclear=(f"it has {len(sentence):,} characters; more than {LENGTH_LIMIT} belong into a spec",)
        )
    if any(not character.isprintable() and not character.isspace() for character in sentence):
        return Understood(unclear=("it has characters that can't be seen",))
    reading = _Reading(sentence)
    known = list(models)
    for rule in RULES:
        reading.read(rule)
    if not any(one.field == "model_name" for one in reading.said):
        _read_model(reading, known)
    reading.read(PRETRAIN)
    return _settled(reading, known)


class _Reading:
    """A sentence, of which rules take out what they know."""

    def __init__(self, sentence: str) -> None:
        self.quoted: dict[str, str] = {}
        text = sentence.translate(_PLAIN_SIGNS)
        text = re.sub(r"(?<!\S)([\"'`])([^\"'`]+)\1(?=[\s,;:.!?)]|$)", self._keep, text)
        self.text = " ".join(re.sub(r"[,;!?)]+(?=\s|$)|[.:](?=\s|$)|(?<!\S)\(", " ", text).split())
        self.said: list[Said] = []
        self.strange: list[str] = []

    def read(self, rule: Rule) -> None:
        """Take out all that the rule knows."""
        start = 0
        while found := rule.pattern.search(self.text, start):
            start = found.end() if found.end() > found.start() else found.end() + 1
            given = next((group for group in found.groups() if group is not None), "")
            value = rule.value(self.plain(given))
            if not rule.field:
                self.strange.append(self.take(found))
            elif value is not None:
                self.said.append(Said(rule.field, value, self.take(found), found.start()))

    def take(self, found: re.Match[str]) -> str:
        """The words of a match, which nobody reads again."""
        start, end = found.span()
        self.text = self.text[:start] + TAKEN * (end - start) + self.text[end:]
        return self.plain(found[0])

    def plain(self, text: str) -> str:
        """As it was written, for a person."""
        return " ".join("".join(self.quoted.get(sign, sign) for sign in text if sign != TAKEN).split())

    def _keep(self, found: re.Match[str]) -> str:
        is_file = re.search(rf"\.(?:{DATA_ENDINGS})$", found[2], re.IGNORECASE)
        sign = chr((QUOTED_FILE if is_file else QUOTED) + len(self.quoted))
        self.quoted[sign] = found[2]
        return sign


_AFTER_VERB = re.compile(
    rf"(?<![^\s\x00]){VERB}(?:ing)?\s+(?:(?:me|the|a|an|my|our|base|model|of|for)\s+)*({WORD})", re.IGNORECASE
)
_AFTER_METHOD = re.compile(rf"\x00\s+(?:for|of)\s+(?:(?:the|my|our|base|model)\s+)*({WORD})", re.IGNORECASE)
_OF_A_HUB = re.compile(r"(?<![^\s\x00])([A-Za-z][\w.-]*/[A-Za-z0-9][\w.-]*)(?![^\s\x00])")
_PLAIN_SIGNS = {ord(sign): plain for signs, plain in (("‐‑‒–—−", "-"), ("“”„«»", '"'), ("‘’‚", "'")) for sign in signs}


def _settled(reading: _Reading, models: list[str]) -> Understood:
    """The rules have read; what is left are fillers, or strange."""
    unclear: list[str] = []
    said = [_known_model(one, models, unclear) if one.field == "model_name" else one for one in reading.said]
    said = sorted(_with_effective_batch(said, unclear), key=lambda one: one.at)
    said = list(_once(said, unclear))
    return Understood(tuple(said), (*reading.strange, *_left(reading)), tuple(unclear))


def _read_model(reading: _Reading, models: list[str]) -> None:
    """A name that is known, wherever it stands; else what is to be trained, after the verb."""
    for found in re.finditer(WORD, reading.text):
        if _candidates(reading.plain(found[0]), models):
            reading.said.append(Said("model_name", reading.plain(found[0]), reading.take(found), found.start()))
            return
    for pattern in (_AFTER_VERB, _AFTER_METHOD, _OF_A_HUB):
        place = pattern.search(reading.text)
        if place is not None and reading.plain(place[1]).lower() not in FILLERS:
            name = re.compile(re.escape(place[1])).search(reading.text, place.start(1))
            assert name is not None
            reading.said.append(Said("model_name", reading.plain(name[0]), reading.take(name), name.start()))
            return


def _candidates(name: str, models: list[str]) -> list[str]:
    """The known models that this may mean."""
    wanted = name.lower()
    exact = [model for model in models if model.lower() == wanted]
    return exact or [model for model in models if model.lower().partition(":")[0] == wanted]


def _known_model(said: Said, models: list[str], unclear: list[str]) -> Said:
    found = _candidates(said.value, models)
    if len(found) > 1:
        unclear.append(f"{said.value} may be {' or '.join(found)}")
    return replace(said, value=found[0] if len(found) == 1 else said.value)


def _with_effective_batch(said: list[Said], unclear: list[str]) -> list[Said]:
    """An effective batch is so many micro-batches."""
    whole = [one for one in said if one.field == "effective"]
    rest = [one for one in said if one.field != "effective"]
    if not whole:
        return rest
    values: Mapping[str, int] = {one.field: one.value for one in rest}
    rows, micro = whole[0].value, values.get("micro_batch_size")
    if len({one.value for one in whole}) > 1 or "gradient_accumulation_steps" in values:
        unclear.append("the effective batch is said in more than one way")
        return rest
    if rows < 1 or (micro is not None and (micro < 1 or rows % micro)):
        unclear.append(f"an effective batch of {rows} is not made of batches of {micro}")
        return rest
    taken = micro or next(size for size in range(min(DEFAULT_MICRO_BATCH, rows), 0, -1) if rows % size == 0)
    own = [] if micro else [replace(whole[0], field="micro_batch_size", value=taken)]
    return [*rest, *own, replace(whole[0], field="gradient_accumulation_steps", value=rows // taken)]


def _once(said: list[Said], unclear: list[str]) -> Iterator[Said]:
    """Each field once; what is said twice and differently is unclear."""
    first: dict[str, Said] = {}
    for one in said:
        before = first.setdefault(one.field, one)
        if before is one:
            yield one
        elif before.value != one.value:
            unclear.append(f"{one.field} is both {before.value!r} (“{before.words}”) and {one.value!r} (“{one.words}”)")


def _left(reading: _Reading) -> Iterator[str]:
    """Stretches of words that nobody read, without the fillers at their ends."""
    for stretch in re.split(f"{TAKEN}+", reading.text):
        words = stretch.split()
        while words and words[0].lower() in FILLERS:
            words.pop(0)
        while words and words[-1].lower() in FILLERS:
            words.pop()
        if any(word not in ("-", "--", "&", "+", "/") for word in words):
            yield reading.plain(" ".join(words))
