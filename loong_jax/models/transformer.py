"""The language model: LLaMA (arXiv 2302.13971) over one vocabulary of text, video and special ids.

Parameters leave the module as a nested dict (``init_params``) and come back with ``nnx.merge(graphdef, params)``.
The model knows ids and columns; which of them are video is its caller's business.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from loong_jax.config import TransformerConfig
from loong_jax.models.attention import attention
from loong_jax.models.attention_mask import Mask
from loong_jax.models.layers import Rotation, project, rms_norm, rotate, rotation, swiglu
from loong_jax.sharding import constrain

_INIT_STDDEV = 0.02
# Tables are this many rows longer than the vocabulary at most, so that any reasonable mesh divides them.
_VOCAB_MULTIPLE = 128

_LAYER_INPUT = "layer_input"
_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Blocks(nnx.Module):
    """All layers: every parameter is stacked over them on its first axis."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        layers, d, f = config.num_layers, config.model_dim, config.mlp_dim
        n, k, h = config.num_heads, config.num_kv_heads, config.head_dim

        def normal(*shape, axes):
            values = _INIT_STDDEV * jax.random.normal(rngs.params(), (layers, *shape))
            return nnx.Param(values, logical_axes=("layers", *axes))

        def ones(size):
            return nnx.Param(jnp.ones((layers, size)), logical_axes=("layers", None))

        self.attention_norm = ones(d)
        if config.qk_norm:
            self.query_norm, self.key_norm = ones(h), ones(h)
        self.query = normal(d, n, h, axes=("embed", "heads", None))
        self.key = normal(d, k, h, axes=("embed", "kv_heads", None))
        self.value = normal(d, k, h, axes=("embed", "kv_heads", None))
        self.output = normal(n, h, d, axes=("heads", None, "embed"))
        self.mlp_norm = ones(d)
        self.gate = normal(d, f, axes=("embed", "mlp"))
        self.up = normal(d, f, axes=("embed", "mlp"))
        self.down = normal(f, d, axes=("mlp", "embed"))


