"""What words of a sentence say which field of a training job: the rules of `core.words`, in the order of reading.

White space in a sentence is single, so that no pattern tries more than a few ways of reading it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NUMBERS = "one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: number for number, word in enumerate(_NUMBERS.split(), start=1)}
DATA_ENDINGS = r"jsonl|ndjson|json|csv|tsv|parquet|txt|text|md|gz|zst"
_INT = r"(?<![\w.,-])(?:[0-9]{1,3}(?:[,_][0-9]{3}){1,4}|[0-9]{1,15}|" + "|".join(NUMBER_WORDS) + r")(?![\w%]|[.,][0-9])"
_FLOAT = r"(?<![\w.,-])(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?:e[+-]?[0-9]{1,4})?(?![\w%]|[.,][0-9])"
_IS = r"\s*(?:=|\bto\b|\bof\b|\bis\b|\s)\s*"
_MOST = r"(?:(?:at\s+most|up\s+to|under|below|max(?:imum)?|no(?:t)?\s+more\s+than|less\s+than)\s+(?:of\s+)?)?"
_FILE = rf"(?![^\s\x00]*://)(?:[\ue000-\uefff]|[^\s\x00]+\.(?:{DATA_ENDINGS})|(?:\.{{0,2}}/|~/)[^\s\x00]+)(?![^\s\x00])"
WORD = r"(?:[\ue000-\uf8ff]|[A-Za-z0-9_.~/][A-Za-z0-9_.~/:+-]*)(?![^\s\x00])"
_LABEL = r"(?:[\ue000-\uf8ff]|[A-Za-z0-9][A-Za-z0-9._:-]*)(?![^\s\x00])"
VERB = r"(?:fine-?\s?tune|fine-?\s?tuning|finetune|finetuning|tune|train|training|adapt|teach|pretrain|pre-train)"
_ARTICLE = r"(?:(?:the|a|an|my|our|this)\s+)?"


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern` says `field`; `value` of its first group, None when that is no value after all.

    Without a field it takes out what is not wanted, so that no later rule reads it as wanted.
    """

    field: str
    pattern: re.Pattern[str]
    value: Callable[[str], Any]


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
    _rule("model_name", rf"(?:the\s+)?(?:base\s+)?model(?:_name)?(?:=|\s+is\s+|\s+called\s+)({WORD})"),
    _rule("name", rf"(?:call|name)\s+(?:it|(?:the\s+)?(?:job|result|adapter|model))\s+({_LABEL})"),
    _rule("name", rf"(?:(?:and\s+)?save\s+(?:it\s+)?as|called|named|name=|name\s+is)\s*({_LABEL})"),
    _rule("target_gpu", r"(?:on|at)\s+(?:a\s+)?(?:the\s+)?(?:node\s+(?:of\s+)?)?tier(?:\s+|:)([012])(?!\S)", _tier),
    _rule("target_gpu", rf"(?:on|at)\s+(?:the\s+)?(?:node|machine|host|gpu)\s+(?:called\s+)?({_LABEL})"),
    _rule(
        "dataset_path",
        rf"(?:(?:on|from|over|with|using|of)\s+)?{_ARTICLE}(?:(?:data(?:set)?|file|records|examples)"
        rf"(?:{_IS}|\s+(?:in|from|file)\s+)\s*)?{_ARTICLE}({_FILE})(?:\s+(?:data(?:set)?|file)(?![^\s\x00]))?",
    ),
    _rule("dataset_path", rf"data(?:set)?=({WORD})"),
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
    _rule("method", rf"fully(?=\s+{VERB})", _is("full_finetune")),
    _rule(
        "task",
        r"(?:with\s+|by\s+|using\s+)?(?:dpo|preference\s+(?:tun(?:e|ing)|optimi[sz]ation)|preferences)(?!\S)",
        _is("preference"),
    ),
)

PRETRAIN = _rule("task", r"(?:continue(?:d)?\s+)?(?:pretrain|pre-train)(?:ing)?(?!\S)", _is("pretrain"))
"""Comes after the model, which is named after the same word."""
