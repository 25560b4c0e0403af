"""Memory that the operating system refuses: told by its type, near the limit that was asked for, and only there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiermesh.core.remediation import Stop, remedy
from tiermesh.core.worker_death import cgroup_name
from tiermesh.errors import BadSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts data as its limit does")

MIB = 1 << 20

HELD = """
import sys, torch
from tiermesh.errors import OutOfMemory
from tiermesh.kernel.training.failures import translate
from tiermesh.kernel.training.limits import apply
from tiermesh.kernel.training.memory import Memory, resident_bytes

room = int(sys.argv[1])
before = resident_bytes()
limit = before + room
applied = apply(limit)
assert applied.cgroup is None
held, error = [], None
try:
    while True:
        held.append(torch.ones(1 << 20, dtype=torch.float32))
except RuntimeError as caught:
    error = caught
failure = translate(error)
assert isinstance(failure, OutOfMemory), failure
usage = Memory(limit, torch.device("cpu")).look()
print((usage.used_bytes - before) / room, usage.level.name)
del held
print(torch.ones(1 << 20).sum().item())
"""


def test_torch_is_refused_at_the_limit_and_can_go_on_with_less() -> None:
    command = [sys.executable, "-c", HELD, str(200 * MIB)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # a thread's stack counts, too
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert ran.returncode == 0, ran.stderr
    figures, after = ran.stdout.splitlines()
    share, level = figures.split()
    assert 0.9 < float(share) <= 1.05, "pages of libraries come on top"
    assert level in ("SEVERE", "CRITICAL")
    assert after == str(float(1 << 20))


TOO_LOW = """
import torch
from tiermesh.errors import BadSpec
from tiermesh.kernel.training.limits import apply
try:
    apply(64 << 20)
except BadSpec as failure:
    print(failure)
"""


def test_a_limit_below_the_libraries_own_need_is_a_bad_spec() -> None:
    """Which is tried once: a lack of memory would be tried three times more with smaller batches."""
    ran = subprocess.run([sys.executable, "-c", TOO_LOW], capture_output=True, text=True, check=True)
    assert re.match(r"memory_limit is 64 MiB, and Python and torch take [\d,]+ MiB before any model", ran.stdout)
    assert "raise memory_limit" in ran.stdout
    assert remedy(BadSpec.type, [{}]) == Stop("it would fail again in the same way")


FREE = """
import sys, torch
from tiermesh.errors import OutOfMemory
from tiermesh.kernel.training import limits
from tiermesh.kernel.training.failures import translate

limits.available_bytes = lambda: int(sys.argv[1])
try:
    limits.hold_at_free(int(sys.argv[2]))
    held, taken = [], 0
    try:
        while taken < 1 << 30:
            held.append(torch.ones(1 << 20, dtype=torch.float32))
            taken += 4 << 20
    finally:
        print(taken >> 20)
except (RuntimeError, OutOfMemory) as error:
    failure = translate(error)
    print(failure.type, failure)
"""


@pytest.mark.parametrize(("mapped_mib", "least", "most"), [(0, 160, 200), (100, 260, 300)])
def test_without_a_limit_torch_is_refused_what_is_not_free(mapped_mib: int, least: int, most: int) -> None:
    ran = free(200 * MIB, mapped_mib * MIB)
    taken, failure = ran.stdout.splitlines()
    assert least <= int(taken) <= most
    assert failure.startswith("out_of_memory ")


def test_where_next_to_nothing_is_free_it_is_a_lack_of_memory_and_no_mistake() -> None:
    assert free(20 * MIB, 0).stdout.startswith("out_of_memory not enough is free on this machine: 20 MiB")


def free(free_bytes: int, mapped_bytes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FREE, str(free_bytes), str(mapped_bytes)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)


JOINED = """
import os, sys, torch
from tiermesh.kernel.training.limits import apply
print(apply(8 << 30, {"TIERMESH_CGROUP": sys.argv[1]}).cgroup, os.getpid())
"""


@pytest.mark.parametrize("version", [1, 2])
def test_a_cgroup_is_made_where_one_is_named(tmp_path: Path, version: int) -> None:
    """The files as the kernel names them; their effect is the kernel's."""
    if version == 1:
        (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712")
    ran = subprocess.run([sys.executable, "-c", JOINED, str(tmp_path)], capture_output=True, text=True, check=True)
    folder, pid = ran.stdout.split()
    assert Path(folder) == tmp_path / cgroup_name(int(pid))
    assert (Path(folder) / "cgroup.procs").read_text() == pid
    limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
    assert (Path(folder) / limit).read_text() == str(8 << 30)


def test_a_cgroup_that_can_not_be_made_is_no_reason_to_fail(tmp_path: Path) -> None:
    command = [sys.executable, "-c", JOINED, str(tmp_path / "none")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[0] == "None"
    assert "no memory limit by cgroup" in ran.stderr
