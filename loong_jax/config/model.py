"""Settings of the language model, of its loss, and of sampling from it."""

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
    mlp_parts: int = 1  # of the MLP's width, that are worked through one after another, for less memory
    scan_layers: bool = True
    compute_dtype: str = "auto"
    attention: str = "auto"  # "reference", "xla", "splash" (TPU), "cudnn" (GPU) or "ring" (mesh.sequence > 1)

    def __post_init__(self):
        positive = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_dim", "num_video_ids", "max_length")
        positive += ("mlp_parts",)
        require_positive(self, *positive, "rope_theta")
        require_not_negative(self, "num_text_ids", "norm_eps")
        require_choice("model.remat", self.remat, ("none", "dots", "full", "offload"))
        require_choice("model.rope", self.rope, ("1d", "3d"))
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "it must lie in [0, 1)")
        require_choice("model.compute_dtype", self.compute_dtype, DTYPES)
        require_choice("model.attention", self.attention, ATTENTION)
        allowed = f"it must divide mlp_dim {self.mlp_dim}"
        require(self.mlp_dim % self.mlp_parts == 0, "model.mlp_parts", self.mlp_parts, allowed)
        heads, kv_heads = self.num_heads, self.num_kv_heads
        allowed = f"model_dim {self.model_dim} must be a multiple of 2 x num_heads"
        require(self.model_dim % (2 * heads) == 0, "model.num_heads", heads, allowed)
        require(heads % kv_heads == 0, "model.num_kv_heads", kv_heads, f"it must divide num_heads {heads}")

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def vocab_size(self) -> int:
        """Text, video and the ten special ids."""
        return self.num_text_ids + self.num_video_ids + 10


TRANSFORMER_PRESETS = {
    "700m": TransformerConfig(),
    "3b": TransformerConfig(num_layers=26, model_dim=3072, num_heads=24, num_kv_heads=24, mlp_dim=8192),
    "7b": TransformerConfig(num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=32, mlp_dim=11008, mlp_parts=2),
}


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


_LONGEST = 24 * 60 * 60  # seconds of video; more is a slip of the hand


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a video is rolled out (Loong, section 3.4)."""

    seconds: float = 60.0
    temperature: float = 1.0
    top_k: int = 100  # 0: all codes
    top_p: float = 1.0
    min_p: float = 0.0
    guidance_scale: float = 1.0  # 1: no guidance
    reencode_frames: int = 5  # pixel frames carried into the next round
    # Of the rounds that continue a video, where errors add up; 0: those above.
    continuation_temperature: float = 0.0
    continuation_guidance_scale: float = 0.0

    @property
    def continuing(self) -> "SamplingConfig":
        """The rules of the rounds that continue a video."""
        return dataclasses.replace(
            self,
            temperature=self.continuation_temperature or self.temperature,
            guidance_scale=self.continuation_guidance_scale or self.guidance_scale,
        )

    def __post_init__(self):
        require_positive(self, "seconds", "temperature")
        require(self.seconds <= _LONGEST, "sampling.seconds", self.seconds, f"at most {_LONGEST}, a day")
        require_not_negative(self, "continuation_temperature")
        scale = self.continuation_guidance_scale
        require(scale == 0 or scale >= 1, "sampling.continuation_guidance_scale", scale, "use 0, or at least 1")
        require_not_negative(self, "top_k")  # 0: all codes
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "it must lie in (0, 1]")
        require_share(self, "min_p")
        require(self.guidance_scale >= 1, "sampling.guidance_scale", self.guidance_scale, "it must be at least 1")
        require_positive(self, "reencode_frames")
