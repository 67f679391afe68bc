"""Settings of the language model and of its loss."""

import dataclasses

from loong_jax.config.checks import (
    DTYPES,
    require,
    require_choice,
    require_not_negative,
    require_positive,
    require_share,
)

ATTENTION = ("auto", "reference", "xla", "splash", "cudnn", "ring")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """LLaMA over the unified vocabulary; the defaults are the 700M model (the sizes of NBP-XL, arXiv 2502.07737)."""

    num_layers: int = 24
    model_dim: int = 1536
    num_heads: int = 16
    num_kv_heads: int = 16
    mlp_dim: int = 4096
    num_text_ids: int = 32000
    num_video_ids: int = 8192
    max_length: int = 4608
    # Rotary positions: "1d" counts ids, as LLaMA; "3d" gives pairs of channels in turn the time, the row and the column
    # of a video id (data.sequences.places).
    rope: str = "1d"
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    qk_norm: bool = False  # root-mean-square normalization of queries and keys (arXiv 2302.05442); not LLaMA's
    dropout: float = 0.0  # of embeddings and of what each part of a layer adds, in training
    # What the backward pass computes again: "none", "dots" (all but matrix products), "full" (all but the layers'
    # inputs), or "offload" (the same, and those wait in the host's memory).
    remat: str = "none"
    scan_layers: bool = True
    compute_dtype: str = "auto"
    attention: str = "auto"  # "reference", "xla", "splash" (TPU), "cudnn" (GPU) or "ring" (mesh.sequence > 1)

    def __post_init__(self):
        positive = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_dim", "num_video_ids", "max_length")
        require_positive(self, *positive, "rope_theta")
        require_not_negative(self, "num_text_ids", "norm_eps")
        require_choice("model.remat", self.remat, ("none", "dots", "full", "offload"))
        require_choice("model.rope", self.rope, ("1d", "3d"))
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "it must lie in [0, 1)")
        require_choice("model.compute_dtype", self.compute_dtype, DTYPES)
        require_choice("model.attention", self.attention, ATTENTION)
        heads, kv_heads = self.num_heads, self.num_kv_heads
        allowed = f"model_dim {self.model_dim} must be a multiple of 2 x num_heads"
        require(self.model_dim % (2 * heads) == 0, "model.num_heads", heads, allowed)
        require(heads % kv_heads == 0, "model.num_kv_heads", kv_heads, f"it must divide num_heads {heads}")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.model_dim // self.num_heads

    @property
    def vocab_size(self) -> int:
        """Text, video and the ten special ids."""
        return self.num_text_ids + self.num_video_ids + 10


TRANSFORMER_PRESETS = {
    "700m": TransformerConfig(),
    "3b": TransformerConfig(num_layers=26, model_dim=3072, num_heads=24, num_kv_heads=24, mlp_dim=8192),
    "7b": TransformerConfig(num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=32, mlp_dim=11008),
}


# For a CPU: 65 frames of 64x64 pixels, as the small tokenizer's 17x8x8 ids.
SMALL_TRANSFORMER = TransformerConfig(
    num_layers=4, model_dim=256, num_heads=4, num_kv_heads=4, mlp_dim=704, num_video_ids=1024, max_length=1280
)


# Seconds on a CPU; the same code.
DEBUG_TRANSFORMER = TransformerConfig(
    num_layers=2, model_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128, num_video_ids=64, max_length=384
)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Early-frame weighting (Loong, section 3.3): weight 1 + early_weight on the first early_frames latent frames."""

    early_frames: int = 5  # latent frames: the stage-2 part of a stage-3 clip
    early_weight: float = 1.0  # lambda; 0 is plain cross-entropy
    z_weight: float = 0.0  # of log(Z)^2, which keeps scores small (PaLM, arXiv 2204.02311, section 5)
    all_columns: bool = False  # score text ids too, as a LLaMA does, though they are never right
    # In training, each row replaces a share of the video ids it reads by random ones, drawn between 0 and this; what is
    # to be predicted stays clean (InfinityStar, arXiv 2511.04675, does so with the bits of its codes).
    context_corruption: float = 0.0

    def __post_init__(self):
        require_not_negative(self, "early_frames", "early_weight", "z_weight")
        require_share(self, "context_corruption")
