"""Constrained decoding: which tokens may come next, by llguidance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from tiermesh.errors import EngineFailed, InvalidInput

MAX_COMPILED = 32
"""Grammars kept: an agent sends the same tools with every turn, and a few agents may take turns."""
MAX_GRAMMAR_CHARACTERS = 64 << 10
"""Larger ones take seconds to compile, while all other prompts wait to be encoded."""
MAX_REASON_CHARACTERS = 300
"""llguidance's reasons quote the whole grammar after the sentence that says what is wrong."""


class Grammars:
    """Compiles grammars for one tokenizer. Used by one thread at a time; made when the first one is asked for."""

    def __init__(self, tokenizer: Any, end_tokens: Iterable[int]) -> None:
        self._vocabulary: LLTokenizer = from_tokenizer(tokenizer, eos_token=sorted(end_tokens) or None)
        self._named = len(tokenizer)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, lark: str, param: str, resumed: Sequence[int] = ()) -> TokenGrammar:
        """A grammar at its beginning, for an answer that will go on from `resumed`.

        Raises `InvalidInput` for `param` when it can't be enforced, and for tokens that it doesn't allow.
        """
        matcher = self._compiled.pop(lark, None) or self._compile(lark, param)
        self._compiled[lark] = matcher
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        if resumed and matcher.deep_copy().validate_tokens(list(resumed)) < len(resumed):
            raise InvalidInput(f"resume_token_ids: {param} does not allow them", param="resume_token_ids")
        return TokenGrammar(matcher.deep_copy())

    def bytes_of(self, token: int) -> bytes:
        """What this token stands for: a special one for its name, one that the tokenizer does not name for nothing."""
        return bytes(self._vocabulary.decode_bytes([token])) if token < self._named else b""

    def _compile(self, lark: str, param: str) -> LLMatcher:
        if len(lark) > MAX_GRAMMAR_CHARACTERS:
            raise InvalidInput(f"{param}: more than {MAX_GRAMMAR_CHARACTERS} characters of schemas", param=param)
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0].partition("): ")[2] or matcher.get_error()
            raise InvalidInput(f"{param}: can't be enforced: {reason[:MAX_REASON_CHARACTERS]}", param=param)
        return matcher


class TokenGrammar:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits_V: torch.Tensor) -> None:
        """Make the logits of all tokens that may not come next -inf, in place. At the end only an end token may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits_V)).astype(bool)
        if self._matcher.is_error():
            raise EngineFailed(f"the grammar became too complex: {self._reason()}")
        if logits_V.device.type == "cpu":
            # numpy writes with one thread: waking torch's others takes longer than the work.
            np.putmask(logits_V.numpy(), ~allowed, -np.inf)
        else:
            logits_V.masked_fill_(torch.from_numpy(~allowed).to(logits_V.device), float("-inf"))

    def accept(self, token: int) -> None:
        """This token came. Raises `EngineFailed` when it may not."""
        if not self._matcher.consume_token(token):
            raise EngineFailed(f"a token that the grammar does not allow: {self._reason()}")

    def _reason(self) -> str:
        return self._matcher.get_error()[:MAX_REASON_CHARACTERS]
