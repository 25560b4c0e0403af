"""Which queued job goes where, now: the line in its order, each to the best place that is free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from tiermesh.core.attempts import Attempt, Cause
from tiermesh.core.job_effects import Shortage
from tiermesh.core.job_line import Line
from tiermesh.core.job_rules import MAX_ATTEMPTS, MAX_ESTIMATES
from tiermesh.core.jobs import Job
from tiermesh.core.placement import ANY, Place, Placement, place, too_small
from tiermesh.core.reign import Reign
from tiermesh.types import Member, NodeId

WAITS_ITS_TURN = "waits: other jobs are tried first"


def appraise(reign: Reign) -> None:
    """Ask what jobs take that nobody knows it of; each node about a few at a time."""
    places = _places(reign)
    room = MAX_ESTIMATES * sum(each.state == "up" for each in places.values())
    for job in reign.index.of("estimating"):
        if reign.estimator(job.id) is not None:
            continue
        if len(reign.asked) >= room:
            break
        with reign.guarding(job.id):
            _appraise(reign, job, places)


def _appraise(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> None:
    if (node := _likeliest_node(reign, job, places)) is not None:
        reign.ask_estimate(job, node)
    elif reign.shortages(job) and (found := _ever(reign, job, places)).node is None:
        postponed = job.after("postpone", reign.ballot, reign.wall, reason=found.reason)
        reign.put(replace(postponed, course=replace(postponed.course, estimate=None)))


def why(reign: Reign, job: Job) -> str:
    """Why it waits, for a person."""
    if job.state in ("estimating", "queued") and (asked := reign.asked.get(job.id)) is not None:
        return f"{reign.name(asked[0])} tries what it takes"
    if job.state == "queued":
        found = _choose(reign, job, _places(reign))
        return f"waits: {found.reason}" if found.node is None else job.reason
    if job.state == "estimating":
        return reign.why.get(job.id) or (WAITS_ITS_TURN if reign.asked else job.reason)
    return job.reason


def wanted(job: Job) -> str:
    """Where it asks to train: `any`, `tier:N` or a node's name or id."""
    return str(job.spec.get("target_gpu", ANY))


def _likeliest_node(reign: Reign, job: Job, known: Mapping[NodeId, Place]) -> NodeId | None:
    """Whoever would get it now, those that try others taken for busy; or could, if it were free."""
    asked = Counter(node for node, _ in reign.asked.values())
    places = [_for_job(reign, job, each) for each in known.values()]
    idle = [each for each in places if len(each.training) + asked[each.id] < each.slots]
    free = [each for each in places if len(each.training) < each.slots]
    unhurried = [replace(each, training=()) for each in places]
    for choice in (idle, free, unhurried):
        found = place(_needs(reign, job), wanted(job), choice, battery=reign.rules.train_on_battery)
        if found.node is not None:
            reign.praise[job.id] = found.reason
            if asked[found.node] < MAX_ESTIMATES:
                return found.node
            reign.why[job.id] = f"waits: {reign.name(found.node)} tries other jobs first"
            return None
    reign.why[job.id] = f"waits for its estimate: {found.reason}"
    return None


def _ever(reign: Reign, job: Job, known: Mapping[NodeId, Place]) -> Placement:
    """Whoever could have it if it had nothing else to do, and had not said no a moment ago."""
    idle = (replace(each, training=(), objection=_short(reign.shortage(job, each.id))) for each in known.values())
    return place(_needs(reign, job), wanted(job), idle, battery=reign.rules.train_on_battery)


def dispatch(reign: Reign) -> None:
    """Begin what can begin."""
    places = _places(reign)
    free = {each.id for each in places.values() if _is_free(each)}
    if not free or not (queued := reign.index.of("queued")):
        return
    line = Line(queued, reign.index.of("running", "cancelling"), reign.turns)
    for job in line:
        found = None
        with reign.guarding(job.id):
            found = _begin(reign, job, places)
        if found is None:
            continue
        places[found] = _taken(places[found], job)
        line.begun(job, reign.wall)
        if not _is_free(places[found]):
            free.discard(found)
        if not free:
            return


