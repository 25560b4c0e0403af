"""GGUF to safetensors, once: `python -m tiermesh.kernel.convert --gguf FILE --out FOLDER --context-length N`.

transformers dequantises a GGUF in 17 s where it reads safetensors in half a second. A model read that way stays
marked as quantised and refuses to change its type, so a clean one is built from its configuration and gets the weights.
"""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any

from tiermesh.kernel import lifeline


def main() -> None:
    """Convert, or exit with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.convert", description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--context-length", type=int, required=True)
    options = parser.parse_args()
    lifeline.hold()
    lifeline.yield_to_daemon()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    convert(options.gguf, options.out, context_length=options.context_length)


def convert(gguf: Path, out: Path, *, context_length: int) -> None:
    """Write `out` with fp32 weights, the configuration and the tokenizer of `gguf`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    marked = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name, dtype=torch.float32)
    clean = AutoModelForCausalLM.from_config(_clean_config(marked.config), dtype=torch.float32)
    clean.load_state_dict(marked.state_dict(), strict=True)
    clean.generation_config = marked.generation_config
    tokenizer.model_max_length = context_length
    clean.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _clean_config(marked: Any) -> Any:
    config = copy.deepcopy(marked)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


if __name__ == "__main__":
    main()
