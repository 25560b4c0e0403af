"""What a training run is asked to do: one flat document with a few groups, checked whole before anything starts.

Every field says its unit and its trade-off in the text below it, from which the reference in docs/training.md is made.
A field that a file leaves out has its default; a field that does not exist is a mistake, never ignored.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from tiermesh.core.size import parse_size

SPEC_VERSION = 1
"""Raised when a field changes its meaning; a spec of a later version is refused, not guessed at."""
MEMORY_FLOOR_BYTES = 256 * 1024 * 1024
"""The runtime alone takes more; what is smaller is a slip of the pen (`8` for `8 GB`)."""
DEFAULT_EVAL_FRACTION = 0.05
"""Enough to see over-fitting, little enough not to be missed."""
SAMPLES_LIMIT = 16
"""Prompts answered at every evaluation; each costs a generation."""
CALLBACKS_LIMIT = 16
"""Each is called at every step."""

Task = Literal["finetune", "pretrain", "preference"]
Method = Literal["full_finetune", "lora", "qlora"]
Precision = Literal["auto", "fp32", "bf16"]


def _named(value: object) -> object:
    """`adamw` is short for `{name: adamw}`."""
    return {"name": value} if isinstance(value, str) else value


def _memory(value: object) -> int:
    size_bytes = parse_size(value)
    if size_bytes < MEMORY_FLOOR_BYTES:
        raise ValueError("at least 256 MiB; the runtime alone takes more")
    return size_bytes


class Part(BaseModel):
    """A group of fields: frozen, none unknown, no silent conversions (`"4"` is no batch size, NaN no rate)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Named(Part):
    """A built-in or a plugin by its name, with the options that it takes. A plain text is the name alone."""

    name: Text
    """As in the lists of this page, or as an installed package registered it."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """What it takes besides; checked when it is loaded."""


Choice = Annotated[Named, BeforeValidator(_named)]


class LoraOptions(Part):
    """The adapter, for the methods `lora` and `qlora`."""

    r: int = Field(16, ge=1, le=1024)
    """Rank. Higher learns more and costs more memory; 8 to 64 are usual."""
    alpha: float = Field(32.0, gt=0, le=4096)
    """The adapter's output is multiplied by alpha / r."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the adapter's inputs dropped while training. 0 is faster, and equal under any micro-batch size. The task
    `preference` drops none, whatever this says: it measures against the model as it was, not against a part of it."""
    targets: Literal["all-linear"] | Annotated[tuple[Text, ...], Field(min_length=1, strict=False)] = "all-linear"
    """Which layers are adapted: `all-linear`, or a list of the last parts of their names, such as `q_proj`."""


class DpoOptions(Part):
    """Direct preference optimisation, for the task `preference`."""

    beta: float = Field(0.1, gt=0, le=100)
    """How much straying from the model as it was costs. Lower strays further."""


class Fields(Part):
    """What the columns of the data are called, where they have other names than usual. None: the usual name."""

    text: Text | None = None
    """Plain text to learn whole (`text`)."""
    prompt: Text | None = None
    """What is asked (`prompt`)."""
    completion: Text | None = None
    """What is to be answered (`completion`)."""
    messages: Text | None = None
    """A conversation: a list of role and content (`messages`)."""
    chosen: Text | None = None
    """The better answer of a pair (`chosen`)."""
    rejected: Text | None = None
    """The worse answer of a pair (`rejected`)."""
    weight: Text | None = None
    """How much the record's loss counts (no usual name: without this field all count 1)."""
    repeat: Text | None = None
    """How often the record is seen in an epoch; 0.5 is every other epoch (no usual name: without this field once)."""


class DataOptions(Part):
    """How the data is read."""

    format: Text = "auto"
    """`auto` (by content and file name), `jsonl`, `json`, `csv`, `parquet`, `text`, or a reader plugin's name."""
    fields: Fields = Fields()
    """Names of the columns."""
    max_bad_records: int = Field(100, ge=0)
    """Records that can't be used are skipped, counted and named by line; one more than this fails the run."""
    template: Text | None = Field(None, max_length=100_000)
    """Jinja text of the chat template. None: the tokenizer's own."""
    train_on: Literal["assistant", "all"] = "assistant"
    """What is learnt of a conversation or prompt: the answers alone, or every token. Plain text is learnt whole."""
    token_masking: float = Field(0.0, ge=0, lt=1)
    """Share of input tokens replaced at random while training, against learning by heart; targets stay as they are."""


class EarlyStop(Part):
    """Ends a run whose held-out loss no longer falls."""

    patience: int = Field(3, ge=1, le=1000)
    """Evaluations in a row without a new best."""
    min_delta: float = Field(0.0, ge=0)
    """By how much (nats) a loss must be lower to count as a new best."""


