"""transformers itself, as a process that answers JSON lines: `python -m benchmarks.kernel.baseline --help`.

Besides generating it judges answers: how far each token's logit is below the best one, in fp32, alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiermesh.kernel import lifeline

Json = dict[str, Any]

CACHE_BLOCKS = 64
"""Of 256 tokens each, when tuned: room for every benchmark here. Left alone it takes most of the machine's memory."""
BATCH_TOKENS = 512
"""The same for the rows that are computed at once."""
MEMORY_SHARE = 0.3
"""Of the free memory, when not tuned: with its own nine tenths the system kills it beside other engines."""


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batching", choices=["padded", "continuous", "tuned"], default="padded")
    options = parser.parse_args()
    lifeline.yield_to_daemon()  # As low as the worker, so that neither has an advantage.
    os.environ.update(OMP_NUM_THREADS=str(options.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Libraries print.
    baseline = Baseline(options.model, options.threads, options.precision, options.batching)
    answers.write("{}\n")
    for line in sys.stdin:
        answers.write(json.dumps(baseline.answer(json.loads(line))) + "\n")


class Baseline:
    """One model in one precision."""

    def __init__(self, folder: Path, threads: int, precision: str, batching: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self._torch = torch
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._batching = batching

    def answer(self, asked: Json) -> Json:
        if "judge" in asked:
            return {"gaps": [self._gaps(one["prompt"], one["tokens"], one["text"]) for one in asked["judge"]]}
        prompts = [self._prompt(text) for text in asked["prompts"]]
        generate = self._generate if self._batching == "padded" else self._generate_batch
        return {"answers": generate(prompts, asked["tokens"])}

    def _prompt(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        tokens = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        return list(tokens)

    def _generate(self, prompts: list[list[int]], tokens: int) -> list[Json]:
        """A padded batch. A criterion that never stops tells when each step was done."""
        from transformers import StoppingCriteriaList

        started, arrivals = time.perf_counter(), list[float]()

        def note(ids_BT: Any, _: Any, **__: Any) -> Any:
            arrivals.append(time.perf_counter() - started)
            return self._torch.zeros(len(ids_BT), dtype=self._torch.bool)

        padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        output = self._model.generate(
            **padded, max_new_tokens=tokens, do_sample=False, stopping_criteria=StoppingCriteriaList([note])
        )
        rows = output[:, padded["input_ids"].shape[1] :].tolist()
        return [self._told(prompt, self._until_end(row), arrivals) for prompt, row in zip(prompts, rows, strict=True)]

    def _generate_batch(self, prompts: list[list[int]], tokens: int) -> list[Json]:
        """transformers' own continuous batching: as it comes, one whole call; tuned, without its set-up."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        tuned, began = self._batching == "tuned", time.perf_counter()
        limits = (
            {"num_blocks": CACHE_BLOCKS, "max_batch_tokens": BATCH_TOKENS}
            if tuned
            else {"max_memory_percent": MEMORY_SHARE}
        )
        end = self._tokenizer.eos_token_id
        results = self._model.generate_batch(
            prompts,
            generation_config=GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=end),
            continuous_batching_config=ContinuousBatchingConfig(**limits),
            record_timestamps=True,
        ).values()
        began = min(result.created_time for result in results) if tuned else began
        return [
            self._told(result.prompt_ids, result.generated_tokens, [stamp - began for stamp in result.timestamps])
            for result in results
        ]

    def _until_end(self, row: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return row[: row.index(end) + 1] if end in row else row

    def _told(self, prompt: Sequence[int], tokens: Sequence[int], arrivals: Sequence[float]) -> Json:
        return {
            "text": self._tokenizer.decode(tokens, skip_special_tokens=True),
            "tokens": list(tokens),
            "completion_tokens": len(tokens),
            "prompt_tokens": len(prompt),
            "arrivals": list(arrivals[: len(tokens)]),
        }

    def _gaps(self, prompt: str, tokens: list[int], text: str) -> list[float]:
        """Text without token ids is read as the tokenizer would write it, which is nearly always what was chosen."""
        torch, before = self._torch, self._prompt(prompt)
        chosen = tokens or self._tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits_TV = self._model(input_ids=torch.tensor([before + chosen])).logits[0, len(before) - 1 : -1]
        own_T = logits_TV.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        gaps: list[float] = (logits_TV.amax(1) - own_T).tolist()
        return gaps


if __name__ == "__main__":
    main()
