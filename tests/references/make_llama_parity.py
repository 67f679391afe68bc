"""Write llama_parity.npz: random weights of a tiny LlamaForCausalLM, ids, and the logits transformers computes.

    pip install -e ".[parity]" && python tests/references/make_llama_parity.py

Norm scales are random, and eps and RoPE's theta unusual, so that a wrong place or a default in their stead is seen.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import transformers

from loong_jax.config import TransformerConfig
from loong_jax.interop.hf_llama import hf_config

CONFIG = TransformerConfig(
    num_layers=2,
    model_dim=64,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=96,
    num_text_ids=40,
    num_video_ids=64,
    max_length=64,
    rope_theta=500.0,
    norm_eps=1e-2,
    compute_dtype="float32",
)


def reference_model() -> "transformers.LlamaForCausalLM":
    """transformers' model of ``CONFIG`` with random weights, float32."""
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(**hf_config(CONFIG), attn_implementation="eager")
    model = transformers.LlamaForCausalLM(settings).to(torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    return model


def reference_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 24), dtype=np.int64)


def main() -> None:
    model, tokens = reference_model(), reference_tokens()
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits.numpy()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(
        Path(__file__).with_name("llama_parity.npz"),
        config=json.dumps(dataclasses.asdict(CONFIG)),
        tokens=tokens,
        logits=logits,
        **weights,
    )


if __name__ == "__main__":
    main()
