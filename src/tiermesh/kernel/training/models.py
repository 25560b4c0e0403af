"""A model's folder and a method become something that can be trained.

B rows, T tokens of a row, E width of a state, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from tiermesh.errors import BadSpec, ModelUnusable
from tiermesh.kernel.inference.precision import Precision, choose_dtype, name_of
from tiermesh.kernel.training import attention, low_rank
from tiermesh.kernel.training.data.isolation import leakage
from tiermesh.kernel.training.layers import linear_layers
from tiermesh.kernel.training.loss import Head
from tiermesh.protocol.training import Method, TrainingSpec

if TYPE_CHECKING:
    from tiermesh.kernel.training.compiling import Compiled

log = logging.getLogger(__name__)

PROBE_TOKENS = ((1, 2, 3, 4),)
"""Computed once at the start, to see that the scores are what the loss takes them for."""
PROBE_TOLERANCE = 0.05
"""Of the largest score: bf16 rounds otherwise when a product is computed another way; a forgotten scale is far more."""


@dataclass(slots=True)
class Trainee:
    """A model in training.

    `model` is what is saved: with an adapter peft's wrapper, else the model itself; `causal` is the model within.
    `dtype`: in which products are computed. `trainables`: the masters in fp32 by their full names, in a fixed order.
    `before`: the model as it was, for preference tuning of all weights; an adapter is simply switched off instead.
    `compiled`: what it took to compile the layers, where they are.
    """

    model: Any
    causal: Any
    method: Method
    dtype: torch.dtype
    device: torch.device
    trainables: dict[str, nn.Parameter]
    before: Any = None
    checkpointing: bool = field(default=False, init=False)
    compiled: Compiled | None = field(default=None, init=False)

    @property
    def precision(self) -> Precision:
        """In which it is computed."""
        return name_of(self.dtype)

    @property
    def head(self) -> Head:
        """The output layer."""
        layer = self.causal.get_output_embeddings()
        return Head(layer.weight, layer.bias)

    def states(self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        """The last states, [B, T, E] in `dtype`. Positions that begin again begin another document, which sees none of
        the one before: transformers keeps them apart when, and only when, no attention mask is given."""
        return self._states(self.causal, tokens_BT, positions_BT)

    @contextlib.contextmanager
    def as_before(self) -> Iterator[Head]:
        """Inside, `states_before` is what the model computed before it was trained."""
        with torch.no_grad():
            if self.before is not None:
                layer = self.before.get_output_embeddings()
                yield Head(layer.weight, layer.bias)
            else:
                with self.model.disable_adapter():
                    yield self.head

    def states_before(self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        """As `states`; only inside `as_before`."""
        return self._states(self.causal if self.before is None else self.before, tokens_BT, positions_BT)

    def checkpoint(self, *, on: bool) -> None:
        """Keep the inputs of layers alone from now on, and compute what is within again on the way back; or not."""
        if on and not self.checkpointing:
            self.causal.activation_checkpointing_enable({"use_reentrant": False})
        elif not on and self.checkpointing:
            self.causal.activation_checkpointing_disable()
        self.checkpointing = on

    def mixed(self) -> torch.autocast:
        """Inside, products of fp32 weights are computed in `dtype`. What is frozen lies in `dtype` already."""
        enabled = self.method == "full_finetune" and self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def blocks(self) -> list[nn.Module]:
        """The repeated layers."""
        return [module for module in self.causal.modules() if isinstance(module, GradientCheckpointingLayer)]

    def _states(self, causal: Any, tokens_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        with self.mixed():
            output = causal.base_model(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False)
        return torch.as_tensor(output.last_hidden_state).to(self.dtype)


def load(spec: TrainingSpec, folder: Path, precision: Precision | None = None) -> Trainee:
    """Load a model's folder for the spec's method. New weights come from the spec's seed.

    `precision` is what a run that goes on was computed in until now: a measurement may end otherwise today. Raises
    `BadSpec` and `ModelUnusable`.
    """
    _quiet()
    torch.manual_seed(spec.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_dtype(precision or spec.precision, device)
    causal = _base(spec, folder, dtype, device)
    _check_finite(causal, spec)
    causal.requires_grad_(spec.method == "full_finetune")
    model = causal if spec.method == "full_finetune" else _adapted(causal, spec)
    trainables = {name: one for name, one in model.named_parameters() if one.requires_grad}
    before = None
    if spec.task == "preference" and spec.method == "full_finetune":
        before = _base(spec, folder, dtype, device, frozen=True).requires_grad_(requires_grad=False)
    trainee = Trainee(model, causal, spec.method, dtype, device, trainables, before)
    _probe(trainee, spec)
    if spec.task == "preference":
        _without_dropout(model, before)
    if spec.checkpointing is True:
        trainee.checkpoint(on=True)
    return trainee


def keep_documents_apart(trainee: Trainee) -> None:
    """Attend to one document after another, where that can be, instead of with a mask. For layers that are not
    compiled."""
    _attend_by_documents(trainee.causal, trainee.device)


def load_tokenizer(folder: Path) -> Any:
    """The folder's own."""
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _base(
    spec: TrainingSpec, folder: Path, dtype: torch.dtype, device: torch.device, *, frozen: bool | None = None
) -> Any:
    """The model alone: in fp32 when its own weights are trained, else as it is computed."""
    frozen = spec.method != "full_finetune" if frozen is None else frozen
    settings: dict[str, Any] = {"dtype": dtype if frozen else torch.float32}
    if spec.method == "qlora":
        settings |= {"quantization_config": _nf4(dtype), "device_map": {"": device}}
    try:
        causal, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation=_attention(spec, device),
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{spec.model_name} can't be loaded: {' '.join(str(error).split())[:300]}") from error
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise ModelUnusable(f"{spec.model_name} is not whole: its files have no {some}")
    if spec.method == "qlora":
        for module in causal.modules():
            # In an arrangement for inference, which bitsandbytes makes at the first evaluation, nothing can be trained.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    else:
        causal = causal.to(device)
    if spec.attention == "auto" and not spec.compile:  # a compiled layer takes one shape, and a mask
        _attend_by_documents(causal, device)
    return causal


