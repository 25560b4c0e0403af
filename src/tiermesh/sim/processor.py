"""When things happen to a machine: later, in order, and not while it is frozen, busy, or another run of itself."""

from __future__ import annotations

from collections.abc import Callable

from tiermesh.sim.clock import Clock
from tiermesh.sim.machine import Machine


class Processor:
    """One queue of work for each machine, served as the clock goes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def later(self, delay: float, machine: Machine, action: Callable[..., None], *arguments: object) -> None:
        """Let `action(*arguments)` happen to the machine, unless this run of it has ended by then."""
        self._clock.at(self._clock.now + delay, self.enter, machine, machine.run, action, arguments)

    def enter(self, machine: Machine, run: int, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """Now, or when it thaws, or when it has done what came before."""
        if run != machine.run or machine.node is None:
            return
        if machine.frozen:
            machine.mailbox.append((action, arguments))
        elif machine.busy_until > self._clock.now or machine.inbox:
            machine.inbox.append((action, arguments))
            if len(machine.inbox) == 1:
                self._clock.at(machine.busy_until, self._work, machine, machine.run)
        else:
            action(*arguments)

    def _work(self, machine: Machine, run: int) -> None:
        """The processor is free: take the next of what waits."""
        if run != machine.run or not machine.inbox:
            return
        if machine.frozen:
            machine.mailbox.extend(machine.inbox)
            machine.inbox.clear()
            return
        action, arguments = machine.inbox[0]
        action(*arguments)
        if run == machine.run:
            machine.inbox.popleft()
            if machine.inbox:
                self._clock.at(machine.busy_until, self._work, machine, run)