class Transformer(nnx.Module):
    """Embedding, layers, final norm and an untied head."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        rows, d = padded_vocab(config), config.model_dim
        table = _INIT_STDDEV * jax.random.normal(rngs.params(), (rows, d))
        head = _INIT_STDDEV * jax.random.normal(rngs.params(), (d, rows))
        self.embedding = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.blocks = Blocks(config, rngs)
        self.final_norm = nnx.Param(jnp.ones(d), logical_axes=(None,))
        self.head = nnx.Param(head, logical_axes=("embed", "vocab"))

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t *axes"],
        segment_ids: Int[Array, "b t"] | None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "b t d"]:
        """Final hidden states of whole sequences, each place seeing its own segment up to itself.

        Without ``segment_ids`` a row is one segment. With ``dropout_key`` a share ``config.dropout`` is dropped, as in
        training.
        """
        mask, implementation = Mask(segment_ids), self.config.attention
        layers, ports = _gradient_ports(nnx.to_pure_dict(nnx.state(self.blocks)), self.compute_dtype)
        turn = rotation(positions, self.config.head_dim, self.config.rope_theta)

        def layer(x, of_layer):
            params, ports, keys = of_layer
            params = _in_dtype(params, self.compute_dtype)
            params |= {name: params[name] + port for name, port in ports.items()}
            x = checkpoint_name(x, _LAYER_INPUT)
            attended = self._attend(x, params, turn, lambda q, k, v: attention(q, k, v, mask, implementation), keys)
            return self._mlp(attended, params, keys), None

        if self.config.remat != "none":
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[self.config.remat])
        keys = None  # two for each layer
        if dropout_key is not None and self.config.dropout:
            dropout_key, own_key = jax.random.split(dropout_key)
            keys = jax.random.split(dropout_key, (self.config.num_layers, 2))
        x = self._embed(tokens)
        x = x if keys is None else self._drop(x, own_key)
        if self.config.scan_layers:
            x, _ = jax.lax.scan(layer, x, (layers, ports, keys))
        else:
            for index in range(self.config.num_layers):
                x, _ = layer(x, jax.tree.map(lambda p, index=index: p[index], (layers, ports, keys)))
        return self._norm(x)

    def logits(self, hidden: Float[Array, "... d"], start: int = 0, stop: int | None = None) -> Float[Array, "... v"]:
        """Scores of the ids [start, stop), by default of all, in float32; other columns of the head are not touched."""
        stop = self.config.vocab_size if stop is None else stop
        head = self.head[...][:, start:stop].astype(self.compute_dtype)
        return jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """What layers compute in; parameters are float32."""
        return compute_dtype(self.config)

    def _embed(self, tokens):
        # Rows first, cast after: the table is not copied, and its gradient is summed in float32.
        return constrain(self.embedding[...][tokens].astype(self.compute_dtype), "batch", "length", None)

    def _norm(self, x):
        return rms_norm(x, self.final_norm[...], self.config.norm_eps)

    def _drop(self, x, key):
        kept = jax.random.bernoulli(key, 1 - self.config.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.config.dropout), 0).astype(x.dtype)

    def _attend(self, x, params, turn: Rotation, attend, keys=None):
        normal = rms_norm(x, params["attention_norm"], self.config.norm_eps)
        query, key, value = (_to_heads(normal, params[name]) for name in ("query", "key", "value"))
        if self.config.qk_norm:
            query = rms_norm(query, params["query_norm"], self.config.norm_eps)
            key = rms_norm(key, params["key_norm"], self.config.norm_eps)
        query, key = (rotate(part, turn) for part in (query, key))
        heads = attend(query, key, value)
        out = project(heads.reshape(*x.shape[:2], -1), params["output"].reshape(-1, x.shape[-1]))
        out = out if keys is None else self._drop(out, keys[0])
        return constrain(x + out, "batch", "length", None)

    def _mlp(self, x, params, keys=None):
        normal = rms_norm(x, params["mlp_norm"], self.config.norm_eps)
        out = swiglu(normal, params["gate"], params["up"], params["down"])
        out = out if keys is None else self._drop(out, keys[1])
        return constrain(x + out, "batch", "length", None)


def _to_heads(x: Float[Array, "b t d"], weight: Float[Array, "d n h"]) -> Float[Array, "b t n h"]:
    return project(x, weight.reshape(len(weight), -1)).reshape(*x.shape[:2], *weight.shape[1:])


def _in_dtype(blocks: dict[str, Array], dtype: jnp.dtype) -> dict[str, Array]:
    """Matrices in the compute dtype; norm scales stay in float32."""
    return {name: value if name.endswith("norm") else value.astype(dtype) for name, value in blocks.items()}


def _gradient_ports(blocks: dict[str, Array], dtype: jnp.dtype) -> tuple[dict[str, Array], dict[str, Array]]:
    """The layers, and zeros in ``dtype`` to add to their matrices, through which the matrices' gradients leave.

    A matrix's gradient comes in the compute dtype. Until the step's end, that of all layers waits in the dtype of what
    it is the gradient of: of float32 matrices it would take twice the memory and say no more.
    """
    if dtype == jnp.float32:
        return blocks, {}
    ports = {name: _port(value, dtype) for name, value in blocks.items() if not name.endswith("norm")}
    return {name: jax.lax.stop_gradient(x) if name in ports else x for name, x in blocks.items()}, ports


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _port(value: Array, dtype: jnp.dtype) -> Array:
    return jnp.zeros(value.shape, dtype)


_port.defvjp(
    lambda value, dtype: (_port(value, dtype), jnp.zeros((), value.dtype)),
    lambda dtype, like, gradient: (gradient.astype(like.dtype),),
)


def compute_dtype(config: TransformerConfig) -> jnp.dtype:
    """float32 or bfloat16; "auto" is float32 on CPU, bfloat16 elsewhere."""
    if config.compute_dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.compute_dtype)


def padded_vocab(config: TransformerConfig) -> int:
    """Rows of the embedding table: the vocabulary rounded up; the rows past it are never used."""
    return -(-config.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def aligned_column(column: int) -> int:
    """The last column of the head up to ``column`` from which any reasonable mesh can cut it."""
    return column // _VOCAB_MULTIPLE * _VOCAB_MULTIPLE


def abstract_params(config: TransformerConfig) -> tuple[nnx.GraphDef, dict]:
    """The module's structure and the shapes of its parameters, without allocating any."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(params)


def init_params(config: TransformerConfig, key: jax.Array) -> dict:
    """Fresh parameters as a nested dict of float32 arrays; to be jitted with out_shardings for large models."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(key))))


def embed_codes(params: dict, config: TransformerConfig, codes: Float[Array, "k d"], key: jax.Array) -> dict:
    """Start the embeddings and head columns of the video ids from the tokenizer's code vectors, by a random projection.

    Similar codes then start as similar ids, and what is learned about one holds for the others; an id's column starts
    as its embedding, so that copying is easy to learn. A tenth of the variance stays each id's own.
    """
    codes = codes - codes.mean(axis=0, keepdims=True)
    projection = jax.random.normal(key, (codes.shape[1], config.model_dim)) / codes.shape[1] ** 0.5
    shared = _INIT_STDDEV * (codes / codes.std()) @ projection
    ids = slice(config.num_text_ids, config.num_text_ids + config.num_video_ids)
    rows = 0.9**0.5 * shared + 0.1**0.5 * params["embedding"][ids]
    return params | {
        "embedding": params["embedding"].at[ids].set(rows),
        "head": params["head"].at[:, ids].set(rows.T),
    }


def logical_axes(config: TransformerConfig) -> dict:
    """Logical axis names of every parameter, in the structure of ``init_params``."""
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    axes = jax.tree.map(lambda p: p.logical_axes, state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return nnx.to_pure_dict(axes)


def matrix_axes(params: dict) -> dict:
    """Input and output axes of every matrix of the layers, for optimizers that treat matrices as such; else None."""
    axes = jax.tree.map(lambda _: None, params)
    heads = dict.fromkeys(("query", "key", "value"), ((1,), (2, 3)))
    axes["blocks"] |= heads | {"output": ((1, 2), (3,))} | dict.fromkeys(("gate", "up", "down"), ((1,), (2,)))
    return axes