def _begin(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> NodeId | None:
    """The node whose slot it takes now; None when it waits on."""
    if len(job.attempts) >= MAX_ATTEMPTS:
        reign.change(job, "fail", f"moved {MAX_ATTEMPTS} times without coming to an end", "unexplained")
        return None
    if (asked := reign.estimator(job.id)) is not None:
        return asked
    if (home := _home(reign, job, places)) is not None:
        _order(reign, job, home)
        return home
    if _may_come_home(reign, job, places):
        return None
    found = _choose(reign, job, places)
    if found.node is None:
        return None
    if _is_postponed(job):
        reign.change(job, "reconsider", f"{reign.name(found.node)} may be large enough")
        return None
    if not _has_begun(job) and (job.estimate is None or job.estimate.node != found.node):
        reign.praise[job.id] = found.reason
        reign.ask_estimate(job, found.node)  # another node, another price; nor has every node the memory now
    else:
        _order(reign, job, found.node)
    return found.node


def _choose(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> Placement:
    offered = (_for_job(reign, job, each) for each in places.values())
    return place(_needs(reign, job), wanted(job), offered, battery=reign.rules.train_on_battery)


def _home(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> NodeId | None:
    """The node of the current attempt, which has its newest checkpoint, when that can go on there."""
    if job.current is None or (there := places.get(job.current.node)) is None:
        return None
    return place(None, ANY, (_for_job(reign, job, there),), battery=reign.rules.train_on_battery).node


def _may_come_home(reign: Reign, job: Job, places: Mapping[NodeId, Place]) -> bool:
    """After a power cut the nodes come one after the other, and the one that trained has the newest checkpoint."""
    if job.current is None or reign.now >= reign.began_at + reign.rules.lease_s:
        return False
    there = places.get(job.current.node)
    return there is None or there.state == "down"


def _order(reign: Reign, job: Job, node: NodeId) -> None:
    attempt = job.current
    if attempt is None or attempt.node != node or _is_behind(job, attempt):
        attempt = _next_attempt(reign, job, node)
        for each in job.attempts:
            if each.is_live:
                job = job.with_attempt(replace(each, fenced=True))
        job = job.with_attempt(attempt)
    job = reign.change(job, "begin", f"on {reign.name(node)}")
    reign.order(job, attempt)
    reign.lease(job, attempt).heard_at = reign.now


def _is_behind(job: Job, attempt: Attempt) -> bool:
    """Of two halves the other one has ordered a later one of the same node, which takes none before that any more."""
    return any(each.node == attempt.node and each.id > attempt.id for each in job.attempts)


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
    for job in reign.index.of("running", "cancelling"):
        if job.current is not None:
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
        objection=_short(reign.shortage(job, each.id)) or reign.objection(job.id, each.id),
    )


def _short(shortage: Shortage | None) -> str:
    return "" if shortage is None else too_small(shortage.needs_bytes, shortage.has_bytes)


def _taken(each: Place, job: Job) -> Place:
    return replace(each, training=(*each.training, job.name))


def _is_free(each: Place) -> bool:
    return each.state == "up" and len(each.training) < each.slots


def _needs(reign: Reign, job: Job) -> int | None:
    """Before it was tried: what it needs at the least, by those who are too small for it."""
    if job.memory_bytes is not None:
        return job.memory_bytes
    return min((shortage.needs_bytes for shortage in reign.shortages(job).values()), default=None)


def _has_begun(job: Job) -> bool:
    """Does it only move? While one node after the other refuses it, none is ordered before it was asked: orders are
    kept for ever."""
    attempt = job.current or (job.attempts[-1] if job.attempts else None)
    return attempt is not None and attempt.told is not None and (attempt.is_end or attempt.told.step > 0)


def _is_postponed(job: Job) -> bool:
    """Its next attempt was never let through the gate, because nobody could say what it takes."""
    return job.estimate is None and (not job.attempts or job.course.retry > job.retries)
