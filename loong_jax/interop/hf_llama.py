"""Weights to and from Hugging Face's ``LlamaForCausalLM``: names, layouts, safetensors files and ``config.json``.

Works on NumPy arrays and needs neither PyTorch nor transformers. Hugging Face stores matrices as [out, in], heads
merged, one tensor per layer; ours are [in, out], heads apart, layers stacked. The tables there end with the vocabulary,
ours are padded (``transformer.padded_vocab``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from loong_jax.config import TransformerConfig, require
from loong_jax.models import transformer
from loong_jax.vocab import Vocabulary
from loong_jax.weights_file import save_tensors

Tensors = dict[str, np.ndarray]

_EMBEDDING, _FINAL_NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# Ours -> theirs, below "model.layers.N.".
_LAYER_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


def to_hf(params: Mapping[str, Any], config: TransformerConfig) -> Tensors:
    """Convert parameters to the tensors of ``LlamaForCausalLM``, float32, without the padding of the tables.

    Raises:
        ConfigError: the model has parts that a LLaMA lacks.
    """
    _require_llama(config)
    tensors = {
        _EMBEDDING: np.asarray(params["embedding"])[: config.vocab_size],
        _FINAL_NORM: np.asarray(params["final_norm"]),
        _HEAD: np.asarray(params["head"])[:, : config.vocab_size].T,
    }
    for ours, theirs in _LAYER_NAMES.items():
        for layer, value in enumerate(np.asarray(params["blocks"][ours])):
            tensors[f"model.layers.{layer}.{theirs}"] = _merge_heads(ours, value).T
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def from_hf(tensors: Mapping[str, np.ndarray], config: TransformerConfig) -> dict:
    """Convert the tensors of a ``LlamaForCausalLM`` to float32 parameters; the padding of the tables is zero.

    Raises:
        ValueError: a tensor is missing, left over, or of another shape than ``config`` says.
    """
    _require_llama(config)
    _check(tensors, config)
    _, abstract = transformer.abstract_params(config)
    padding = transformer.padded_vocab(config) - config.vocab_size
    blocks = {
        ours: np.stack(
            [tensors[f"model.layers.{layer}.{theirs}"].astype(np.float32).T for layer in range(config.num_layers)]
        ).reshape(abstract["blocks"][ours].shape)
        for ours, theirs in _LAYER_NAMES.items()
    }
    return {
        "embedding": np.pad(tensors[_EMBEDDING].astype(np.float32), ((0, padding), (0, 0))),
        "blocks": blocks,
        "final_norm": tensors[_FINAL_NORM].astype(np.float32),
        "head": np.pad(tensors[_HEAD].astype(np.float32).T, ((0, 0), (0, padding))),
    }


def hf_config(config: TransformerConfig) -> dict[str, Any]:
    """The ``config.json`` that makes transformers build the same model."""
    _require_llama(config)
    vocabulary = Vocabulary(config.num_text_ids, config.num_video_ids)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary.special("begin_text"),
        "eos_token_id": vocabulary.special("end_video"),
        "pad_token_id": vocabulary.special("pad"),
    }


def save_safetensors(path: str | Path, tensors: Tensors) -> None:
    """Write tensors to one safetensors file, marked as transformers expects it."""
    save_tensors(path, tensors, metadata={"format": "pt"})


def load_safetensors(path: str | Path) -> Tensors:
    """Read all tensors of one safetensors file.

    Raises:
        ValueError: it is damaged, or no such file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): download or convert it again.") from None


def _merge_heads(name: str, value: np.ndarray) -> np.ndarray:
    """[d, n, h] -> [d, n x h] for query, key and value; [n, h, d] -> [n x h, d] for output; the rest as it is."""
    if value.ndim < 3:
        return value
    return value.reshape(-1, value.shape[-1]) if name == "output" else value.reshape(value.shape[0], -1)


def _require_llama(config: TransformerConfig) -> None:
    require(config.rope == "1d", "model.rope", config.rope, "a LLaMA counts its positions, '1d'")
    require(not config.qk_norm, "model.qk_norm", config.qk_norm, "a LLaMA does not normalize queries and keys")


def _check(tensors: Mapping[str, np.ndarray], config: TransformerConfig) -> None:
    _, abstract = transformer.abstract_params(config)
    d, vocab = config.model_dim, config.vocab_size
    expected = {_EMBEDDING: (vocab, d), _FINAL_NORM: (d,), _HEAD: (vocab, d)}
    for ours, theirs in _LAYER_NAMES.items():
        shape = _merge_heads(ours, np.broadcast_to(np.float32(0), abstract["blocks"][ours].shape[1:])).T.shape
        expected |= {f"model.layers.{layer}.{theirs}": shape for layer in range(config.num_layers)}
    for problem, names in (("lack", expected.keys() - tensors.keys()), ("hold also", tensors.keys() - expected.keys())):
        if names:
            raise ValueError(
                f"The weights {problem} {sorted(names)[0]!r} ({len(names)} such names): an untied LlamaForCausalLM of "
                f"{config.num_layers} layers without biases is needed; change the model's config or the weights."
            )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{name} has shape {tensors[name].shape}, but the model's config needs {shape}: change one of them."
            )
