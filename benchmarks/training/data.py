"""How fast data becomes rows: the first start, the second, and the plan beside TRL's, on the same made-up records.

    python -m benchmarks.training.data [--records 100000] [--seq-len 512] [--processes 2] [--model FOLDER]

Times are wall clock in fresh processes, with what is imported and the model's tokenizer loaded before; peak memory is
the largest of the process itself.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 50
"""Micro-batches of four rows, of which the median is told."""
TEXT = (
    "the of model data train node mesh large small quick answer question python function returns value list "
    "dictionary string number error file path open close read write"
)


def records(count: int) -> Iterator[dict[str, Any]]:
    """Conversations and prompts of mixed lengths, about 200 tokens each; the same ones each time."""
    drawn, words = random.Random(0), TEXT.split()
    for number in range(count):
        asked = " ".join(drawn.choices(words, k=drawn.randint(5, 40)))
        length = min(400, round(drawn.lognormvariate(4.8, 0.7)))
        answer = f"{number} " + " ".join(drawn.choices(words, k=length))
        if number % 2:
            yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        else:
            yield {"prompt": f"{asked}\n", "completion": answer}


def start(data: Path, model: Path, cache: Path, seq_len: int, processes: int) -> dict[str, float]:
    """One start of a run, as far as its data goes: to the first batch."""
    from transformers import AutoTokenizer

    from tiermesh.kernel.training.data.dataset import open_dataset
    from tiermesh.kernel.training.data.order import Order
    from tiermesh.protocol.training import TrainingSpec

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    spec = TrainingSpec(model_name="m", dataset_path="d", seq_len=seq_len)
    began = time.perf_counter()
    found = open_dataset(spec, data, tokenizer, cache=cache, processes=processes)
    order = Order(0, found.train.rows)
    found.train.micro(order.rows_at(0, 4))
    first = time.perf_counter() - began
    steps = [_timed(lambda at=at: found.train.micro(order.rows_at(4 * at, 4))) for at in range(1, STEPS)]
    return {
        "seconds": first,
        "micro_ms": 1000 * float(np.median(steps)),
        "tokens": found.report["tokens"],
        "mean": found.report["lengths"]["mean"],
        "rows": found.report["rows"],
        "fill": found.report["fill"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def plans(cache: Path, seq_len: int) -> dict[str, float]:
    """The plan alone, ours and TRL's best-fit decreasing, from the same lengths."""
    import datasets
    from trl.data_utils import pack_dataset

    from tiermesh.kernel.training.data.packing import pack

    (facts,) = cache.glob("*/facts.json")
    lengths = np.minimum(np.diff(np.fromfile(facts.parent / "bounds", dtype="<i8")), seq_len)
    began = time.perf_counter()
    ours = pack(lengths, seq_len)
    plan_s = time.perf_counter() - began
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"input_ids": [[0] * int(length) for length in lengths]})
    began = time.perf_counter()
    theirs = pack_dataset(rows, seq_len, "bfd", map_kwargs={"keep_in_memory": True})
    trl_s = time.perf_counter() - began
    used = lengths.sum() / seq_len
    return {"plan_s": plan_s, "fill": used / ours.rows, "trl_s": trl_s, "trl_fill": used / len(theirs)}


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _fresh(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training.data", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _model() -> Path:
    from tiermesh.adapters.model_source import resolve

    return resolve("smollm2:135m").path


def main() -> None:
    """Measure and print a table; `--part` is for the processes that it starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part is not None:
        kind, data, cache = asked.part
        if kind == "plan":
            print(json.dumps(plans(Path(cache), asked.seq_len)))
        else:
            print(json.dumps(start(Path(data), asked.model, Path(cache), asked.seq_len, asked.processes)))
        return
    options = ["--model", str(asked.model or _model()), "--seq-len", str(asked.seq_len)]
    options += ["--processes", str(asked.processes)]
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "data.jsonl", Path(folder) / "tokens"
        with data.open("w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records(asked.records))
        began = time.monotonic()
        first = _fresh(*options, "--part", "start", str(data), str(cache))
        second = _fresh(*options, "--part", "start", str(data), str(cache))
        packed = _fresh(*options, "--part", "plan", str(data), str(cache))
    print(
        f"{asked.records:,} records, {first['tokens']:,} tokens, {first['mean']:.0f} a record, rows of {asked.seq_len}"
    )
    print(f"first start    {first['seconds']:8.2f} s  {first['tokens'] / first['seconds']:,.0f} tokens/s")
    print(
        f"second start   {second['seconds']:8.2f} s  peak {second['peak_mb']:.0f} MB, first {first['peak_mb']:.0f} MB"
    )
    print(f"micro-batch    {second['micro_ms']:8.2f} ms  of 4 rows")
    print(f"plan           {packed['plan_s']:8.3f} s  {packed['fill']:.2%} of positions used")
    print(f"plan by TRL    {packed['trl_s']:8.3f} s  {packed['trl_fill']:.2%} (moves the tokens too)")
    print(f"in all {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
