"""The language model's loss: cross-entropy of the next id over the columns that can be targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class NextIdLoss(NamedTuple):
    """Weighted loss, and unweighted sums by latent frame."""

    loss: Float[Array, ""]
    frame_loss: Float[Array, " frames"]
    accuracy: Float[Array, ""]


def next_id_loss(
    logits: Float[Array, "b t v"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    frame_ids: Int[Array, "b t"],
    num_frames: int,
) -> NextIdLoss:
    """Weighted mean cross-entropy, sum(w * ce) / sum(w) over the whole batch (Loong section 3.3).

    Args:
        logits: float32 scores of the target columns only.
        targets: column of the right id; read only where the weight is positive.
        weights: weight of predicting each target; 0 for text, markers and padding.
        frame_ids: latent frame of each target, -1 where it is not a video id.
        num_frames: latent frames reported by ``frame_loss``; a frame that the batch lacks is NaN-free 0.

    Returns:
        The loss, the plain mean cross-entropy of each latent frame, and the share of video ids predicted right.
    """
    targets = jnp.where(weights > 0, targets, 0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = jax.nn.logsumexp(logits, axis=-1) - chosen
    membership = jax.nn.one_hot(frame_ids, num_frames)  # all zero for -1
    count = membership.sum(axis=(0, 1))
    is_video = frame_ids >= 0
    right = (logits.argmax(axis=-1) == targets) & is_video
    return NextIdLoss(
        loss=(weights * entropy).sum() / weights.sum(),
        frame_loss=jnp.einsum("bt,btf->f", entropy, membership) / jnp.maximum(count, 1),
        accuracy=right.sum() / jnp.maximum(is_video.sum(), 1),
    )
