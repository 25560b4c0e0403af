"""Questions whose answers are long, no two of one benchmark alike, so that only what all share can be reused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

SEED = 20
PLACES = ("lighthouse", "harbour", "village", "mountain hut", "railway station", "desert town", "island", "library")
PEOPLE = ("an old sailor", "two sisters", "a young engineer", "a baker", "a retired teacher", "a shy musician")
THINGS = ("a broken clock", "a lost letter", "a strange machine", "a map", "a violin", "a box of seeds", "a storm")
FORMS = (
    "Write a long story about {who}, {what} and a {place}.",
    "Tell me in great detail how {who} found {what} in a {place}, from the beginning.",
    "I am writing a novel which takes place in a {place}. Its main character is {who}, and {what} matters a lot in it. "
    "Please write the whole first chapter for me, with many descriptions of the place and of the people in it.",
)


def prompts() -> Iterator[str]:
    """Several hundred, always the same, in an order that mixes short with long."""
    every = list(itertools.product(FORMS, PLACES, PEOPLE, THINGS))
    random.Random(SEED).shuffle(every)
    for form, place, who, what in every:
        yield form.format(place=place, who=who, what=what)
