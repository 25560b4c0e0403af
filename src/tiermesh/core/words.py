"""A training job from a sentence, by rules alone: what they know is taken out of it, and what is left is told.

    fine-tune smollm2 with LoRA on data.jsonl for 3 epochs, batch size 8

Rules are tried in the order of `RULES`, the particular ones first; each takes its words out, so no later one reads them
again. A word that no rule and no list of fillers knows is never passed over in silence: it comes back in `strange`.
What is said twice and differently comes back in `unclear`. Nothing is guessed that was not said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

LENGTH_LIMIT = 1000
"""Characters of a sentence. What is longer is a document, and belongs into a spec."""
DEFAULT_MICRO_BATCH = 4
"""As the spec has it; an effective batch is made of these."""
TAKEN = "\x00"
"""Stands for a character that a rule has read."""
QUOTED_FILE, QUOTED = 0xE000, 0xF000
"""From here on, characters of nobody's use stand for what was between quotes: the name of a data file, and the rest."""

_NUMBERS = "one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: number for number, word in enumerate(_NUMBERS.split(), start=1)}
_FILLERS = """
a adapter an and as at base be by can could data dataset do examples file fine-tune fine-tuning finetune finetuning for
from give i i'd in into it its job let's lets like long make me mesh method model my need new of on our over please
quick quickly records run should size spec start take teach that the them then this to train training tune tuning use
using want we will with would you your
"""
FILLERS = frozenset(_FILLERS.split())
"""Words that say nothing which a rule would have to know."""

