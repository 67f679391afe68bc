"""Frames per second of the tokenizer, whole and streaming, against the convolution throughput of the same machine.

    python tests/benchmarks/tokenizer.py            # the small model at 64x64; seconds on a CPU
    python tests/benchmarks/tokenizer.py --full     # the 246M model at 128x128, for accelerators

Prints medians of runs taken in turn, and the peak memory of 65 and of 650 frames, each in a process of its own.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from loong_jax.config import TokenizerConfig
from loong_jax.config_dict import load_job
from loong_jax.tokenizer.autoencoder import abstract_autoencoder
from loong_jax.tokenizer.causal_conv import convolve3d
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer

ROUNDS = 5
PIECE = 16  # frames that a stream gets at once


def model(is_full: bool) -> tuple[TokenizerConfig, int]:
    """The architecture and its frame size."""
    job = load_job(Path(__file__).parents[2] / "configs", "tokenizer" if is_full else "tokenizer:small")
    return job.tokenizer, job.data.frame_size


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def flops_of(function, *shapes) -> float:
    """Floating-point operations as XLA counts them."""
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def speeds(config: TokenizerConfig, size: int, frames: int) -> None:
    tokenizer = VideoTokenizer.untrained(config)
    video = np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    ids = tokenizer.encode(video)
    latent_piece = PIECE // config.temporal_factor

    def pieces(array, length):  # the first frame comes with the first piece
        return [array[: 1 + length], *(array[i : i + length] for i in range(1 + length, len(array), length))]

    runs = {
        "encode, whole": lambda: tokenizer.encode(video),
        "encode, stream": lambda: list(tokenizer.encode_stream(pieces(video, PIECE))),
        "decode, whole": lambda: tokenizer.decode(ids),
        "decode, stream": lambda: list(tokenizer.decode_stream(pieces(ids, latent_piece))),
    }
    # The limit: one 3x3x3 convolution in the middle of the encoder, as wide and large as there.
    width, side = config.channel_multipliers[-1] * config.base_channels, size // config.spatial_factor
    x = jnp.ones((1, 66, 2 * side, 2 * side, width))
    kernel = jnp.ones((3, 3, 3, width, width))
    convolution = jax.jit(lambda x, kernel: convolve3d(x, kernel, (1, 1, 1), ((1, 1), (1, 1))))
    runs["convolution"] = lambda: convolution(x, kernel).block_until_ready()
    for run in runs.values():
        run()  # compiles
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    limit = 2 * x.size / width * (64 / 66) * kernel.size / median["convolution"]
    graphdef, shapes = abstract_autoencoder(config)
    work = {
        "encode": flops_of(
            lambda params, video: nnx.merge(graphdef, params).encode(video)[0],
            shapes,
            jax.ShapeDtypeStruct((1, *video.shape), jnp.float32),
        ),
        "decode": flops_of(
            lambda params, ids: nnx.merge(graphdef, params).decode(ids)[0],
            shapes,
            jax.ShapeDtypeStruct((1, *ids.shape), jnp.int32),
        ),
    }
    print(f"convolution: {limit / 1e9:.0f} GFLOP/s")
    for direction in ("encode", "decode"):
        whole, stream = (median[f"{direction}, {way}"] for way in ("whole", "stream"))
        print(
            f"{direction}: whole {frames / whole:.1f} frames/s ({work[direction] / whole / limit:.0%} of the "
            f"convolution's rate), stream {frames / stream:.1f} frames/s ({whole / stream:.2f} of whole)"
        )


def peak(is_full: bool, frames: int, queue) -> None:
    """Peak resident memory in MiB of streaming ``frames`` random frames to ids and back."""
    config, size = model(is_full)
    tokenizer = VideoTokenizer.untrained(config)
    rng = np.random.default_rng(0)
    lengths = [1] + [PIECE] * (frames // PIECE)
    video = (rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8) for length in lengths)
    count = sum(len(piece) for piece in tokenizer.decode_stream(tokenizer.encode_stream(video)))
    assert count == sum(lengths)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the 246M model at 128x128")
    is_full = parser.parse_args().full
    config, size = model(is_full)
    print(f"{jax.devices()[0].device_kind}, {size}x{size}, 65 frames, median of {ROUNDS}")
    speeds(config, size, 65)
    context = multiprocessing.get_context("spawn")
    peaks = []
    for frames in (65, 650):
        queue = context.Queue()
        process = context.Process(target=peak, args=(is_full, frames, queue))
        process.start()
        peaks.append(queue.get(timeout=600))
        process.join()
    print(
        f"peak memory of streaming: {peaks[0]:.0f} MiB for 65 frames, {peaks[1]:.0f} MiB for 650 "
        f"({peaks[1] / peaks[0] - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
