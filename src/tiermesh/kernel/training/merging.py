"""A base model and an adapter become one model: `python -m tiermesh.kernel.training.merging BASE ADAPTER OUT`.

OUT holds safetensors, configuration and tokenizer, in the precision of the base; it appears whole or not at all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import transformers

from tiermesh.kernel.training.result import merge

UNFIT = 3
"""Exit status when the two don't go together, or can't be read; why is the last line of stderr."""


def merged(base: Path, adapter: Path, target: Path) -> Path:
    """Write the model as `target`, which must not be there. Raises what transformers and peft raise."""
    staging = target.with_name(f".{target.name}.merging")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(adapter, staging)
        merge(staging, transformers.AutoTokenizer.from_pretrained(base, local_files_only=True), base)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def main() -> None:
    """Merge what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tiermesh.kernel.training.merging", description=__doc__)
    for name in ("base", "adapter", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        merged(options.base, options.adapter, options.out)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        sys.stderr.write(f"they can't be merged: {' '.join(str(error).split())[:300]}\n")
        sys.exit(UNFIT)


if __name__ == "__main__":
    main()
