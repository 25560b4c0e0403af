"""TRL's SFTTrainer at our own pace: a contender.

    python -m benchmarks.training.trl_sft MODEL DATA --batch N --length N [--tuned] --threads N

As it comes but for the adapter, which is ours, the length of a row, the rows in a batch (None: its own 8), and that
it is told to stay on the CPU, and nothing is saved or drawn. Tuned: the model is loaded in bf16, and activations are
kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.training.turns import Turns

FOR_EVER = 10_000
"""Steps: it is ended from outside."""


def main() -> None:
    """Train until there is no further turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        train(options, turns, folder)


def train(options: argparse.Namespace, turns: Turns, folder: str) -> None:
    """The whole of a run."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(options.threads)
    datasets.disable_caching()

    class Trainer(SFTTrainer):  # type: ignore[misc]  # TRL is untyped
        prepared_s = 0.0

        def _prepare_dataset(self, *given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            prepared = super()._prepare_dataset(*given, **named)
            self.prepared_s += time.perf_counter() - began
            return prepared

    class Pace(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.wait(prepared_s=trainer.prepared_s)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.wait(tokens=tokens.pop())

    settings: dict[str, Any] = {} if options.batch is None else {"per_device_train_batch_size": options.batch}
    if options.tuned:
        settings |= {"model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": False}
    trainer = Trainer(
        model=str(options.model),
        args=SFTConfig(
            output_dir=folder,
            max_length=options.length,
            max_steps=FOR_EVER,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        ),
        train_dataset=datasets.load_dataset("json", data_files=str(options.data), split="train", cache_dir=folder),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Pace()],
    )
    tokens: list[int] = []
    training_step = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        return training_step(model, inputs, *rest)

    trainer.training_step = counted
    trainer.train()


if __name__ == "__main__":
    main()
