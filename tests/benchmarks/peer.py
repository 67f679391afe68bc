"""Hugging Face's LLaMA with PyTorch, in a process of its own: what the other benchmarks measure against."""

import os
import subprocess

from loong_jax.config import TransformerConfig

_MODEL = """
import time, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.set_num_threads({threads}); torch.manual_seed(0)
config = LlamaConfig(vocab_size={vocab}, hidden_size={d}, intermediate_size={f}, num_hidden_layers={layers},
                     num_attention_heads={heads}, max_position_embeddings=8192)
model = LlamaForCausalLM(config)
"""


def peer_seconds(python: str, model: TransformerConfig, script: str, **values: int) -> float:
    """What ``script`` prints last, run by the interpreter ``python`` with ``model`` as the peer's.

    Names in braces are filled in: those of ``values``, and ``vocab``.
    """
    shape = dict(d=model.model_dim, f=model.mlp_dim, layers=model.num_layers, heads=model.num_heads)
    program = (_MODEL + script).format(threads=os.cpu_count(), vocab=model.vocab_size, **shape, **values)
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])
