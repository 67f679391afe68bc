"""One training step and one evaluation step of the video tokenizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from loong_jax import sharding
from loong_jax.config import TokenizerJob
from loong_jax.tokenizer.autoencoder import abstract_autoencoder
from loong_jax.tokenizer.quantizer import ClusterState, cluster_codebook, perplexity
from loong_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def to_unit_range(video: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """uint8 pixels -> float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1


def make_train_step(
    job: TokenizerJob, optimizer: optax.GradientTransformation, shardings: TrainState, mesh: Mesh
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Build the jitted step ``(state, {"video": uint8 [b, t, h, w, 3]}) -> (state, metrics)``; the state is donated.

    The codebook takes the gradient computed on the old codes and the clustering update of this batch in the same
    step, as the paper's code does. With ``job.freeze_encoder`` encoder and codebook stay as they are.
    """
    graphdef, _ = abstract_autoencoder(job.tokenizer)
    quantizer = job.tokenizer.quantizer
    frozen = ("encoder", "quantizer") if job.freeze_encoder else ()

    def loss_fn(params, video, active):
        params = params | {name: jax.lax.stop_gradient(params[name]) for name in frozen}
        output = nnx.merge(graphdef, params)(video, active)
        reconstruction = jnp.square(output.video - video).mean()
        return reconstruction + output.quantized.loss, (reconstruction, output.quantized)

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        video = to_unit_range(batch["video"])
        active = job.freeze_encoder or state.step >= quantizer.start_step
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (reconstruction, quantized)), grads = grad_fn(state.params, video, active)
        params, extra, share = _cluster(state, quantized)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = updates | {name: jax.tree.map(jnp.zeros_like, updates[name]) for name in frozen}  # no weight decay
        metrics = {
            "loss": loss,
            "reconstruction": reconstruction,
            "psnr": psnr_from_mse(reconstruction),
            "codebook_loss": quantized.loss,
            "codebook_usage": (share > 0).mean(),
            "codebook_perplexity": perplexity(share),
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(state.step + 1, optax.apply_updates(params, updates), opt_state, extra), metrics

    def _cluster(state: TrainState, quantized) -> tuple[Any, ClusterState, jax.Array]:
        codebook = state.params["quantizer"]["codebook"]
        key = jax.random.fold_in(jax.random.key(job.seed), state.step)
        ids = quantized.ids.reshape(-1)
        moved, extra, share = cluster_codebook(codebook, state.extra, quantized.compared, ids, key, quantizer)
        if frozen or not quantizer.clustering:
            return state.params, state.extra, share
        return state.params | {"quantizer": {"codebook": moved}}, extra, share

    whole = sharding.replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))


class Evaluation(NamedTuple):
    """PSNR per video in dB, ids, and the first few reconstructions."""

    psnr: Float[Array, " b"]
    ids: Int[Array, "b t h w"]
    shown: UInt8[Array, "n t h w 3"]


def make_eval_step(job: TokenizerJob, num_shown: int) -> Callable[[Any, dict[str, jax.Array]], Evaluation]:
    """Build the jitted ``(params, {"video": uint8 [b, t, h, w, 3]}) -> Evaluation``."""
    graphdef, _ = abstract_autoencoder(job.tokenizer)

    @jax.jit
    def evaluate(params: Any, batch: dict[str, Array]) -> Evaluation:
        video = to_unit_range(batch["video"])
        output = nnx.merge(graphdef, params)(video)
        decoded = jnp.clip(output.video, -1, 1)
        error = jnp.square(decoded - video).mean(axis=(1, 2, 3, 4))
        shown = jnp.round((decoded[:num_shown] + 1) * 127.5).astype(jnp.uint8)
        return Evaluation(psnr_from_mse(error), output.quantized.ids, shown)

    return evaluate


def psnr_from_mse(mse: Float[Array, "..."]) -> Float[Array, "..."]:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1] (peak to peak 2)."""
    return 10 * jnp.log10(4 / (mse + 1e-12))