DATA_ENDINGS = r"jsonl|ndjson|json|csv|tsv|parquet|txt|text|md|gz|zst"
_INT = r"(?<![\w.,-])(?:[0-9]{1,3}(?:[,_][0-9]{3}){1,4}|[0-9]{1,15}|" + "|".join(NUMBER_WORDS) + r")(?![\w%]|[.,][0-9])"
_FLOAT = r"(?<![\w.,-])(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?:e[+-]?[0-9]{1,4})?(?![\w%]|[.,][0-9])"
_IS = r"\s*(?:=|\bto\b|\bof\b|\bis\b|\s)\s*"
_MOST = r"(?:(?:at\s+most|up\s+to|under|below|max(?:imum)?|no(?:t)?\s+more\s+than|less\s+than)\s+(?:of\s+)?)?"
_FILE = rf"(?![^\s\x00]*://)(?:[\ue000-\uefff]|[^\s\x00]+\.(?:{DATA_ENDINGS})|(?:\.{{0,2}}/|~/)[^\s\x00]+)(?![^\s\x00])"
_WORD = r"(?:[\ue000-\uf8ff]|[A-Za-z0-9_.~/][A-Za-z0-9_.~/:+-]*)(?![^\s\x00])"
_LABEL = r"(?:[\ue000-\uf8ff]|[A-Za-z0-9][A-Za-z0-9._:-]*)(?![^\s\x00])"
_VERB = r"(?:fine-?\s?tune|fine-?\s?tuning|finetune|finetuning|tune|train|training|adapt|teach|pretrain|pre-train)"
_ARTICLE = r"(?:(?:the|a|an|my|our|this)\s+)?"


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
        rule.read(reading)
    if not any(one.field == "model_name" for one in reading.said):
        _read_model(reading, known)
    PRETRAIN.read(reading)
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


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern` says `field`; `value` of its first group, None when that is no value after all.

    Without a field it takes out what is not wanted, so that no later rule reads it as wanted.
    """

    field: str
    pattern: re.Pattern[str]
    value: Callable[[str], Any]

    def read(self, reading: _Reading) -> None:
        """Take out all that this rule knows."""
        start = 0
        while found := self.pattern.search(reading.text, start):
            start = found.end() if found.end() > found.start() else found.end() + 1
            given = next((group for group in found.groups() if group is not None), "")
            value = self.value(reading.plain(given))
            if not self.field:
                reading.strange.append(reading.take(found))
            elif value is not None:
                reading.said.append(Said(self.field, value, reading.take(found), found.start()))


def _int(text: str) -> int | None:
    word = NUMBER_WORDS.get(text.lower())
    return word if word is not None else int(re.sub("[,_]", "", text))


def _float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _share(text: str) -> float | None:
    number = _float(text.rstrip("% "))
    return None if number is None else number / 100 if text.endswith("%") else number


def _is(value: Any) -> Callable[[str], Any]:
    return lambda _: value


def _text(text: str) -> str | None:
    return text or None


def _size(text: str) -> str:
    """`8gib` as the spec writes it: `8 GiB`."""
    number, unit = text[:-3] if text.lower().endswith("ib") else text[:-2], text[len(text.rstrip("kmgtibKMGTIB")) :]
    return f"{number.strip()} {unit[0].upper()}{'i' * (len(unit) == 3)}B"


def _tier(text: str) -> str:
    return f"tier:{text}"


def _rule(field: str, pattern: str, value: Callable[[str], Any] = _text) -> Rule:
    return Rule(field, re.compile(rf"(?<![^\s\x00]){pattern}", re.IGNORECASE), value)


def _either(field: str, words: str, number: str, value: Callable[[str], Any]) -> Rule:
    """`words 3`, `words=3`, `words of 3`, `words to 3`."""
    return _rule(field, rf"{_MOST}{words}(?:{_IS}(?:at\s+most\s+|about\s+)?)({number})", value)


_SHARE = r"(?:[0-9]{1,2}(?:\.[0-9]{1,6})?\s?%|0?\.[0-9]{1,9}(?![\w.]))"
_MONEY = r"[0-9]{1,9}(?:\.[0-9]{1,4})?"
_MEMORY = r"[0-9]{1,6}(?:\.[0-9]{1,3})?\s?(?:[kmgt]i?b)(?!\w)"
_OF_MEMORY = r"(?:\s+(?:of\s+)?(?:memory|ram|vram))?"

RULES: tuple[Rule, ...] = (
    _rule("packing", r"(?:without|no)\s+packing(?!\S)", _is(value=False)),
    _rule("eval_fraction", r"(?:without|no)\s+(?:evaluation|held-out\s+(?:data|records))(?!\S)", _is(0.0)),
    _rule("max_usd", rf"(?:a\s+)?budget{_IS}(?:\$\s?)?({_MONEY})(?:\s?(?:\$|usd|dollars?))?(?!\w)", _float),
    _rule("max_usd", rf"(?:for\s+)?(?:spend(?:ing)?\s+)?{_MOST}\$\s?({_MONEY})(?![\w.]*\w)", _float),
    _rule("max_usd", rf"(?:for\s+)?(?:spend(?:ing)?\s+)?{_MOST}({_MONEY})\s?(?:\$|usd|dollars?)(?!\w)", _float),
    _rule("memory_limit", rf"memory(?:\s+limit)?{_IS}({_MEMORY})", _size),
    _rule("memory_limit", rf"(?:in|within|with|using)?\s*{_MOST}({_MEMORY}){_OF_MEMORY}", _size),
    _rule("eval_fraction", rf"hold(?:ing)?\s+out\s+({_SHARE})", _share),
    _rule("eval_fraction", rf"({_SHARE})\s+(?:is\s+)?(?:held[\s-]out|for\s+evaluation)(?!\S)", _share),
    _rule("eval_interval", rf"eval(?:uat(?:e|ing))?\s+every\s+({_INT})\s+steps?(?!\S)", _int),
    _rule("save_interval", rf"(?:sav(?:e|ing)|checkpoint(?:ing|s)?)\s+every\s+({_INT})\s+steps?(?!\S)", _int),
    _rule("warmup", rf"({_INT})\s+(?:steps?\s+(?:of\s+)?warm-?up|warm-?up\s+steps?)(?!\S)", _int),
    _rule("warmup", rf"warm-?up{_IS}({_SHARE}|{_FLOAT})", _share),
    _rule("max_steps", rf"(?:for\s+)?{_MOST}({_INT})\s+(?:training\s+)?steps?(?!\S)", _int),
    _either("max_steps", r"(?:max[_\s-]?)?steps", _INT, _int),
    _rule("num_epochs", rf"(?:for\s+)?{_MOST}({_INT})\s+(?:epochs?|passes|rounds)(?!\S)", _int),
    _rule("num_epochs", r"(?:for\s+)?a\s+single\s+(?:epoch|pass)(?!\S)", _is(1)),
    _either("num_epochs", r"(?:num[_\s-])?epochs?", _INT, _int),
    _either("learning_rate", r"(?:(?:with|at|using)\s+)?(?:a\s+)?(?:learning[_\s-]rate|lr)", _FLOAT, _float),
    _either("effective", r"(?:an?\s+)?(?:effective|total|global)\s+batch(?:[_\s-]size)?", _INT, _int),
    _either("gradient_accumulation_steps", r"(?:gradient[_\s-])?accumulat(?:ion|e)(?:[_\s-]steps)?", _INT, _int),
    _rule("gradient_accumulation_steps", rf"({_INT})\s+(?:gradient[\s-])?accumulation\s+steps(?!\S)", _int),
    _either("micro_batch_size", r"(?:a\s+)?(?:micro[_\s-]?)?batch(?:es)?(?:[_\s-]size)?", _INT, _int),
    _rule(
        "micro_batch_size",
        rf"({_INT})\s+(?:rows|records|examples)\s+(?:at\s+(?:a\s+time|once)|per\s+batch)(?!\S)",
        _int,
    ),
    _either("seq_len", r"(?:seq(?:uence)?[_\s-]len(?:gth)?|(?:max[_\s-])?length|context(?:[_\s-]length)?)", _INT, _int),
    _rule(
        "seq_len", rf"{_MOST}({_INT})\s+tokens?(?:\s+(?:long|(?:a|per)\s+(?:row|record|sequence)|context))?(?!\S)", _int
    ),
    _either("lora.r", r"(?:lora[_\s-])?(?:rank|r)", _INT, _int),
    _either("lora.alpha", r"(?:lora[_\s-])?alpha", _FLOAT, _float),
    _either("lora.dropout", r"(?:lora[_\s-])?dropout", _FLOAT, _float),
    _either("seed", r"(?:random\s+)?seed", _INT, _int),
    _rule("early_stop", r"(?:(?:with\s+)?early\s+stopping|stop(?:ping)?\s+early)(?!\S)", lambda _: {}),
    _rule("merge", r"merg(?:e|ed|ing)(?:\s+(?:it|(?:the\s+)?(?:adapter|result|weights)))?(?!\S)", _is(value=True)),
    _rule("precision", r"(?:in\s+)?(bf16|fp32)(?!\S)", str.lower),
    _rule(
        "eval_path",
        r"(?:(?:evaluat(?:e|ed|ing)|validat(?:e|ed|ing)|test(?:ed|ing)?)\s+(?:it\s+)?(?:on|with|against)|"
        rf"(?:eval(?:uation)?|validation|held-out|test)[_\s-](?:data|set|file|records)(?:{_IS}|\s+from\s+))\s*"
        rf"{_ARTICLE}({_FILE})",
    ),
    _rule("model_name", rf"(?:the\s+)?(?:base\s+)?model(?:_name)?(?:=|\s+is\s+|\s+called\s+)({_WORD})"),
    _rule("name", rf"(?:call|name)\s+(?:it|(?:the\s+)?(?:job|result|adapter|model))\s+({_LABEL})"),
    _rule("name", rf"(?:(?:and\s+)?save\s+(?:it\s+)?as|called|named|name=|name\s+is)\s*({_LABEL})"),
    _rule("target_gpu", r"(?:on|at)\s+(?:a\s+)?(?:the\s+)?(?:node\s+(?:of\s+)?)?tier(?:\s+|:)([012])(?!\S)", _tier),
    _rule("target_gpu", rf"(?:on|at)\s+(?:the\s+)?(?:node|machine|host|gpu)\s+(?:called\s+)?({_LABEL})"),
    _rule(
        "dataset_path",
        rf"(?:(?:on|from|over|with|using|of)\s+)?{_ARTICLE}(?:(?:data(?:set)?|file|records|examples)"
        rf"(?:{_IS}|\s+(?:in|from|file)\s+)\s*)?{_ARTICLE}({_FILE})(?:\s+(?:data(?:set)?|file)(?![^\s\x00]))?",
    ),
    _rule("dataset_path", rf"data(?:set)?=({_WORD})"),
    _rule("dataset_path", rf"(?:on|from|over)\s+{_ARTICLE}(?:(?:data(?:set)?|file)\s+)?([\uf000-\uf8ff])"),
    _rule("", r"(?:without|no|not|never|don't|dont|except|instead\s+of)(?:\s+[^\s\x00]+|(?![^\s\x00]))"),
    _rule("method", r"(?:with\s+|using\s+|by\s+|as\s+)?(?:a\s+|the\s+)?(?:method[=\s])?(qlora)(?!\S)", str.lower),
    _rule("method", r"(?:with\s+|using\s+|by\s+|as\s+)?(?:a\s+|the\s+)?(?:method[=\s])?(lora)(?!\S)", str.lower),
    _rule(
        "method",
        r"(?:(?:all|every)(?:\s+of\s+its)?\s+weights?|full(?:[_\s-]model)?[_\s-]?fine-?tun(?:e|ing)|"
        r"full[_\s]weights?|method[=\s]full(?:_finetune)?)(?![^\s\x00])",
        _is("full_finetune"),
    ),
    _rule("method", rf"fully(?=\s+{_VERB})", _is("full_finetune")),
    _rule(
        "task",
        r"(?:with\s+|by\s+|using\s+)?(?:dpo|preference\s+(?:tun(?:e|ing)|optimi[sz]ation)|preferences)(?!\S)",
        _is("preference"),
    ),
)

PRETRAIN = _rule("task", r"(?:continue(?:d)?\s+)?(?:pretrain|pre-train)(?:ing)?(?!\S)", _is("pretrain"))
"""Comes after the model, which is named after the same word."""

_AFTER_VERB = re.compile(
    rf"(?<![^\s\x00]){_VERB}(?:ing)?\s+(?:(?:me|the|a|an|my|our|base|model|of|for)\s+)*({_WORD})", re.IGNORECASE
)
_AFTER_METHOD = re.compile(rf"\x00\s+(?:for|of)\s+(?:(?:the|my|our|base|model)\s+)*({_WORD})", re.IGNORECASE)
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
    for found in re.finditer(_WORD, reading.text):
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
