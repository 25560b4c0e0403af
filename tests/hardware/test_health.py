"""One look at a machine: what can be read, and None for what can't."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from tiermesh.core.health import GpuVitals
from tiermesh.hardware import health
from tiermesh.hardware.health import Examiner


@pytest.fixture(autouse=True)
def no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(health, "RAPL", tmp_path / "powercap")
    return tmp_path / "powercap"


def fail(*arguments: Any, **named: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A driver with two boards, of which the second tells nothing but its name."""

    def first_only(value: Any) -> Any:
        return lambda handle, *more: value if handle == 0 else fail()

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "RTX 3090" if handle == 0 else b"GB10")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", first_only(SimpleNamespace(used=3, total=24)))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", first_only(SimpleNamespace(gpu=98)))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTemperature", first_only(71))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", first_only(340_400))
    return monkeypatch


def test_a_real_machine_tells_the_usual(tmp_path: Path) -> None:
    seen = Examiner(tmp_path).look()
    assert seen.memory_bytes == psutil.virtual_memory().total
    assert seen.memory_used_bytes is not None
    assert 0 < seen.memory_used_bytes < seen.memory_bytes
    assert seen.cpu_percent is not None
    assert 0 <= seen.cpu_percent <= 100
    assert seen.disk_used_bytes is not None
    assert seen.disk_bytes is not None
    assert 0 < seen.disk_used_bytes <= seen.disk_bytes
    assert seen.process is not None
    assert seen.process.processes >= 1
    assert seen.process.memory_bytes > 2**20


def test_each_gpu_tells_what_it_can(tmp_path: Path, gpus: pytest.MonkeyPatch) -> None:
    assert Examiner(tmp_path).look().gpus == (GpuVitals("RTX 3090", 98.0, 3, 24, 71.0, 340.4), GpuVitals("GB10"))


def test_without_a_driver_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert Examiner(tmp_path).look().gpus == ()


def test_a_driver_is_opened_once_and_anew_when_it_went_away(tmp_path: Path, gpus: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    gpus.setattr(pynvml, "nvmlInit", lambda: calls.append("open"))
    gpus.setattr(pynvml, "nvmlShutdown", lambda: calls.append("close"))
    examiner = Examiner(tmp_path)
    assert [len(examiner.look().gpus) for _ in range(3)] == [2, 2, 2]
    assert calls == ["open"]
    with gpus.context() as gone:
        gone.setattr(pynvml, "nvmlDeviceGetCount", fail)
        assert examiner.look().gpus == ()
    assert len(examiner.look().gpus) == 2
    assert calls == ["open", "close", "open"]


def test_the_processors_own_sensor_counts_and_nonsense_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(*temperatures: float) -> None:
        sensors = {
            "nvme": [SimpleNamespace(current=90.0)],
            "coretemp": [SimpleNamespace(current=each) for each in temperatures],
        }
        monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)

    examiner = Examiner(tmp_path)
    say(55.0, 61.5, 0.0, 255.0)
    assert examiner.look().cpu_temperature_c == 61.5
    say(0.0)
    assert examiner.look().cpu_temperature_c is None
    say()
    assert examiner.look().cpu_temperature_c is None


@pytest.mark.parametrize(("plugged", "on_battery"), [(True, False), (False, True), (None, None)])
def test_mains_or_battery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugged: bool | None, on_battery: bool | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(power_plugged=plugged), raising=False)
    assert Examiner(tmp_path).look().on_battery is on_battery


def test_power_is_energy_by_time(tmp_path: Path, no_energy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = no_energy / "intel-rapl:0"
    part_of_it = no_energy / "intel-rapl:0:0"
    for counter in (package, part_of_it):
        counter.mkdir(parents=True)
    now = 100.0
    monkeypatch.setattr(health.time, "monotonic", lambda: now)  # type: ignore[attr-defined]
    examiner, watts = Examiner(tmp_path), []
    for micro_j in (5_000_000, 95_000_000, 1_000_000):  # the third has wrapped
        (package / "energy_uj").write_text(f"{micro_j}\n")
        (part_of_it / "energy_uj").write_text("77\n")
        watts.append(examiner.look().power_w)
        now += 2.0
    assert watts == [None, 45.0, None]


def test_what_can_not_be_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError

    examiner = Examiner(tmp_path / "gone")
    for name in ("cpu_percent", "virtual_memory", "sensors_temperatures", "sensors_battery", "Process"):
        monkeypatch.setattr(psutil, name, refuse, raising=False)
    seen = examiner.look()
    assert (seen.cpu_percent, seen.memory_bytes, seen.disk_bytes, seen.process) == (None, None, None, None)
    assert (seen.cpu_temperature_c, seen.on_battery, seen.power_w) == (None, None, None)
