"""Whatever happens to a save or to the disk, the newest good checkpoint is found, and it is what was written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiermesh.errors import CheckpointUnusable, DiskFull
from tiermesh.kernel.training import checkpoints
from tiermesh.kernel.training.checkpoints import FACTS, LATEST, SUMS, TENSORS, Checkpoints, Snapshot


def snapshot(step: int, *, loss: float | None = None, size: int = 8) -> Snapshot:
    tensors = {
        "weight": torch.full((size,), float(step)),
        "half": torch.arange(4, dtype=torch.bfloat16),
        "bytes": torch.tensor([step % 256], dtype=torch.uint8),
    }
    return Snapshot(step=step, position=step * 4, tensors=tensors, facts={"lr": 0.1, "nested": [1, None]}, loss=loss)


def saved(folder: Path, *steps: int, **settings: int) -> Checkpoints:
    kept = Checkpoints(folder, **settings)
    for step in steps:
        kept.save(snapshot(step))
    return kept


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_what_is_read(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert (found.step, found.position, found.loss) == (7, 28, None)
    assert found.facts == {"lr": 0.1, "nested": [1, None]}
    for name, tensor in snapshot(7).tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None


def test_the_sums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(snapshot(1))
    assert names(path) == sorted([TENSORS, FACTS, SUMS])
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=path, check=True, capture_output=True)
    assert (tmp_path / LATEST).read_text() == path.name + "\n"


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    for step, loss in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 2.0), (5, None)):
        kept.save(snapshot(step, loss=loss))
    assert names(tmp_path) == [LATEST, "step-00000002", "step-00000004", "step-00000005"]
    assert kept.best() == tmp_path / "step-00000002"


def test_the_newest_good_one_is_kept_and_the_one_that_will_be_next(tmp_path: Path) -> None:
    """Steps are judged two later here, as a run does it; what is proven by then makes the older ones needless."""
    kept = Checkpoints(tmp_path, keep_last=1, keep_best=0)
    for step in range(1, 8):
        kept.save(snapshot(step), good_until=max(0, step - 2))
    assert names(tmp_path) == [LATEST, "step-00000005", "step-00000006", "step-00000007"]
    found = kept.newest_until(5)
    assert found is not None
    assert found.step == 5
    assert kept.newest_until(4) is None
    kept.prune(7)
    assert names(tmp_path) == [LATEST, "step-00000007"]


def test_a_damaged_good_one_leaves_the_one_before(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        kept.save(snapshot(step))
    (tmp_path / "step-00000002" / TENSORS).write_bytes(b"rotten")
    found = kept.newest_until(2)
    assert found is not None
    assert found.step == 1
    assert [damaged.step for damaged in kept.damaged] == [2]


def test_the_same_step_saved_again_replaces_the_one_before(tmp_path: Path) -> None:
    kept = saved(tmp_path, 1, 2)
    kept.save(snapshot(2, size=3))
    assert names(tmp_path) == [LATEST, "step-00000001", "step-00000002.2"]
    found = kept.newest()
    assert found is not None
    assert found.tensors["weight"].numel() == 3


@pytest.mark.parametrize("file", [TENSORS, FACTS, SUMS])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:-10])
    kept = Checkpoints(tmp_path)
    found = kept.newest()
    assert found is not None
    assert found.step == 1
    assert [damaged.step for damaged in kept.damaged] == [2]
    assert "damaged-step-00000002" in names(tmp_path)
    assert "step-00000002 is damaged" in caplog.text


def test_when_none_is_good_a_person_decides(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}" / TENSORS).write_bytes(b"")
    for _ in range(2):  # asked again it must not begin anew either
        with pytest.raises(CheckpointUnusable, match="none of the 2 checkpoints"):
            Checkpoints(tmp_path).newest()


def test_a_lack_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)
    before = names(tmp_path)

    def refused(path: Path) -> str:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))

    monkeypatch.setattr(checkpoints, "_sha256", refused)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Checkpoints(tmp_path).newest()
    assert names(tmp_path) == before


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", 9)
    saved(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointUnusable, match="newer version"):
        Checkpoints(tmp_path).newest()
    assert names(tmp_path) == [LATEST, "step-00000001"]


def test_what_a_killed_save_left_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    kept = saved(tmp_path, 1)
    (tmp_path / ".staging-step-00000002").mkdir()
    (tmp_path / ".staging-step-00000002" / TENSORS).write_bytes(b"half")
    (tmp_path / ".trash-step-00000000").mkdir()
    (tmp_path / ".staging-latest").write_text("step-0000")
    found = kept.newest()
    assert found is not None
    assert found.step == 1
    kept.save(snapshot(2))
    assert names(tmp_path) == [LATEST, "step-00000001", "step-00000002"]


def test_a_run_that_went_back_forgets_what_came_after(tmp_path: Path) -> None:
    kept = saved(tmp_path, 1, 2, 3)
    kept.forget_after(1)
    assert names(tmp_path) == [LATEST, "step-00000001"]
    assert (tmp_path / LATEST).read_text() == "step-00000001\n"
    kept.forget_after(0)
    assert names(tmp_path) == []


def test_tensors_that_share_a_storage_are_written_apart(tmp_path: Path) -> None:
    tied = torch.arange(6.0).reshape(2, 3)
    kept = Checkpoints(tmp_path)
    kept.save(Snapshot(step=1, position=0, tensors={"a": tied, "b": tied, "c": tied.T}, facts={}))
    found = kept.newest()
    assert found is not None
    assert torch.equal(found.tensors["b"], tied)
    assert torch.equal(found.tensors["c"], tied.T)


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training.test_checkpoints import saved, snapshot
from tiermesh.errors import DiskFull
kept = saved(Path({folder!r}), 1)
try:
    kept.save(snapshot(2, size=4 << 20))
except DiskFull as failure:
    print(failure)
kept.save(snapshot(3))
"""


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """A real one, of 4 MiB."""
    root = Path(__file__).parents[2]
    code = FULL_DISK.format(root=str(root), folder=str(tmp_path / "checkpoints"))
    (tmp_path / "run.py").write_text(code)
    script = (
        f"mkdir {tmp_path}/checkpoints && mount -t tmpfs -o size=4m none {tmp_path}/checkpoints "
        f"&& {sys.executable} {tmp_path}/run.py && ls -A {tmp_path}/checkpoints"
    )
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no disk can be mounted here")
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told, *files = ran.stdout.splitlines()
    assert "no space is left" in told
    assert files == [LATEST, "step-00000001", "step-00000003"]


def test_a_disk_that_fails_at_any_file_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = saved(tmp_path, 1)
    for failing in (TENSORS, FACTS, SUMS):

        def refuse(path: Path, failing: str = failing) -> None:
            if path.name == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        def refuse_text(path: Path, text: str, failing: str = failing) -> None:
            refuse(path, failing)
            path.write_text(text)

        monkeypatch.setattr(checkpoints, "_sync", refuse)
        monkeypatch.setattr(checkpoints, "_write_text", refuse_text)
        with pytest.raises(DiskFull):
            kept.save(snapshot(2))
        monkeypatch.undo()
        assert names(tmp_path) == [LATEST, "step-00000001"]


def test_facts_are_readable_text(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(snapshot(3, loss=1.5))
    assert json.loads((path / FACTS).read_text())["loss"] == 1.5
