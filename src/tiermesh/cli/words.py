"""A job said in a sentence: shown as it was understood, and confirmed before it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.errors import InvalidSpec

if TYPE_CHECKING:
    from tiermesh.core.words import Understood


def sentence_of(words: list[str] | None) -> str | None:
    """The sentence that was given instead of a file: more than one word, in quotes or without."""
    if not words:
        return None
    text = " ".join(words)
    return text if len(text.split()) > 1 and not (len(words) == 1 and Path(text).is_file()) else None


def understand(sentence: str, *, as_json: bool) -> Understood:
    """What it asks for, shown. Raises `InvalidSpec` for what has no one meaning."""
    from tiermesh.cli.names import trainable
    from tiermesh.core.words import understood

    found = understood(sentence, trainable())
    if as_json:
        said = [{"field": one.field, "value": one.value, "words": one.words} for one in found.said]
        print(json.dumps({"event": "understood", "said": said, "strange": found.strange, "unclear": found.unclear}))
    else:
        width = max((len(one.field) for one in found.said), default=0)
        for one in found.said:
            print(f"{one.field:<{width}}  {json.dumps(one.value, ensure_ascii=False)}   (“{one.words}”)")
        for words in found.strange:
            print(f"not understood: “{words}”")
        print()
    if found.unclear:
        raise InvalidSpec(f"the sentence is not clear: {'; '.join(found.unclear)}", param="sentence")
    return found


def confirm(found: Understood, *, yes: bool, as_json: bool) -> None:
    """Go on only if a person says so, or has said so, and then only of what was understood whole."""
    import typer

    from tiermesh.cli import question
    from tiermesh.cli.outcome import FAILED

    if yes and found.is_clear:
        return
    if yes or as_json or not question.on_terminal():
        if found.strange:
            raise InvalidSpec(f"not understood: {'; '.join(found.strange)}. Say it otherwise", param="sentence")
        raise InvalidSpec("a sentence is confirmed before it runs: call it on a terminal, or with --yes", param="yes")
    doubt = ", without what was not understood" if found.strange else ""
    if not question.confirm(f"Train this{doubt}?", default=found.is_clear):
        raise typer.Exit(FAILED)
