"""Training speed of the language model on a CPU against Hugging Face's with PyTorch, in the same run.

    python tests/benchmarks/train.py PYTHON [--rounds 3]

PYTHON is an interpreter with torch and transformers. Both train a 66M-parameter LLaMA (8 layers of width 512, 1,152
ids, 2 rows, float32) with AdamW on random ids; the peer's head has all 40,202 columns, ours those of video and special
ids, as in training, and then all of them. Prints tokens per second, taken in turn (medians), their ratios, and which
share of a matrix product's rate the model's own products reach.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from peer import peer_seconds

from loong_jax import sharding
from loong_jax.config import LanguageModelJob, LossConfig, MeshConfig, TransformerConfig
from loong_jax.training.lm_step import create_model_state, make_train_step
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.throughput import training_flops_per_token

LENGTH, ROWS, STEPS = 1152, 2, 3
MODEL = TransformerConfig(num_layers=8, model_dim=512, num_heads=8, num_kv_heads=8, mlp_dim=1376)

PEER = """
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
ids = torch.randint(0, {vocab}, ({rows}, {length}))
times = []
for _ in range({steps} + 1):
    start = time.perf_counter()
    model(ids, labels=ids).loss.backward(); optimizer.step(); optimizer.zero_grad()
    times.append(time.perf_counter() - start)
print(min(times[1:]))
"""


def make_batch() -> dict[str, np.ndarray]:
    """Random video ids, all of which are predicted."""
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    first = MODEL.num_text_ids
    return {
        "tokens": rng.integers(first, first + MODEL.num_video_ids, shape, dtype=np.int32),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape),
        "segment_ids": np.ones(shape, np.int32),
        "loss_weights": np.ones(shape, np.float32),
        "frame_ids": np.broadcast_to(np.arange(LENGTH, dtype=np.int32) // 256, shape),
    }


class Ours:
    """One training; ``seconds`` is its best step."""

    def __init__(self, all_columns: bool):
        job = LanguageModelJob(model=MODEL, loss=LossConfig(all_columns=all_columns))
        mesh, optimizer = sharding.make_mesh(MeshConfig()), make_optimizer(job.optimizer, 1000)
        self._state, shardings = create_model_state(job, optimizer, mesh)
        self._step, self._batch = make_train_step(job, 5, optimizer, shardings, mesh), jax.device_put(make_batch())
        self.seconds()  # compiles

    def seconds(self) -> float:
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            self._state, _ = self._step(self._state, self._batch)
            jax.block_until_ready(self._state)
            times.append(time.perf_counter() - start)
        return min(times)


def matmul_rate() -> float:
    """FLOP/s of one product of the size of the MLP's, the best of a few."""
    x, weight = jnp.ones((ROWS * LENGTH, MODEL.model_dim)), jnp.ones((MODEL.model_dim, MODEL.mlp_dim))
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        product(x, weight).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * x.size * MODEL.mlp_dim / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="an interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ours = {"video columns": Ours(False), "all columns": Ours(True)}
    seconds = {name: [] for name in ("peer", *ours)}
    for _ in range(arguments.rounds):
        seconds["peer"].append(peer_seconds(arguments.python, MODEL, PEER, rows=ROWS, length=LENGTH, steps=STEPS))
        for name, training in ours.items():
            seconds[name].append(training.seconds())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name}: {ROWS * LENGTH / value:.0f} tokens/s ({medians['peer'] / value:.2f} of the peer's)")
    for name in ours:
        products = training_flops_per_token(MODEL, LENGTH, name == "all columns") * ROWS * LENGTH
        print(f"{name}: {products / medians[name] / 1e9:.0f} GFLOP/s of {matmul_rate() / 1e9:.0f} of a matrix product")


if __name__ == "__main__":
    main()
