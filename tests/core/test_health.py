"""How well a machine is: the score's rules one by one, what is told of it, and how often it is looked at."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermesh.core import health
from tiermesh.core.health import (
    CALM_S,
    DRIFT_S,
    RULES,
    Alert,
    GpuVitals,
    Level,
    Vitals,
    assess,
    is_news,
    look_interval_s,
    mesh_level,
    state_of,
    told,
)
from tiermesh.types import Health


def vitals(**facts: Any) -> Vitals:
    return Vitals(at=0.0, **facts)


def memory(percent: int) -> Vitals:
    return vitals(memory_used_bytes=percent, memory_bytes=100)


def gpu(**facts: Any) -> Vitals:
    return vitals(gpus=(GpuVitals("cool"), GpuVitals("GPU", **facts)))


def test_nothing_known_is_nothing_wrong() -> None:
    assert assess(vitals()) == (100, ())


@pytest.mark.parametrize(
    ("seen", "score", "alerts"),
    [
        (memory(85), 100, ""),
        (memory(91), 80, ""),
        (memory(92), 77, "memory"),
        (memory(97), 60, "memory!"),
        (memory(100), 60, "memory!"),
        (vitals(cpu_percent=100.0), 90, ""),
        (gpu(used_percent=100.0), 95, ""),
        (gpu(memory_used_bytes=100, memory_bytes=100), 90, ""),
        (gpu(temperature_c=79.0), 100, ""),
        (gpu(temperature_c=88.0), 79, "gpu_temperature"),
        (gpu(temperature_c=95.0), 60, "gpu_temperature!"),
        (vitals(cpu_temperature_c=92.5), 85, "cpu_temperature"),
        (vitals(cpu_temperature_c=100.0), 70, "cpu_temperature!"),
        (vitals(disk_used_bytes=95, disk_bytes=100), 83, "disk"),
        (vitals(disk_used_bytes=99, disk_bytes=100), 70, "disk!"),
        (vitals(latency_ms=50.0), 100, ""),
        (vitals(latency_ms=600.0), 80, "latency"),
        (vitals(engines_ready=2, engines_down=1), 80, "engines"),
        (vitals(engines_down=1), 40, "engines"),
    ],
)
def test_each_figure_takes_its_points_and_is_an_alert_from_its_limit_on(seen: Vitals, score: int, alerts: str) -> None:
    assert told(*assess(seen)) == Health(score, (alerts,) if alerts else ())


def test_points_add_up_but_never_below_nothing() -> None:
    worst = vitals(
        memory_used_bytes=100,
        memory_bytes=100,
        disk_used_bytes=100,
        disk_bytes=100,
        cpu_temperature_c=110.0,
        engines_down=3,
    )
    score, alerts = assess(worst)
    assert score == 0
    assert [alert.level for alert in alerts] == ["critical", "critical", "critical", "warning"]
    assert alerts[0].message == "100 % of the memory is in use"


def test_the_documented_table_is_the_rules() -> None:
    lines = [line.strip("| ").split(" | ") for line in (health.__doc__ or "").splitlines() if line.startswith("|")]
    documented = [[None if cell == "-" else float(cell) for cell in line[1:]] for line in lines[2:]]
    assert documented == [[r.fine, r.bad, r.points, r.warning, r.critical] for r in RULES]


@pytest.mark.parametrize(
    ("score", "word"),
    [(None, "unknown"), (100, "healthy"), (80, "healthy"), (79, "degraded"), (60, "degraded"), (59, "unhealthy")],
)
def test_words_for_scores(score: int | None, word: str) -> None:
    assert state_of(score) == word


@pytest.mark.parametrize(
    ("before", "now", "calm_s", "news"),
    [
        (Health(), Health(100), 0, True),
        (Health(100), Health(100), 1e9, False),
        (Health(100), Health(96), 1e9, False),
        (Health(100), Health(95), DRIFT_S - 1, False),
        (Health(100), Health(95), DRIFT_S, True),
        (Health(81), Health(79), 0, True),
        (Health(79), Health(81), CALM_S - 1, False),
        (Health(79), Health(81), CALM_S, True),
        (Health(77), Health(77, ("memory",)), 0, True),
        (Health(77, ("memory",)), Health(77), 0, False),
        (Health(77, ("memory",)), Health(77), CALM_S, True),
        (Health(77, ("memory",)), Health(77, ("memory!",)), 0, True),
        (Health(77, ("memory",)), Health(90, ("disk",)), 0, True),
    ],
)
def test_bad_news_is_told_at_once_good_news_when_it_lasts_and_small_news_never(
    before: Health, now: Health, calm_s: float, news: bool
) -> None:
    assert is_news(before, now, calm_s) is news


@given(st.lists(st.integers(85, 100), max_size=500))
def test_a_figure_that_flutters_is_told_twice_a_minute_at_most(percents: list[int]) -> None:
    """Looked at every 5 s: only what is worse than anything told may be told in between."""
    last, last_at, calm = Health(), -1e9, 0
    for number, percent in enumerate(percents):
        now = told(*assess(memory(percent)))
        if is_news(last, now, 5 * number - last_at):
            calm += 5 * number - last_at >= CALM_S
            last, last_at = now, 5.0 * number
    assert calm <= 1 + 5 * len(percents) / CALM_S


@pytest.mark.parametrize(
    ("scores", "levels", "level"),
    [
        ([], [], "ok"),
        ([100, 80, None], [], "ok"),
        ([100, 79], [], "warning"),
        ([100], ["warning"], "warning"),
        ([100], ["warning", "critical"], "critical"),
        ([0, 49, 100, 100], [], "warning"),
        ([0, 49, 100], [], "critical"),
        ([50, 50], [], "warning"),
    ],
)
def test_the_mesh_is_critical_by_one_alert_or_by_more_than_half_of_its_nodes(
    scores: list[int | None], levels: list[Level], level: str
) -> None:
    assert mesh_level(scores, levels) == level


@pytest.mark.parametrize(
    ("busy", "idle_s", "interval_s"),
    [(True, 0, 5), (True, 1e6, 5), (False, 0, 10), (False, 1799, 10), (False, 1800, 20), (False, 7200, 40)],
)
def test_a_machine_at_work_is_looked_at_more_often(busy: bool, idle_s: float, interval_s: float) -> None:
    assert look_interval_s(busy=busy, idle_s=idle_s) == interval_s


def test_a_critical_alert_is_marked() -> None:
    alerts = (Alert("disk", "critical", ""), Alert("memory", "warning", ""))
    assert told(70, alerts) == Health(70, ("disk!", "memory"))
