"""How a video moves: flicker, smoothness and amount, in the manner of VBench (arXiv 2311.17982) without its networks.

What differs from VBench:

- flickering is of every video, where VBench picks those of static scenes: motion lowers it too, so read it beside the
  amount;
- smoothness compares every second frame with one interpolated from its neighbors, as VBench does, but they are
  interpolated by matching blocks that move evenly, where VBench asks a network (AMT): what covers and uncovers costs
  smoothness here;
- the amount is the motion of those blocks, where VBench takes optical flow (RAFT): the speed that a twentieth of the
  picture reaches, as blocks at borders are often wrong, where VBench takes the mean of that twentieth. VBench then says
  "dynamic" or not, and here it stays a number. A frozen video has flickering and smoothness 1, and amount 0;
- frames larger than 64 pixels are averaged to 64 to 127 first, so that the cost does not grow with them.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from loong_jax.video import Video

_SIDE = 64  # to which larger frames are reduced
_REACH = 10  # motion that is found: up to this part of the shorter side in a frame
_BLOCK = 5  # pixels that are matched together
_FLAT = 2.0  # of 255: what a longer displacement by a pixel must match better; where all match, none is chosen
_FASTEST = 0.05


def motion_scores(video: Video, fps: float) -> dict[str, float]:
    """Scores of a video of three or more frames.

    Returns:
        "temporal_flickering": 1 - mean change of a pixel from a frame to the next / 255; 1 is none.
        "motion_smoothness": 1 - mean error of interpolated pixels / 255.
        "motion_amount": shorter sides of the frame that at least a twentieth of the pixels move in a second.

    Raises:
        ValueError: it has fewer frames.
    """
    if len(video) < 3:
        raise ValueError(f"Motion needs three or more frames; got {len(video)}.")
    change = np.mean([np.abs(after.astype(np.int16) - before).mean() for before, after in itertools.pairwise(video)])
    error, steps = jax.device_get(_interpolate(video))
    return {
        "temporal_flickering": 1 - float(change) / 255,
        "motion_smoothness": 1 - float(error) / 255,
        "motion_amount": float(steps) * fps,
    }


@jax.jit
def _interpolate(video: UInt8[Array, "t h w 3"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean error of every second frame made of its neighbors, and motion in shorter sides a frame."""
    frames = _reduced(video)
    before, between, after = frames[:-2:2], frames[1:-1:2], frames[2::2]
    middle, lengths = _match(before, after)
    # At the border stands what comes from outside.
    edge = _reach(frames)
    middle, between, lengths = (part[:, edge:-edge, edge:-edge] for part in (middle, between, lengths))
    count = max(1, round(_FASTEST * lengths[0].size))
    fastest, _ = jax.lax.top_k(lengths.reshape(len(lengths), -1), count)
    return jnp.abs(middle - between).mean(), fastest[:, -1].mean() / min(frames.shape[1:3])


def _reach(frames: Float[Array, "n h w 3"]) -> int:
    """Pixels that a block may move in a frame."""
    return max(1, min(frames.shape[1:3]) // _REACH)


def _reduced(video: UInt8[Array, "t h w 3"]) -> Float[Array, "t h2 w2 3"]:
    factor = max(1, min(video.shape[1:3]) // _SIDE)
    height, width = (side // factor for side in video.shape[1:3])
    cut = video[:, : height * factor, : width * factor].astype(jnp.float32)
    return cut.reshape(-1, height, factor, width, factor, 3).mean(axis=(2, 4))


def _match(before: Float[Array, "n h w 3"], after: Float[Array, "n h w 3"]) -> tuple[Array, Array]:
    """The frames between, and how many pixels the block around each pixel moves in a frame, [n, h, w].

    A block that lies at x has come from x - d and goes to x + d: the d is chosen for which both look most alike.
    """
    n, height, width, _ = before.shape
    reach = _reach(before)
    pad = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    before, after = (jnp.pad(frames, pad, mode="edge") for frames in (before, after))
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    grid = grid[np.argsort((grid**2).sum(axis=1), kind="stable")]

    def shifted(frames, step):
        return jax.lax.dynamic_slice(frames, (0, reach + step[0], reach + step[1], 0), (n, height, width, 3))

    def look(best, step):
        old, new = shifted(before, -step), shifted(after, step)
        length = jnp.sqrt(jnp.square(step).sum().astype(jnp.float32))
        cost = _box(jnp.abs(old - new).mean(axis=-1)) + _FLAT * length
        found = (cost, (old + new) / 2, jnp.full_like(cost, length))
        is_better = cost < best[0]
        keep = functools.partial(jnp.where, is_better)
        return (keep(cost, best[0]), jnp.where(is_better[..., None], found[1], best[1]), keep(found[2], best[2])), None

    start = (jnp.full((n, height, width), jnp.inf), jnp.zeros((n, height, width, 3)), jnp.zeros((n, height, width)))
    (_, middle, lengths), _ = jax.lax.scan(look, start, jnp.asarray(grid))
    return middle, lengths


def _box(x: Float[Array, "n h w"]) -> Float[Array, "n h w"]:
    """Mean of the block around each pixel, of as much of it as there is."""
    window, one = (1, _BLOCK, _BLOCK), jnp.ones((1, *x.shape[1:]))
    total, count = (jax.lax.reduce_window(part, 0.0, jax.lax.add, window, (1, 1, 1), "SAME") for part in (x, one))
    return total / count.repeat(len(x), axis=0)
