"""One training step and one evaluation step of the video tokenizer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from loong_jax import sharding
from loong_jax.config import TokenizerJob, TokenizerLossConfig
from loong_jax.evaluation.reconstruction import ssim
from loong_jax.tokenizer import autoencoder
from loong_jax.tokenizer.perceptual import LpipsWeights, lpips
from loong_jax.tokenizer.quantizer import ClusterState, cluster_codebook, perplexity
from loong_jax.training.adversary import Adversary
from loong_jax.training.guards import guarded
from loong_jax.training.optimizer import make_schedule
from loong_jax.training.state import TrainState, create_state, running_mean

Metrics = dict[str, jax.Array]


def to_unit_range(video: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """uint8 pixels -> float32 in [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1


def make_adversary(job: TokenizerJob) -> Adversary | None:
    """The discriminator's side of the training, if the job has one."""
    return Adversary(job) if job.loss.adversarial_weight else None


def create_tokenizer_state(
    job: TokenizerJob, optimizer: optax.GradientTransformation, mesh: Mesh, *, is_abstract: bool = False
) -> tuple[TrainState, TrainState]:
    """The first state of a training, or its shapes alone, and the tree of its shardings."""
    adversary = make_adversary(job)

    def rest(key, params):
        fields = {"clusters": ClusterState.create(job.tokenizer.quantizer, key)}
        if adversary:
            fields["adversary"] = adversary.init(jax.random.fold_in(key, 1))
        if job.ema_decay:
            fields["ema"] = jax.tree.map(jnp.copy, params)
        return fields

    return create_state(
        lambda key: autoencoder.init_params(job.tokenizer, key),
        autoencoder.logical_axes(job.tokenizer),
        optimizer,
        mesh,
        jax.random.key(job.seed),
        rest,
        adversary.logical_axes if adversary else None,
        is_abstract,
    )


def make_train_step(
    job: TokenizerJob,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    lpips_weights: LpipsWeights | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Build the jitted step ``(state, {"video": uint8 [b, t, h, w, 3]}) -> (state, metrics)``; the state is donated.

    The autoencoder runs once; its pixels are judged by the pixel losses and by the discriminator, whose gradient is
    scaled to theirs (VQGAN, arXiv 2012.09841, equation 7); then the discriminator learns on the same pixels. The
    codebook takes the gradient computed on the old codes and the clustering update of this batch in the same step, as
    the paper's code does. With ``job.freeze_encoder`` encoder and codebook stay as they are. A step whose loss or
    gradients are not finite changes nothing but the counts of steps.
    """
    graphdef, _ = autoencoder.abstract_autoencoder(job.tokenizer)
    quantizer, loss = job.tokenizer.quantizer, job.loss
    adversary = make_adversary(job)
    learning_rate = make_schedule(job.optimizer, job.train.num_steps)
    frozen = ("encoder", "quantizer") if job.freeze_encoder else ()

    def step(state: TrainState, batch: dict[str, Array], lpips_weights: LpipsWeights | None = None):
        video = to_unit_range(batch["video"])
        active = job.freeze_encoder or state.step >= quantizer.start_step
        key = jax.random.fold_in(jax.random.key(job.seed), state.step)

        def reconstruct(params):
            params = params | {name: jax.lax.stop_gradient(params[name]) for name in frozen}
            output = nnx.merge(graphdef, params)(video, active)
            return (output.video, output.quantized.loss), output.quantized

        (decoded, codebook_loss), pull_back, quantized = jax.vjp(reconstruct, state.params, has_aux=True)
        pixel_grad_fn = jax.value_and_grad(pixel_loss, has_aux=True)
        (pixels, metrics), gradient = pixel_grad_fn(decoded, video, loss, lpips_weights, key)
        total, game = pixels + codebook_loss, state.adversary
        if loss.reencoding_weight:
            judge = nnx.merge(graphdef, jax.lax.stop_gradient(state.params))
            error, error_gradient = jax.value_and_grad(judge.reencoding_error)(decoded, quantized.ids)
            total, gradient = total + loss.reencoding_weight * error, gradient + loss.reencoding_weight * error_gradient
            metrics["reencoding_error"] = error
        if adversary:
            answer, game_gradient = adversary.judge(state.adversary, decoded, state.step)
            weight = adversary.weight(state.step) * _adaptive_weight(pull_back, gradient, game_gradient, loss)
            total, gradient = total + weight * answer, gradient + weight * game_gradient
            game, game_metrics = adversary.learn(state.adversary, video, decoded, state.step)
            metrics |= {"adversarial_loss": answer, "adversarial_weight": weight, **game_metrics}
        (grads,) = pull_back((gradient, jnp.ones_like(codebook_loss)))

        params, clusters, share = _cluster(state, quantized, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = updates | {name: jax.tree.map(jnp.zeros_like, updates[name]) for name in frozen}  # no weight decay
        params = optax.apply_updates(params, updates)
        after = TrainState(state.step, params, opt_state, clusters, game, _mean(state, params))
        grad_norm = optax.tree.norm(grads)
        is_finite = jnp.isfinite(total + grad_norm + metrics.get("discriminator_grad_norm", 0.0))
        after, counts = guarded(state, after, is_finite)
        metrics = {
            "loss": total,
            **metrics,
            "codebook_loss": codebook_loss,
            "codebook_usage": (share > 0).mean(),
            "codebook_perplexity": perplexity(share),
            "codebook_alive": after.clusters.alive(quantizer),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(state.step - state.skips.total),
            **counts,
        }
        return after, metrics

    def _cluster(state: TrainState, quantized, key) -> tuple[Any, ClusterState, jax.Array]:
        codebook = state.params["quantizer"]["codebook"]
        ids = quantized.ids.reshape(-1)
        moved, clusters, share = cluster_codebook(codebook, state.clusters, quantized.compared, ids, key, quantizer)
        if frozen or not quantizer.clustering:
            return state.params, state.clusters.seen(share), share
        return state.params | {"quantizer": {"codebook": moved}}, clusters, share

    def _mean(state: TrainState, params: Any) -> Any:
        """Running mean of the weights; codes are not averaged with where they were."""
        mean = running_mean(state.ema, params, state.step, job.ema_decay)
        return mean and mean | {"quantizer": params["quantizer"]}

    whole = sharding.replicated(mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))
    # The weights are an argument and not a constant, which would be copied into the compiled program.
    return jitted if lpips_weights is None else functools.partial(jitted, lpips_weights=lpips_weights)


def pixel_loss(
    decoded: Float[Array, "b t h w 3"],
    video: Float[Array, "b t h w 3"],
    loss: TokenizerLossConfig,
    lpips_weights: LpipsWeights | None,
    key: jax.Array,
) -> tuple[Float[Array, ""], Metrics]:
    """Reconstruction and perceptual loss of pixels in [-1, 1], the latter on random frames of each clip."""
    error = decoded - video
    squared = jnp.square(error).mean()
    reconstruction = squared if loss.reconstruction == "l2" else jnp.abs(error).mean()
    total = loss.reconstruction_weight * reconstruction
    metrics = {"reconstruction": reconstruction, "psnr": psnr_from_mse(squared)}
    if loss.perceptual_weight:
        clips, num_frames = video.shape[:2]
        count = min(loss.perceptual_frames or num_frames, num_frames)
        chosen = jax.vmap(lambda key: jax.random.choice(key, num_frames, (count,), replace=False))
        frames = chosen(jax.random.split(key, clips))[..., None, None, None]
        looked_at = (jnp.take_along_axis(x, frames, axis=1).reshape(-1, *x.shape[2:]) for x in (decoded, video))
        metrics["perceptual"] = lpips(lpips_weights, *looked_at).mean()
        total += loss.perceptual_weight * metrics["perceptual"]
    return total, metrics


def _adaptive_weight(pull_back, pixel_gradient, game_gradient, loss: TokenizerLossConfig) -> Float[Array, ""]:
    """Ratio of both losses' gradients at the last layer's kernel, at most ``adaptive_max``; 1 if that is 0."""
    if not loss.adaptive_max:
        return jnp.ones(())

    def norm(gradient):
        # Only this layer's part is used: the compiler drops the rest of the backward pass.
        layers = pull_back((gradient, jnp.zeros(())))[0]["decoder"]["layers"]
        return jnp.linalg.norm(layers[max(layers)]["kernel"].reshape(-1))

    return jnp.clip(norm(pixel_gradient) / (norm(game_gradient) + 1e-4), 0, loss.adaptive_max)


class Evaluation(NamedTuple):
    """Per video: PSNR in dB, SSIM, LPIPS if measured; ids; and the first few videos with their reconstructions."""

    scores: dict[str, Float[Array, " b"]]
    ids: Int[Array, "b t h w"]
    originals: UInt8[Array, "n t h w 3"]
    shown: UInt8[Array, "n t h w 3"]


def make_eval_step(
    job: TokenizerJob, num_shown: int, lpips_weights: LpipsWeights | None = None
) -> Callable[[Any, dict[str, jax.Array]], Evaluation]:
    """Build the jitted ``(params, {"video": uint8 [b, t, h, w, 3]}) -> Evaluation``."""
    graphdef, _ = autoencoder.abstract_autoencoder(job.tokenizer)

    @jax.jit
    def evaluate(params: Any, batch: dict[str, Array], lpips_weights: LpipsWeights | None = None) -> Evaluation:
        video = to_unit_range(batch["video"])
        output = nnx.merge(graphdef, params)(video)
        decoded = jnp.clip(output.video, -1, 1)
        error = jnp.square(decoded - video).mean(axis=(1, 2, 3, 4))
        scores = {"psnr": psnr_from_mse(error), "ssim": ssim((decoded + 1) / 2, (video + 1) / 2)}
        if lpips_weights is not None:
            # One frame of every clip at a time: the features of all would not fit.
            frames = tuple(x.swapaxes(0, 1) for x in (decoded, video))
            scores["lpips"] = jax.lax.map(lambda pair: lpips(lpips_weights, *pair), frames).mean(axis=0)
        shown = jnp.round((decoded[:num_shown] + 1) * 127.5).astype(jnp.uint8)
        return sharding.gathered(Evaluation(scores, output.quantized.ids, batch["video"][:num_shown], shown))

    return evaluate if lpips_weights is None else functools.partial(evaluate, lpips_weights=lpips_weights)


def psnr_from_mse(mse: Float[Array, "..."]) -> Float[Array, "..."]:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [-1, 1] (peak to peak 2)."""
    return 10 * jnp.log10(4 / (mse + 1e-12))
