"""A model's folder becomes a model in memory that computes packed batches."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch
import transformers

from tiermesh.errors import EngineFailed
from tiermesh.kernel.inference import decoder, linear, lora
from tiermesh.kernel.inference.attention import IMPLEMENTATION, PackedBatch, attending
from tiermesh.kernel.inference.cache import Shapes, Size, plan_size, token_bytes
from tiermesh.kernel.inference.decoder import Decoder
from tiermesh.kernel.inference.encoder import Encoder
from tiermesh.kernel.inference.lora import Fitted, InvalidAdapter, Rows
from tiermesh.kernel.inference.precision import Precision, choose_dtype, name_of
from tiermesh.kernel.inference.progress import OnProgress, ignored, weights_counted
from tiermesh.kernel.inference.trial import Trial, run_trial

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 2048
"""For a model whose configuration does not say: what the smallest models in use were trained with."""
FREE_SHARE = 4
"""Of the memory that is free, one part in so many may be used for keys and values unless somebody says otherwise."""
LENGTH_BOUND_ROPE = frozenset({"dynamic", "longrope"})
"""Position encodings that change for a whole batch once one sequence is longer than what the model was trained with."""

LIMITED_LAYERS = frozenset({"sliding_attention", "chunked_attention"})
"""Some architectures limit these by transformers' masks alone, which are not made here."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model and what the generator must know of it.

    `decoder` None: transformers computes its layers. `encoder` and `decode` have a tokenizer each: they are used by
    different threads at the same time. `shapes` are those of its layers' keys and values, `size` that of the cache for
    them; its capacity is the context that can be served. `refused_adapters` are the reasons by the adapters' names.
    """

    model: Any
    device: torch.device
    dtype: torch.dtype
    encoder: Encoder
    end_tokens: frozenset[int]
    shapes: Shapes
    size: Size
    adapter_rows: Rows
    refused_adapters: Mapping[str, str]
    decoder: Decoder | None
    _decoder: Any

    @property
    def precision(self) -> Precision:
        """In which it is computed."""
        return name_of(self.dtype)

    def fit(self, folder: Path, digest: str) -> Fitted:
        """What `install` takes, for this model of that digest; in any thread. Raises `InvalidAdapter`."""
        return lora.fit(self.model, folder, digest)

    def install(self, adapter: str, fitted: Fitted) -> None:
        """Have one more adapter, under a name of its own. Call it between two batches."""
        lora.install(self.adapter_rows, adapter, fitted)
        if self.decoder is not None:
            self.decoder.renew()

    def remove(self, adapter: str) -> None:
        """Have it no longer. Call it between two batches."""
        lora.remove(self.model, adapter)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of these tokens; tokens with a special meaning have none."""
        text = self._decoder.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def logits(self, batch: PackedBatch, wanted: Sequence[int]) -> torch.Tensor:
        """Compute a batch; the logits in fp32 after those of its packed tokens that are `wanted`, [len(wanted), V]."""
        computed = wanted or [0]  # Not every layer takes a call for none.
        self.adapter_rows.set(batch.adapter_rows())
        if self.decoder is not None:
            logits_NV = self.decoder.logits(batch, batch.tokens_1T, batch.positions_1T, computed)
            return logits_NV[: len(wanted)].float()
        with attending(batch):
            output = self.model(
                input_ids=batch.tokens_1T,
                position_ids=batch.positions_1T,
                use_cache=False,
                logits_to_keep=torch.tensor(computed, device=self.device),
            )
        return torch.as_tensor(output.logits[0, : len(wanted)]).float()

    def states(self, batch: PackedBatch) -> torch.Tensor:
        """The base model's last states of all packed tokens, [T, E]."""
        self.adapter_rows.set({})
        with attending(batch):
            output = self.model.base_model(input_ids=batch.tokens_1T, position_ids=batch.positions_1T, use_cache=False)
        return torch.as_tensor(output.last_hidden_state[0, : batch.count])


