"""The language model's loss: cross-entropy of the next id, weighted place by place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from loong_jax.training.head_loss import head_loss


class NextIdLoss(NamedTuple):
    """Weighted loss, and unweighted means by latent frame."""

    loss: Float[Array, ""]
    frame_loss: Float[Array, " frames"]
    accuracy: Float[Array, ""]


class LossSums(NamedTuple):
    """What a part of a batch adds to the sums that its loss is made of."""

    loss: Float[Array, ""]
    frame_loss: Float[Array, " frames"]
    frame_places: Float[Array, " frames"]
    num_right: Float[Array, ""]

    def means(self) -> NextIdLoss:
        """Of all parts together; a frame that the batch lacks is 0."""
        num_video = jnp.maximum(self.frame_places.sum(), 1)
        frame_loss = self.frame_loss / jnp.maximum(self.frame_places, 1)
        return NextIdLoss(self.loss, frame_loss, self.num_right / num_video)


def next_id_loss(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    frame_ids: Int[Array, "b t"],
    *,
    columns: tuple[int, int],
    num_frames: int,
    total_weight: Float[Array, ""],
    z_weight: float = 0.0,
) -> tuple[Float[Array, ""], LossSums]:
    """Weighted cross-entropy, sum(w * ce) / total_weight (Loong section 3.3).

    Args:
        hidden: final hidden states, in the dtype to compute the scores in.
        head: its columns, float32.
        targets: column of the right id; read only where the weight is positive.
        weights: weight of predicting each target; 0 for text, markers and padding.
        frame_ids: latent frame of each target, -1 where it is not a video id; read as the targets are.
        columns: first and last + 1 of the columns that can be targets.
        num_frames: latent frames that are reported.
        total_weight: of the whole batch, where this is a part of it.
        z_weight: see ``head_loss``.

    Returns:
        What to minimize, and the sums behind the plain mean cross-entropy of each latent frame and the share of video
        ids predicted right.
    """
    targets = jnp.where(weights > 0, targets, columns[0])
    frame_ids = jnp.where(weights > 0, frame_ids, -1)  # what is given is not predicted
    objective, scores = head_loss(hidden, head, targets, weights / total_weight, columns, z_weight)
    membership = jax.nn.one_hot(frame_ids, num_frames)  # all zero for -1
    return objective, LossSums(
        loss=(weights * scores.entropy).sum() / total_weight,
        frame_loss=jnp.einsum("bt,btf->f", scores.entropy, membership),
        frame_places=membership.sum(axis=(0, 1)),
        num_right=jnp.where(scores.is_right & (frame_ids >= 0), 1.0, 0.0).sum(),
    )
