"""What helps after a failed run, for a person: by the kind of failure, where the message alone does not say it."""

from __future__ import annotations

from collections.abc import Mapping

ADVICE: Mapping[str, str] = {
    "out_of_memory": "lower seq_len or micro_batch_size, take method lora or qlora, or close other programs",
    "non_finite": "lower learning_rate, or set precision: fp32, and look at the records of those steps",
    "diverged": "lower learning_rate or max_grad_norm, or take a larger effective batch",
    "bad_data": "`mesh data inspect FILE` shows what is read; mend the lines, or name the columns in data.fields",
    "model_unusable": "`mesh model inspect NAME` shows what is there; pull it again, or take another model",
    "disk_full": "free some space, or set keep_last: 1 and keep_best: 0; started again, it goes on where it was",
    "stalled": "look for swapping and for other programs; started again, it goes on from its last checkpoint",
    "overheated": "look after the machine's fans, or take fewer threads",
    "plugin_failed": "ask the plugin's author, or leave it out",
    "unexplained": "started again, the run goes on from its last checkpoint",
}
"""`bad_spec`, `checkpoint_unusable` and `environment_unfit` are not here: each of their messages ends with its own."""
