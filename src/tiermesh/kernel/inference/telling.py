"""From the generator's thread to those who write answers: the parts of each, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from tiermesh.errors import EngineFailed
from tiermesh.kernel.inference.chat import Chat
from tiermesh.kernel.inference.sequence import Choice, Event, Failed, Finished, Replayed, Sequence, Text
from tiermesh.kernel.inference.tools.parser import CallParser
from tiermesh.kernel.inference.transcript import Part, Transcript

if TYPE_CHECKING:
    from tiermesh.kernel.inference.encoder import Encoded
    from tiermesh.kernel.inference.generation import Generator


class Telling:
    """One answer, while it is generated. Made on the loop that will read it."""

    def __init__(self, asked: Chat, encoded: Encoded, index: int, adapter: str | None) -> None:
        sampling = asked.sampling_of(index)
        names = frozenset(tool.name for tool in asked.toolbox.callable)
        parser = CallParser(encoded.family, names) if encoded.family is not None and names else None
        self._loop = asyncio.get_running_loop()
        # Bounded by the context: a sequence has no more events than tokens.
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._transcript = Transcript(
            parser, seed=sampling.seed, one_call=not asked.toolbox.parallel, resumed=len(asked.resumed)
        )
        self.sequence = Sequence(
            prompt=encoded.prompt,
            sampling=sampling,
            max_tokens=encoded.max_tokens,
            stops=asked.stops,
            emit=lambda event: _hand_over(self._loop, self._events, event),
            resumed=asked.resumed,
            adapter=adapter,
            grammar=encoded.grammars[index],
        )

    @property
    def tokens(self) -> int:
        """Chosen so far, those of a resumed beginning included."""
        return self._transcript.tokens

    @property
    def cached_tokens(self) -> int:
        """Of the prompt; they needed no computing."""
        return self.sequence.cached_tokens

    async def parts(self) -> AsyncGenerator[Part, None]:
        """All of it; the last part has a reason. Raises `EngineFailed` when the generator could not go on."""
        while True:
            match await self._events.get():
                case Replayed(text):
                    self._transcript.replay(text)
                    if self._transcript.over:
                        yield self._transcript.finish()
                        return
                case Text() as event:
                    part = self._transcript.take(event)
                    if part is not None:
                        yield part
                    if self._transcript.over:
                        yield self._transcript.finish()
                        return
                case Finished() as event:
                    yield self._transcript.finish(event)
                    return
                case Failed(message):
                    raise EngineFailed(message)

    async def shown_parts(self) -> AsyncGenerator[Part, None]:
        """The first part, those that show something, and the last one; choices of the others go with the next."""
        kept: list[Choice] = []
        first = True
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                part.choices = kept + part.choices
                if first or not part.empty or part.reason is not None:
                    yield part
                    kept, first = [], False
                else:
                    kept = part.choices


@asynccontextmanager
async def telling(
    generator: Generator, asked: Chat, encoded: Encoded, adapter: str | None
) -> AsyncIterator[list[Telling]]:
    """As many answers as were asked for, generated for as long as their client listens."""
    tellings = [Telling(asked, encoded, index, adapter) for index in range(asked.n)]
    submitted = []
    try:
        for told in tellings:
            generator.submit(told.sequence)
            submitted.append(told)
        yield tellings
    finally:
        for told in submitted:
            generator.cancel(told.sequence)


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)
