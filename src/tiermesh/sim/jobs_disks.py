"""What is known of jobs in the simulated mesh as a whole: all that is on its disks, whoever leads."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from tiermesh.core.jobs import Job, JobId, join
from tiermesh.sim.jobs_machine import JobMachine
from tiermesh.sim.jobs_world import JobWorld


def records_on(machines: Iterable[JobMachine]) -> dict[JobId, Job]:
    """Every job as the disks of these machines know it together: one of them alone may have been away since."""
    disks = [machine.disk for machine in machines]
    jobs = sorted({job for disk in disks for job in disk})
    return {job: reduce(join, (disk[job] for disk in disks if job in disk)) for job in jobs}


def check_disks(world: JobWorld) -> None:
    """Of everything that is on disks now. Raises Violation."""
    disks = {machine.id: machine.disk for machine in world.machines.values()}
    world.invariants.lost(disks)
    for job in {job for disk in disks.values() for job in disk}:
        world.invariants.met([disk[job] for disk in disks.values() if job in disk])
