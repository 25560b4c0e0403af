"""The training worker: `python -m tiermesh.kernel.training RUN_FOLDER --threads N [--memory-limit BYTES]`.

Started on a folder with a `spec.json` (`protocol.run_folder`). It goes on from the newest checkpoint there, tells what
happens in `events.jsonl`, and exits with 0 when the result is written, 3 when it failed (the last event says why), 75
when it was told to stop, by SIGTERM or by the end of standard input, and can be started again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.kernel import lifeline
from tiermesh.kernel.inference.threads import default_threads, environment
from tiermesh.kernel.training.orders import Orders
from tiermesh.protocol.run_folder import DONE, FAILED, STOPPED, RunFolder
from tiermesh.protocol.training_advice import ADVICE
from tiermesh.protocol.training_events import Completed, Failed, Phase, Started, Stopped

if TYPE_CHECKING:
    from tiermesh.errors import Stalled, TrainingFailure
    from tiermesh.kernel.training.assembly import Assembly
    from tiermesh.kernel.training.checkpoints import Snapshot
    from tiermesh.kernel.training.events import Events
    from tiermesh.kernel.training.run import Run
    from tiermesh.kernel.training.watchdog import Watchdog
    from tiermesh.protocol.training import TrainingSpec
    from tiermesh.protocol.training_events import CanaryAnswer

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
TOLD_VERSIONS = ("tiermesh", "torch", "transformers", "peft")


def main() -> None:
    """Train until there is a result, a failure, or an order to stop."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.training", description=__doc__)
    parser.add_argument("folder", type=Path, help="with a spec.json")
    parser.add_argument("--threads", type=int, help="default: the cores this process may run on")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="held by the operating system")
    parser.add_argument("--tighten", action="count", default=0, help="take less memory; once for each kill in a row")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--estimate", action="store_true", help="write estimate.json and exit")
    what.add_argument("--evaluate", action="store_true", help="write evaluation.json and exit")
    parser.add_argument("--best", action="store_true", help="to evaluate: the checkpoint of the lowest held-out loss")
    options = parser.parse_args()
    folder = RunFolder(options.folder.resolve())
    faulthandler.enable()
    orders = Orders(folder.path)
    orders.listen()
    lifeline.hold(orders.orphan)
    lifeline.yield_to_daemon()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    # It has a kernel for inference that is fetched from a hub; training needs none, and nothing is fetched here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    options.threads = options.threads or default_threads()
    # Before torch is imported, because its libraries read this once.
    os.environ.update(environment(options.threads), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    status = _run(folder, orders, options)
    sys.stderr.flush()
    # Threads of libraries have nothing to say any more, and must not hold the exit up.
    os._exit(status)


def _run(folder: RunFolder, orders: Orders, options: argparse.Namespace) -> int:
    from tiermesh.kernel.training.events import Events
    from tiermesh.kernel.training.failures import translate

    events = Events(folder.events)
    try:
        return _work(folder, orders, options, events)
    except Exception as error:
        failure = translate(error)
        log.exception("the run failed")
        events.say(_failed(folder, error, failure))
        return FAILED
    finally:
        events.close()


def _failed(folder: RunFolder, error: BaseException, failure: TrainingFailure) -> Failed:
    from tiermesh.kernel.training.crash import write_report

    crash = write_report(folder, error, failure)
    told = {"kind": failure.type, "message": str(failure), "advice": ADVICE.get(failure.type, ""), "crash": crash}
    return Failed.model_validate(told)


def _work(folder: RunFolder, orders: Orders, options: argparse.Namespace, events: Events) -> int:
    import torch

    from tiermesh.kernel.training import limits
    from tiermesh.kernel.training.assembly import assemble, ready
    from tiermesh.kernel.training.estimate import file_bytes, write_estimate
    from tiermesh.kernel.training.memory import Memory
    from tiermesh.kernel.training.result import write
    from tiermesh.kernel.training.watchdog import Watchdog

    began = time.monotonic()
    torch.set_num_threads(options.threads)
    plan = folder.read_plan()
    limit = options.memory_limit or plan.spec.memory_limit
    events.say(Started(pid=os.getpid(), threads=options.threads, memory_limit_bytes=limit, versions=_versions()))
    if options.estimate:
        write_estimate(folder, plan, events, orders, limit)
        return DONE
    cgroup = None
    if limit is not None:
        cgroup = limits.apply(limit).cgroup
    else:
        limits.hold_at_free(mapped_bytes=file_bytes(Path(plan.model_path)))
    parts = assemble(folder, plan, events.say, best=options.best)
    if limit is None:
        limits.hold_at_free()  # the files are no longer mapped
    if options.evaluate:
        return _evaluate(folder, parts, orders)
    memory = Memory(limit, parts.trainee.device, cgroup)
    run = ready(parts, events, orders, memory, tighten=options.tighten)
    watchdog = Watchdog(lambda stalled: _end_stalled(folder, events, stalled))
    events.listen(watchdog.hear)
    run.stopping = lambda: _is_stopping(orders, watchdog)
    events.say(Phase(phase="train", state="started"))
    watchdog.start()
    orders.begin()
    ending = run.go()
    canary = run.canary_answers() if ending == "done" else None
    watchdog.end()
    if canary is None:
        events.say(Stopped(step=run.progress.step, checkpoint=f"step-{run.progress.step:08d}"))
        return STOPPED
    events.say(Phase(phase="train", state="completed"))
    events.say(Phase(phase="result", state="started"))
    write(folder.result, parts.trainee, parts.tokenizer, parts.provenance(run))
    events.say(Phase(phase="result", state="completed"))
    events.say(_completed(run, folder, time.monotonic() - began, canary))
    return DONE


def _is_stopping(orders: Orders, watchdog: Watchdog) -> bool:
    """Asked between micro-batches, which shows that work goes on."""
    watchdog.alive()
    return orders.stopping


def _end_stalled(folder: RunFolder, events: Events, stalled: Stalled) -> None:
    """On the watchdog's thread: the main one hangs."""
    events.say(_failed(folder, stalled, stalled))
    os._exit(FAILED)


def _evaluate(folder: RunFolder, parts: Assembly, orders: Orders) -> int:
    """Write what the newest checkpoint, or the model as it came, makes of all the held-out data."""
    import torch

    from tiermesh.kernel.training import evaluation
    from tiermesh.kernel.training.state import WEIGHT

    spec, trainee, source = parts.plan.spec, parts.trainee, parts.data.held_out
    if parts.begun is not None:
        with torch.no_grad():
            for name, tensor in trainee.trainables.items():
                tensor.copy_(parts.begun.tensors[WEIGHT + name])

    def stopping() -> bool:
        return orders.stopping

    found = None
    if source is not None:
        size = spec.micro_batch_size if parts.begun is None else _micro_batch(spec, parts.begun)
        found = evaluation.whole_held_out(trainee, parts.objective, source, size, stopping=stopping)
    asked = evaluation.answers(trainee, parts.tokenizer, spec.samples, spec.sample_tokens, stopping=stopping)
    told = {
        "step": 0 if parts.begun is None else parts.begun.step,
        "loss": None if found is None else found.loss,
        "perplexity": None if found is None else found.perplexity,
        "tokens": 0 if found is None else found.targets,
        "samples": [{"prompt": prompt, "text": text} for prompt, text in asked],
    }
    if orders.stopping:
        return STOPPED
    (folder.path / EVALUATION).write_text(json.dumps(told) + "\n", "utf-8")
    return DONE


def _micro_batch(spec: TrainingSpec, begun: Snapshot) -> int:
    """As small as the run had become."""
    from tiermesh.core.relief import Taken

    return Taken.from_dict(begun.facts["relief"]).split(spec.micro_batch_size, spec.gradient_accumulation_steps)[0]


def _completed(run: Run, folder: RunFolder, seconds: float, canary: list[CanaryAnswer]) -> Completed:
    progress = run.progress
    return Completed(
        step=progress.step,
        result=str(folder.result),
        loss=progress.loss,
        first_loss=progress.first_loss,
        train_loss=progress.train_loss,
        held_out_loss=progress.held_out,
        held_out_rows=0 if run.held_out is None else run.held_out.rows,
        held_out_loss_before=progress.loss_before,
        seconds=seconds,
        tokens=progress.tokens,
        gpu_use=progress.gpu_use,
        skipped_steps=progress.skipped_steps,
        rollbacks=progress.rollbacks,
        canary=canary,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in TOLD_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
