"""Sampling speed on a CPU against Hugging Face's with PyTorch, and against the memory's bandwidth, in the same run.

    python tests/benchmarks/sampler.py PYTHON [--rounds 3]

PYTHON is an interpreter with torch and transformers. Both sample 256 ids after a prompt of 32 from a 66M-parameter
LLaMA (8 layers of width 512, float32, random weights) with top-k 50; the peer chooses among all 40,202 ids, ours among
the 8,192 of video. Prints tokens per second at batch 1 and 8, taken in turn (medians), their ratios, which share of the
memory's bandwidth reading every weight once a step makes at batch 1, what int8 weights, an int8 cache and several ids
at once (``parallel_ids``, the same ids) change, and when the ids of the first of a clip's 17 latent frames are there.
Random weights guess ids worse than trained ones do.
"""

import argparse
import statistics
import time

import jax
import numpy as np
from peer import peer_seconds

from loong_jax import sharding
from loong_jax.config import DecodingConfig, MeshConfig, SamplingConfig, TransformerConfig
from loong_jax.models import transformer
from loong_jax.sampling.decode import make_decoder
from loong_jax.sampling.logits import rules_of

PROMPT, STEPS, BATCHES = 32, 256, (1, 8)
PARALLEL_IDS = (8, 16, 32)
MODEL = TransformerConfig(num_layers=8, model_dim=512, num_heads=8, num_kv_heads=8, mlp_dim=1376)

PEER = """
model.eval()
prompt = torch.randint(0, 40000, ({batch}, {prompt}))
def sample(count):
    start = time.perf_counter()
    model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=True, top_k=50, pad_token_id=0)
    return time.perf_counter() - start
with torch.inference_mode():
    sample(8)
    print(min(sample({steps}) for _ in range(3)))
"""


class Ours:
    """One decoder; ``seconds`` is the best of three runs, prefill included."""

    def __init__(self, params, batch: int, num_frames: int = 1, **decoding):
        self._batch, self._num_frames = batch, num_frames
        self._decoder = make_decoder(
            MODEL,
            sharding.make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]),
            batch=batch,
            is_guided=False,
            num_slots=PROMPT + num_frames * STEPS,
            frame_steps=STEPS,
            decoding=DecodingConfig(**decoding),
        )
        self._params, self._cache = self._decoder.prepare(params), self._decoder.new_cache()
        self._tokens = np.random.default_rng(0).integers(0, MODEL.num_text_ids, (batch, PROMPT), dtype=np.int32)
        places = np.arange(PROMPT + num_frames * STEPS, dtype=np.int32)
        self._before, self._after = (np.tile(part, (batch, 1)) for part in np.split(places, [PROMPT]))
        self._keys = jax.random.split(jax.random.key(0), batch)
        (self._rule,) = rules_of(SamplingConfig(top_k=50), False, 1)
        self.run()  # compiles

    def run(self) -> list[float]:
        """Seconds from the start until each latent frame's ids are there."""
        start, times = time.perf_counter(), []
        valid = np.ones_like(self._tokens, bool)
        cache, logits, codes = self._decoder.prefill(self._params, self._cache, self._tokens, self._before, valid)
        for frame in range(self._num_frames):
            cache, logits, codes = self._decoder.decode(
                self._params, cache, logits, codes, self._after, PROMPT, frame * STEPS, STEPS, self._keys, self._rule
            )
            codes.block_until_ready()
            times.append(time.perf_counter() - start)
        self._cache = cache
        return times

    def logits(self) -> np.ndarray:
        """Those after the prompt."""
        valid = np.ones_like(self._tokens, bool)
        self._cache, logits, _ = self._decoder.prefill(self._params, self._cache, self._tokens, self._before, valid)
        return np.asarray(logits)

    def seconds(self) -> float:
        return min(self.run()[-1] for _ in range(3))

    @property
    def bytes_a_step(self) -> int:
        """Of the weights that a step reads: all but the embeddings."""
        return sum(
            x.nbytes for name, part in self._params.items() if name != "embedding" for x in jax.tree.leaves(part)
        )


def bandwidth() -> float:
    """Bytes a second at which all cores read a large matrix for a product with a vector, the best of ten."""
    matrix, vector = np.ones((2**15, 2**12), np.float32), np.ones(2**12, np.float32)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        matrix @ vector
        times.append(time.perf_counter() - start)
    return matrix.nbytes / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="an interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    params = jax.jit(lambda key: transformer.init_params(MODEL, key))(jax.random.key(0))
    ours = {batch: Ours(params, batch) for batch in BATCHES}
    int8 = {f"int8 {part}": Ours(params, 1, **{part: "int8"}) for part in ("weights", "cache")}
    parallel = {f"{count} ids at once": Ours(params, 1, parallel_ids=count) for count in PARALLEL_IDS}
    others = int8 | parallel
    seconds = {(who, batch): [] for who in ("peer", "ours") for batch in BATCHES} | {name: [] for name in others}
    rates = []
    for _ in range(arguments.rounds):
        for batch in BATCHES:
            seconds["peer", batch].append(
                peer_seconds(arguments.python, MODEL, PEER, batch=batch, prompt=PROMPT, steps=STEPS)
            )
            seconds["ours", batch].append(ours[batch].seconds())
        for name, sampler in others.items():
            seconds[name].append(sampler.seconds())
        rates.append(bandwidth())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for batch in BATCHES:
        peer, own = (batch * STEPS / medians[who, batch] for who in ("peer", "ours"))
        print(f"batch {batch}: {own:.0f} tokens/s, the peer's {peer:.0f}: {own / peer:.2f} times")
    needed, rate = ours[1].bytes_a_step * STEPS / medians["ours", 1], statistics.median(rates)
    print(f"weights at batch 1: {needed / 1e9:.1f} GB/s of {rate / 1e9:.1f}, {needed / rate:.0%}")
    exact = ours[1].logits()
    for name, sampler in int8.items():
        error = np.sqrt(np.square(sampler.logits() - exact).mean() / np.square(exact).mean())
        print(f"{name}: {STEPS / medians[name]:.0f} tokens/s, error of the logits {error:.2%} (root mean square)")
    for name in parallel:
        ratio = medians["peer", 1] / medians[name]
        print(f"{name}, batch 1: {STEPS / medians[name]:.0f} tokens/s, {ratio:.2f} times the peer's")
    times = Ours(params, 1, num_frames=17).run()
    print(
        f"a clip of 17 latent frames: {times[-1]:.1f} s; the first after {times[0]:.2f} s, {times[0] / times[-1]:.1%}"
    )


if __name__ == "__main__":
    main()