class GuardOptions(Part):
    """What a run forgives before it fails."""

    max_bad_steps: int = Field(10, ge=0, le=10_000)
    """Steps in a row with NaN or Inf in loss or gradients. Each changes no weight."""
    spike_z: float | None = Field(6.0, gt=1)
    """A step is suspect when its loss, or the logarithm of its gradient's norm, is this many standard deviations above
    its moving mean, and at least 0.5 nats, or four times the norm. A suspect step is withheld; two in a row are a spike
    and end in a return. None: spikes are not looked for."""
    max_rollbacks: int = Field(5, ge=0, le=1000)
    """Returns to the last good state, one that two ordinary steps followed, after spikes or NaN in the weights, in the
    whole run. The data that led there is skipped."""


class TrainingSpec(Part):
    """One run. `model_name` and `dataset_path` have no default."""

    version: Literal[1] = 1
    """Of this document's form."""

    task: Task = "finetune"
    """`finetune` on prompts, conversations or text; `pretrain` on plain text; `preference` on pairs (DPO)."""
    method: Method = "lora"
    """`lora` trains a small adapter; `qlora` the same over 4-bit weights, with less memory and slower; `full_finetune`
    trains every weight, which takes the most memory."""
    model_name: Text
    """A name from `mesh model list`, a folder, or ORG/NAME on the Hugging Face hub."""
    dataset_path: Text
    """The file to learn from; relative to the spec's own folder."""
    target_gpu: Text = "any"
    """Where to train in a mesh: `any`, `tier:N` or a node's name. A local run ignores it."""

    num_epochs: int = Field(3, ge=1, le=10_000)
    """Times that every record is seen."""
    max_steps: int | None = Field(None, ge=1)
    """Steps at most, whatever `num_epochs` says. None: `num_epochs` decides."""
    micro_batch_size: int = Field(4, ge=1, le=4096)
    """Rows computed at once. The main lever on memory. Where nothing is dropped (`lora.dropout: 0`) it changes no
    result, only the time it takes; with dropout, which inputs are dropped depends on it."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=65_536)
    """Micro-batches in one step. The effective batch is `micro_batch_size` x this, and never changes during a run."""
    seq_len: int = Field(512, ge=8, le=1_048_576)
    """Tokens in a row, at most. Longer records are cut; for the task `pretrain` they are split instead."""
    packing: bool = True
    """Several short records share a row, unseen by one another. Off: one record a row, and the rest is padding."""

    learning_rate: float = Field(5e-5, gt=0, le=10)
    """At its highest. Adapters bear 1e-4 to 5e-4, full fine-tuning rather 1e-5 to 5e-5."""
    optimizer: Choice = Named(name="adamw")
    """`adamw`, `adamw8bit` (states in 8 bits), `sgd`, or a plugin's name."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Of the matrices; norms and biases are spared."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """A longer gradient is shortened to this. None: never."""
    scheduler: Choice = Named(name="cosine")
    """How the rate falls after the warm-up: `cosine`, `linear`, `constant`, or a plugin's name."""
    warmup: float = Field(0.03, ge=0)
    """Until the full rate: below 1 a share of all steps, from 1 on a number of steps."""
    loss: Choice = Named(name="cross_entropy")
    """`cross_entropy` (in chunks, without keeping the scores of the vocabulary), or a plugin's name."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the order, of new weights and of dropout: the same seed on the same machine gives the same run, to the bit."""

    lora: LoraOptions = LoraOptions()
    """The adapter."""
    dpo: DpoOptions = DpoOptions()
    """Preference tuning."""
    data: DataOptions = DataOptions()
    """Format, columns, template, bad records."""
    guard: GuardOptions = GuardOptions()
    """What the run forgives."""

    precision: Precision = "auto"
    """Of the computation. `auto`: bf16 where a short measurement shows that this machine is good at it. What is trained
    is kept in fp32."""
    checkpointing: Literal["auto"] | bool = "auto"
    """Compute activations again in the backward pass instead of keeping them: about a third slower, much less memory.
    `auto`: only when memory runs short."""
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    """`flash` needs an NVIDIA GPU with the flash-attn package; `auto` takes what is there."""
    compile: bool = False
    """Compile the layers: faster steps after up to minutes of waiting at the first start (seconds at later ones)."""
    memory_limit: Annotated[int, BeforeValidator(_memory)] | None = None
    """Memory that the run may take: bytes, or a text like `8 GB`. On Linux the system refuses it more, and the run
    makes itself smaller. None: it makes itself smaller from what is free at the start less a tenth, and is refused more
    than is free then; memory that others give back later is not counted. On a GPU nothing is refused in this way."""

    eval_path: Text | None = None
    """A file of held-out records; relative to the spec's own folder."""
    eval_fraction: float | None = Field(None, ge=0, le=0.5)
    """Share of records held out, the same ones at each start; equal records are never on both sides. 0: none.
    None: 0.05, unless there is an `eval_path`."""
    eval_interval: int | None = Field(None, ge=1)
    """Steps between evaluations. None: before the first step and after the last one only."""
    samples: tuple[Text, ...] = Field((), strict=False, max_length=SAMPLES_LIMIT)
    """Prompts answered at every evaluation, to see with your own eyes what changes."""
    sample_tokens: int = Field(64, ge=1, le=4096)
    """Tokens of such an answer, at most."""
    early_stop: EarlyStop | None = None
    """Needs `eval_interval`. The result is then the state of the lowest held-out loss. None: never, and the result is
    the state after the last step."""

    save_interval: int = Field(100, ge=1)
    """Steps between checkpoints: what a power cut costs at most."""
    keep_last: int = Field(2, ge=1, le=1000)
    """Checkpoints kept, counted from the newest. The newest that later steps have proven good is never among those let
    go of."""
    keep_best: int = Field(1, ge=0, le=1000)
    """Checkpoints kept besides, counted from the lowest held-out loss. Each evaluation that finds a lower one saves, as
    long as these saves take less than a tenth of the time. `mesh train eval RUN --best` looks at the best; the result
    is the last state all the same, unless `early_stop` is set."""
    merge: bool = False
    """Add the adapter to the model's weights at the end, and write a whole model instead of an adapter."""

    log_interval: int = Field(1, ge=1)
    """Steps between the figures that are shown and recorded."""
    tensorboard: bool = False
    """Write curves for TensorBoard into the run's folder; for a job on the mesh that is its folder on the node that
    trains."""
    wandb: Text | None = None
    """A Weights & Biases project to send the curves to; needs the package wandb. None: nothing leaves this machine.
    Refused in a job on the mesh: its curves would go to the account of whoever owns the node."""
    callbacks: tuple[Choice, ...] = Field((), strict=False, max_length=CALLBACKS_LIMIT)
    """Plugins that are called as the run goes."""

    @property
    def effective_batch(self) -> int:
        """Rows in one step."""
        return self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def held_out_fraction(self) -> float:
        """Of the records of `dataset_path`."""
        if self.eval_fraction is None:
            return 0.0 if self.eval_path else DEFAULT_EVAL_FRACTION
        return self.eval_fraction

    def warmup_steps(self, steps: int) -> int:
        """Of a run of `steps`."""
        return min(steps, round(self.warmup) if self.warmup >= 1 else math.ceil(self.warmup * steps))

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """All at once; each begins with the field that is to be changed."""
        if wrong := list(self._disagreements()):
            raise Disagreement(wrong)
        return self

    def _disagreements(self) -> list[tuple[str, str, tuple[str, ...]]]:
        wrong: list[tuple[str, str, tuple[str, ...]]] = []

        def say(path: str, what: str, *others: str) -> None:
            wrong.append((path, what, others))

        if self.eval_path is not None and self.eval_fraction is not None:
            say("eval_fraction", "is given besides eval_path: held-out records come from one of them", "eval_path")
        if self.early_stop is not None and self.eval_interval is None:
            say("early_stop", "needs eval_interval: without it nothing is evaluated on the way", "eval_interval")
        if self.early_stop is not None and self.eval_path is None and self.held_out_fraction == 0:
            say("early_stop", "needs held-out records: set eval_fraction or eval_path", "eval_fraction", "eval_path")
        if self.max_steps is not None and self.warmup > max(1, self.max_steps):
            say("warmup", f"is {self.warmup:g} steps, but the run has {self.max_steps} (max_steps)", "max_steps")
        if self.merge and self.method == "full_finetune":
            say("merge", "needs an adapter; full_finetune writes a whole model anyway", "method")
        if self.task == "preference" and self.loss.name != "cross_entropy":
            say("loss", "is DPO's own for the task preference; leave it out", "task")
        if self.task == "preference" and self.data.token_masking:
            say("data.token_masking", "is not done for the task preference, which compares answers as they are", "task")
        if self.task == "pretrain" and (self.data.fields.prompt or self.data.fields.messages):
            say("data.fields", "names prompts or messages, but the task pretrain reads plain text", "task")
        names = [callback.name for callback in self.callbacks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            say("callbacks", f"has {name} {names.count(name)} times")
        return wrong


class Disagreement(ValueError):
    """Fields that are right each for itself and don't fit together. `found`: (path, what is wrong, the other fields
    that it is about)."""

    def __init__(self, found: list[tuple[str, str, tuple[str, ...]]]) -> None:
        super().__init__("; ".join(f"{path} {what}" for path, what, _ in found))
        self.found = found