def _attend_by_documents(causal: Any, device: torch.device) -> None:
    if device.type == "cpu" and attention.serves(causal.config):
        causal.set_attn_implementation(attention.IMPLEMENTATION)
        if leakage(causal) > 0:
            # Not every architecture tells its attention the positions.
            causal.set_attn_implementation("sdpa")


def _nf4(dtype: torch.dtype) -> Any:
    """Weights as Dettmers et al. 2023 (arXiv 2305.14314) keep them."""
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _attention(spec: TrainingSpec, device: torch.device) -> str:
    has_flash = device.type == "cuda" and transformers.utils.is_flash_attn_2_available()
    if spec.attention == "flash" and not has_flash:
        raise BadSpec("attention: flash needs an NVIDIA GPU and the package flash-attn; leave it at auto")
    return "flash_attention_2" if has_flash and spec.attention != "sdpa" else "sdpa"


def _adapted(causal: Any, spec: TrainingSpec) -> Any:
    """peft's wrapper around it, with masters in fp32 and layers that compute like the rest of the model."""
    names = dict(linear_layers(causal))
    targets = spec.lora.targets if isinstance(spec.lora.targets, str) else list(spec.lora.targets)
    if not isinstance(targets, str):
        last = {name.rpartition(".")[2] for name in names}
        if unknown := sorted(set(targets) - last):
            known = ", ".join(sorted(last))
            raise BadSpec(f"lora.targets: {spec.model_name} has no linear layer {unknown[0]}; it has {known}")
    config = LoraConfig(
        r=spec.lora.r,
        lora_alpha=spec.lora.alpha,  # type: ignore[arg-type,unused-ignore]  # peft writes a float as one
        lora_dropout=spec.lora.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in names.values()),
        task_type="CAUSAL_LM",
    )
    if spec.method == "lora":
        config._register_custom_module(low_rank.MODULES)  # noqa: SLF001  # peft's only door for layers of one's own
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(causal, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _check_finite(causal: Any, spec: TrainingSpec) -> None:
    """Each step of such a model would be passed over, if an attention kernel does not even hide it. A sum is as fast as
    memory is, and makes no copy."""
    for name, one in causal.named_parameters():
        if one.is_floating_point() and not math.isfinite(float(one.detach().sum(dtype=torch.float32))):
            raise ModelUnusable(f"{spec.model_name} is damaged: {name} holds NaN or Inf")


def _without_dropout(*found: Any) -> None:
    """A preference is a difference to the model as it was; with dropout it would be one to a part of it."""
    for model in found:
        for module in () if model is None else model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


def _probe(trainee: Trainee, spec: TrainingSpec) -> None:
    """Some models scale or bend their scores behind the output layer; the loss would be another's."""
    tokens_BT = torch.tensor(PROBE_TOKENS, device=trainee.device)
    positions_BT = torch.arange(tokens_BT.shape[1], device=trainee.device)[None]
    trainee.model.eval()
    with torch.no_grad(), torch.autocast(trainee.device.type, enabled=False):
        head = trainee.head
        states_BTE = trainee.states(tokens_BT, positions_BT)
        bias_V = None if head.bias_V is None else head.bias_V.to(trainee.dtype)
        ours = nn.functional.linear(states_BTE, head.weight_VE.to(trainee.dtype), bias_V).float()
        mixed = trainee.method == "full_finetune" and trainee.dtype != torch.float32  # as `states` computes
        with torch.autocast(trainee.device.type, trainee.dtype, enabled=mixed):
            theirs = trainee.causal(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False).logits.float()
    trainee.model.train()
    if (ours - theirs).abs().max() > PROBE_TOLERANCE * theirs.abs().max():
        kind = type(trainee.causal).__name__
        raise ModelUnusable(f"{spec.model_name} ({kind}) changes its scores behind the output layer: no loss for that")


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