def load(
    folder: Path,
    *,
    threads: int,
    precision: Precision = "auto",
    memory_bytes: int | None = None,
    adapters: Mapping[str, Path] = MappingProxyType({}),
    digest: str = "",
    on_progress: OnProgress = ignored,
) -> LoadedModel:
    """Load weights and tokenizer from a local folder; raises what transformers raises when it is not a model.

    `memory_bytes` is for the cache; None: a quarter of what is free. `adapters` are folders of LoRAs by their names; a
    bad one, or one for a model that is not of this `digest`, is refused, and the model is served without it. Raises
    `EngineFailed` for a model whose attention this kernel can't compute, or whose cache has no room.
    """
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_dtype(precision, device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with weights_counted(on_progress):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, attn_implementation=IMPLEMENTATION
        )
    model.eval().to(device)
    model.requires_grad_(requires_grad=False)
    if device.type == "cpu":
        _pack(model)
    end_tokens = _end_tokens(model, tokenizer)
    trial = _try(model)
    size = plan_size(
        context_length=_context_length(model.config, tokenizer),
        token_bytes=token_bytes(trial.shapes, dtype),
        memory_bytes=_free_bytes(device) // FREE_SHARE if memory_bytes is None else memory_bytes,
    )
    layers = decoder.recognise(model, trial)
    adapter_rows, refused = _attach(model, adapters, digest)
    if layers is not None:
        layers.renew()
    return LoadedModel(
        model=model,
        device=device,
        dtype=dtype,
        encoder=Encoder(tokenizer, size.capacity, end_tokens, model.config.get_text_config().vocab_size),
        end_tokens=end_tokens,
        shapes=trial.shapes,
        size=size,
        adapter_rows=adapter_rows,
        refused_adapters=refused,
        decoder=layers,
        _decoder=copy.deepcopy(tokenizer),
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _pack(model: Any) -> None:
    started = time.perf_counter()
    with torch.inference_mode():
        joined, packed = linear.join(model), linear.pack(model)
    log.info("%d groups of layers joined, %d packed in %.2f s", joined, packed, time.perf_counter() - started)


def _try(model: Any) -> Trial:
    """A model that can't run fails here, and one that would be computed wrongly is refused."""
    refused = f"{type(model).__name__} can't be served by the built-in kernel"
    try:
        trial = run_trial(model)
    except NotImplementedError as error:
        raise EngineFailed(f"{refused}: {error}") from error
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    types = dict(enumerate(getattr(config, "layer_types", None) or ()))
    if any(types.get(layer) in LIMITED_LAYERS and rule.window is None for layer, rule in trial.rules.items()):
        raise EngineFailed(f"{refused}: its layers look at a window of the text and do not say how long it is")
    if len(trial.shapes) != layers:
        missing = layers - len(trial.shapes)
        raise EngineFailed(f"{refused}: {missing} of its {layers} layers do not attend through transformers' interface")
    return trial


def _attach(model: Any, adapters: Mapping[str, Path], digest: str) -> tuple[Rows, Mapping[str, str]]:
    """What selects the rows of the adapters, and why some are refused."""
    rows, refused = Rows(), {}
    for name, folder in adapters.items():
        try:
            lora.attach(model, rows, name, folder, digest)
        except InvalidAdapter as error:
            log.warning("the adapter %s is not served: %s", name, error)
            refused[name] = str(error)
    return rows, refused


def _context_length(config: Any, tokenizer: Any) -> int:
    """The smaller of what the weights and the tokenizer allow; a tokenizer without a limit says an absurd number."""
    known = [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in LENGTH_BOUND_ROPE:
        known.append(rope.get("original_max_position_embeddings"))
    limits = [value for value in (*known, tokenizer.model_max_length) if isinstance(value, int) and 0 < value < 10**9]
    return min(limits, default=DEFAULT_CONTEXT)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)
