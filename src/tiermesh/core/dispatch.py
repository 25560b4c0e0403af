"""Which queued job goes where, now: the line in its order, each to the best place that is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tiermesh.core.job_line import Line
from tiermesh.core.job_rules import MAX_ATTEMPTS, MAX_ESTIMATES
from tiermesh.core.jobs import Attempt, Cause, Job
from tiermesh.core.placement import ANY, Place, place
from tiermesh.core.reign import Reign
from tiermesh.types import Member, NodeId


def likeliest_node(reign: Reign, job: Job) -> NodeId | None:
    """Who is to be asked what the job takes: whoever would get it now, or could if it were free."""
    asked = [node for node, _ in reign.asked.values()]
    places = [_for_job(reign, job, each) for each in _places(reign).values()]
    free = [each for each in places if len(each.training) < each.slots]
    unhurried = [replace(each, training=()) for each in places]
    for choice in (free, unhurried):
        found = place(None, _wanted(job), choice, battery=reign.rules.train_on_battery)
        if found.node is not None:
            reign.praise[job.id] = found.reason
            return found.node if asked.count(found.node) < MAX_ESTIMATES else None
    reign.why[job.id] = f"waits for its estimate: {found.reason}"
    return None


def dispatch(reign: Reign) -> None:
    """Begin what can begin, and say why the rest waits."""
    jobs = list(reign.open_jobs())
    queued = [job for job in jobs if job.state == "queued"]
    if not queued:
        return
    places = _places(reign)
    line = Line(queued, [job for job in jobs if job.state in ("running", "cancelling")])
    reasons: dict[tuple[int | None, str], str] = {}
    for job in line:
        found = _begin(reign, job, places, reasons)
        if found is not None:
            places[found] = _taken(places[found], job)
            line.begun(job)


def _begin(
    reign: Reign, job: Job, places: Mapping[NodeId, Place], reasons: dict[tuple[int | None, str], str]
) -> NodeId | None:
    """The node whose slot it takes now; None when it waits on."""
    if len(job.attempts) >= MAX_ATTEMPTS:
        reign.change(job, "fail", f"moved {MAX_ATTEMPTS} times without coming to an end", "unexplained")
        return None
    if (asked := reign.estimator(job.id)) is not None:
        return asked
    key, battery = (_needs(job), _wanted(job)), reign.rules.train_on_battery
    if not any(_is_free(each) for each in places.values()):
        if key not in reasons:
            reasons[key] = place(*key, places.values(), battery=battery).reason
        reign.why[job.id] = f"waits: {reasons[key]}"
        return None
    if (home := _home(reign, job, places)) is not None:
        _order(reign, job, home)
        return home
    found = place(*key, (_for_job(reign, job, each) for each in places.values()), battery=battery)
    if found.node is None:
        reign.why[job.id] = f"waits: {found.reason}"
    elif not job.attempts and (job.estimate is None or job.estimate.node != found.node):
        reign.praise[job.id] = found.reason
        reign.ask_estimate(job, found.node)  # another node, another price
    else:
        _order(reign, job, found.node)
    return found.node


def _home(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> NodeId | None:
    """The node of the current attempt, which has its newest checkpoint, when that can go on there."""
    if job.current is None or (there := places.get(job.current.node)) is None:
        return None
    return place(None, ANY, (_for_job(reign, job, there),), battery=reign.rules.train_on_battery).node


def _order(reign: Reign, job: Job, node: NodeId) -> None:
    reign.why.pop(job.id, None)
    attempt = job.current
    if attempt is None or attempt.node != node:
        attempt = _next_attempt(reign, job, node)
        for each in job.attempts:
            if each.is_live:
                job = job.with_attempt(replace(each, fenced=True))
        job = job.with_attempt(attempt)
    job = reign.change(job, "begin", f"on {reign.name(node)}")
    reign.order(job, attempt)
    reign.lease(job, attempt).heard_at = reign.now


def _next_attempt(reign: Reign, job: Job, node: NodeId) -> Attempt:
    last = max(job.attempts, key=lambda each: (each.retries, each.id), default=None)
    is_retry = job.course.retry > job.retries
    cause: Cause = "first" if last is None else "retried" if is_retry else "moved"
    return Attempt(
        number=1 + max((each.number for each in job.attempts), default=0),
        ballot=reign.ballot,
        node=node,
        spec=job.spec if last is None or is_retry else last.spec,
        cause=cause,
        why=job.reason if last is not None else "",
        retries=max(job.course.retry, job.retries),
        ordered_at=reign.wall,
    )


def _places(reign: Reign) -> dict[NodeId, Place]:
    training: dict[NodeId, list[str]] = {}
    for job in reign.open_jobs():
        if job.state in ("running", "cancelling") and job.current is not None:
            training.setdefault(job.current.node, []).append(job.name)
    return {
        member.id: _place(member, reign.rules.slots, tuple(training.get(member.id, ())))
        for member in reign.view.members.values()
    }


def _place(member: Member, slots: int, training: tuple[str, ...]) -> Place:
    status = member.status
    gpus = [gpu.memory_bytes for gpu in status.hardware.gpus if gpu.memory_bytes is not None]
    return Place(
        id=member.id,
        name=status.name,
        state=member.state,
        tier=status.tier,
        memory_bytes=max(gpus) if gpus else status.hardware.ram_bytes,
        slots=slots,
        training=training,
        on_battery=status.health.on_battery,
        active=status.load.active,
    )


def _for_job(reign: Reign, job: Job, each: Place) -> Place:
    checkpoint = job.checkpoint
    return replace(
        each,
        has_checkpoint=checkpoint is not None and each.id in checkpoint.holders,
        has_data=each.id in job.holders,
        objection=reign.objection(job.id, each.id),
    )


def _taken(each: Place, job: Job) -> Place:
    return replace(each, training=(*each.training, job.name))


def _is_free(each: Place) -> bool:
    return each.state == "up" and len(each.training) < each.slots


def _needs(job: Job) -> int | None:
    return None if job.estimate is None else job.estimate.memory_bytes


def _wanted(job: Job) -> str:
    return str(job.spec.get("target_gpu", ANY))
