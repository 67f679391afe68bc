"""The discriminator as the tokenizer's training sees it: what it tells the decoder, and how it learns itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from loong_jax.config import TokenizerJob
from loong_jax.tokenizer import discriminator

Video = Float[Array, "b t h w 3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdversaryState:
    """The discriminator's parameters and moments, and the running means of its logits (LeCAM)."""

    params: Any
    opt_state: Any
    real_mean: Float[Array, ""]
    fake_mean: Float[Array, ""]


class Adversary:
    """The adversarial game of one job: its losses and its discriminator."""

    def __init__(self, job: TokenizerJob):
        self._loss, self._config = job.loss, job.discriminator
        self._frame_size = (job.data.frame_size, job.data.frame_size)
        self._graphdef, self.logical_axes = discriminator.abstract_discriminator(self._config, self._frame_size)
        self._optimizer = optax.adam(self._config.learning_rate, b1=self._config.b1, b2=self._config.b2)

    def init(self, key: jax.Array) -> AdversaryState:
        """A fresh discriminator."""
        params = discriminator.init_params(self._config, self._frame_size, key)
        zero = jnp.zeros(())
        return AdversaryState(params, self._optimizer.init(params), zero, zero)

    def judge(self, state: AdversaryState, fake: Video, step: Array) -> tuple[Float[Array, ""], Video]:
        """The decoder's loss in the game and its gradient at the pixels, both 0 before ``adversarial_start``."""

        def loss_fn(fake):
            logits = self._logits(state.params, fake)
            is_hinge = self._loss.adversarial == "hinge"
            return -logits.mean() if is_hinge else jax.nn.softplus(-logits).mean()

        return jax.lax.cond(
            step >= self._loss.adversarial_start,
            jax.value_and_grad(loss_fn),
            lambda fake: (jnp.zeros(()), jnp.zeros_like(fake)),
            fake,
        )

    def weight(self, step: Array) -> Float[Array, ""]:
        """``adversarial_weight``, reached over ``adversarial_ramp`` steps from ``adversarial_start`` on."""
        ramp = (step + 1 - self._loss.adversarial_start) / self._loss.adversarial_ramp
        return self._loss.adversarial_weight * jnp.clip(ramp, 0, 1)

    def learn(
        self, state: AdversaryState, real: Video, fake: Video, step: Array
    ) -> tuple[AdversaryState, dict[str, Array]]:
        """One step of the discriminator, none before ``adversarial_start``."""
        return jax.lax.cond(
            step >= self._loss.adversarial_start,
            self._learn,
            lambda state, real, fake: (state, dict.fromkeys(_METRICS, jnp.zeros(()))),
            state,
            real,
            fake,
        )

    def _learn(self, state, real, fake):
        grad_fn = jax.value_and_grad(self._discriminator_loss, has_aux=True)
        (loss, (real_mean, fake_mean)), grads = grad_fn(state.params, state, real, fake)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        decay = self._loss.lecam_decay
        metrics = (loss, real_mean, fake_mean, optax.tree.norm(grads))
        state = AdversaryState(
            optax.apply_updates(state.params, updates),
            opt_state,
            decay * state.real_mean + (1 - decay) * real_mean,
            decay * state.fake_mean + (1 - decay) * fake_mean,
        )
        return state, dict(zip(_METRICS, metrics, strict=True))

    def _discriminator_loss(self, params, state, real, fake):
        real_logits, fake_logits = self._logits(params, real), self._logits(params, fake)
        if self._loss.adversarial == "hinge":
            loss = (jax.nn.relu(1 - real_logits).mean() + jax.nn.relu(1 + fake_logits).mean()) / 2
        else:
            loss = jax.nn.softplus(-real_logits).mean() + jax.nn.softplus(fake_logits).mean()
        real_mean, fake_mean = real_logits.mean(), fake_logits.mean()
        if self._loss.lecam_weight:
            # Equation 3 of arXiv 2104.03310, on the means of the batch.
            distance = jnp.square(jax.nn.relu(real_mean - state.fake_mean))
            distance += jnp.square(jax.nn.relu(state.real_mean - fake_mean))
            loss += self._loss.lecam_weight * distance
        if self._loss.r1_weight:
            # Each clip's logits depend on that clip alone, so one gradient of their sum holds all of them.
            gradient = jax.grad(lambda real: self._logits(params, real).reshape(len(real), -1).mean(axis=1).sum())(real)
            loss += self._loss.r1_weight * jnp.square(gradient).sum(axis=(1, 2, 3, 4)).mean()
        return loss, (real_mean, fake_mean)

    def _logits(self, params, video):
        return nnx.merge(self._graphdef, params)(video)


_METRICS = ("discriminator_loss", "real_logit", "fake_logit", "discriminator_grad_norm")
