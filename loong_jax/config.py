"""Every setting of every job: frozen dataclasses, their defaults and their checks.

A file in ``configs/`` starts from one of the jobs below, changes what it must, and hands ``main`` an
``ml_collections.ConfigDict`` (see ``config_dict``); ``main`` turns that back into the dataclass once. Below that line
there is no ConfigDict. Imports nothing of ours.
"""

import dataclasses
import math
from typing import Any


class ConfigError(ValueError):
    """A setting is unknown or impossible; the message names the field, the value and what is allowed."""


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{field}={value!r} is not possible: {allowed}.")


def require_choice(field: str, value: Any, choices: tuple) -> None:
    require(value in choices, field, value, "choose one of " + ", ".join(map(repr, choices)))


def _require_positive(owner: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        require(value > 0, field, value, "it must be greater than 0")


def _require_not_negative(owner: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        require(value >= 0, field, value, "it cannot be negative")


def _require_share(owner: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        require(0 <= value <= 1, field, value, "it must lie in [0, 1]")


_DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device counts along the four mesh axes; -1 (at most once) takes all devices the others leave."""

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "use a positive number, or -1 for the rest")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one axis may be -1")


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

    def __post_init__(self):
        _require_positive(self, "num_codes", "dim")
        _require_not_negative(self, "commitment_weight", "codebook_weight", "start_step")
        require_choice("quantizer.distance", self.distance, ("cosine", "l2"))
        require_choice("quantizer.anchor", self.anchor, ("closest", "random", "probrandom"))
        require(0 < self.decay < 1, "quantizer.decay", self.decay, "it must lie in (0, 1)")


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
    norm_groups: int = 32
    remat: bool = False
    compute_dtype: str = "auto"  # bfloat16 on accelerators, float32 on CPU
    quantizer: QuantizerConfig = QuantizerConfig()

    def __post_init__(self):
        _require_positive(self, "base_channels", "patch_size", "num_res_blocks", "norm_groups")
        _require_not_negative(self, "num_mid_blocks")
        multipliers, blocks, levels = self.channel_multipliers, self.encoder_res_blocks, len(self.channel_multipliers)
        is_possible = levels > 0 and min(multipliers) > 0
        require(is_possible, "tokenizer.channel_multipliers", multipliers, "one or more numbers, each greater than 0")
        is_possible = not blocks or (len(blocks) == levels and min(blocks) >= 0)
        allowed = f"{levels} channel_multipliers need () or {levels} numbers, 0 or more"
        require(is_possible, "tokenizer.encoder_res_blocks", blocks, allowed)
        require_choice("tokenizer.encoder_padding", self.encoder_padding, ("zeros", "edge"))
        require_choice("tokenizer.compute_dtype", self.compute_dtype, _DTYPES)
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

    def latent_size(self, frame_size: int) -> int:
        """Latent height (= width) of frames of ``frame_size`` pixels."""
        is_multiple = frame_size > 0 and frame_size % self.spatial_factor == 0
        require(is_multiple, "frame_size", frame_size, f"it must be a multiple of {self.spatial_factor}")
        return frame_size // self.spatial_factor


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
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    remat: str = "none"  # "none", "dots" (keep matrix products) or "full"
    scan_layers: bool = True
    compute_dtype: str = "auto"

    def __post_init__(self):
        positive = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_dim", "num_video_ids", "max_length")
        _require_positive(self, *positive, "rope_theta")
        _require_not_negative(self, "num_text_ids", "norm_eps")
        require_choice("model.remat", self.remat, ("none", "dots", "full"))
        require_choice("model.compute_dtype", self.compute_dtype, _DTYPES)
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
    "7b": TransformerConfig(num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=32, mlp_dim=11008),
}


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
DEBUG_TRANSFORMER = TransformerConfig(
    num_layers=2, model_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128, num_video_ids=64, max_length=384
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a training reads."""

    source: str = "moving_digits"  # "moving_digits" (embedded) or "video_folder"
    path: str = ""  # the folder, for "video_folder"
    frame_size: int = 128
    num_frames: int = 17
    fps: float = 6.5
    two_digit_share: float = 0.2  # moving_digits: share of clips with two digits
    held_out_every: int = 10  # video_folder: each n-th file is the held-out split
    num_threads: int = 2
    # Language model only: how many examples the frozen tokenizer turns into ids, and how they become sequences.
    num_clips: int = 4096
    num_images: int = 8192
    cached_frames: int = 0  # frames per cached clip, to share one cache between stages; 0: num_frames
    image_share: float = 0.0  # share of single-frame sequences in a batch of videos
    text_drop: float = 0.1  # share of captions replaced by null_text, for guidance
    max_text_ids: int = 64

    def __post_init__(self):
        require_choice("data.source", self.source, ("moving_digits", "video_folder"))
        has_path = self.source != "video_folder" or self.path != ""
        require(has_path, "data.path", self.path, "source 'video_folder' needs the folder: --config.data.path=DIR")
        _require_positive(self, "frame_size", "num_frames", "fps", "num_threads", "max_text_ids", "num_clips")
        _require_not_negative(self, "num_images")
        _require_share(self, "two_digit_share", "image_share", "text_drop")
        is_enough = self.cached_frames == 0 or self.cached_frames >= self.num_frames
        allowed = f"use 0, or at least num_frames ({self.num_frames})"
        require(is_enough, "data.cached_frames", self.cached_frames, allowed)
        require(self.held_out_every >= 2, "data.held_out_every", self.held_out_every, "it must be at least 2")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for the layers' matrices, with linear warm-up and cosine decay (LlamaGen's and LLaMA's values)."""

    name: str = "adamw"  # or "muon": for matrices of layers and convolution kernels; all else keeps AdamW
    learning_rate: float = 1e-4
    matrix_learning_rate: float = 0.02  # of Muon
    warmup_steps: int = 1000
    end_fraction: float = 0.1  # last learning rate as a share of the peak
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def __post_init__(self):
        require_choice("optimizer.name", self.name, ("adamw", "muon"))
        _require_positive(self, "learning_rate", "matrix_learning_rate", "clip_norm")
        _require_not_negative(self, "warmup_steps", "weight_decay")
        _require_share(self, "end_fraction")
        for field in ("b1", "b2"):
            require(0 <= getattr(self, field) < 1, f"optimizer.{field}", getattr(self, field), "it must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Early-frame weighting (Loong, section 3.3): weight 1 + early_weight on the first early_frames latent frames."""

    early_frames: int = 5  # latent frames: the stage-2 part of a stage-3 clip
    early_weight: float = 1.0  # lambda; 0 is plain cross-entropy

    def __post_init__(self):
        _require_not_negative(self, "early_frames", "early_weight")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop shared by both trainings."""

    num_steps: int = 100_000
    batch_size: int = 256  # over all devices
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    eval_every: int = 1000
    eval_batches: int = 4

    def __post_init__(self):
        _require_positive(self, "num_steps", "batch_size", "log_every", "eval_every")
        _require_positive(self, "checkpoint_every", "keep_checkpoints")
        _require_not_negative(self, "eval_batches")


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

    def __post_init__(self):
        _require_positive(self, "seconds", "temperature")
        _require_not_negative(self, "top_k")  # 0: all codes
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "it must lie in (0, 1]")
        _require_share(self, "min_p")
        require(self.guidance_scale >= 1, "sampling.guidance_scale", self.guidance_scale, "it must be at least 1")
        _require_positive(self, "reencode_frames")


@dataclasses.dataclass(frozen=True)
class TokenizerJob:
    """Train the video tokenizer."""

    task: str = "tokenizer"
    seed: int = 0
    init_from: str = ""  # workdir of another tokenizer training to start from, relative to this workdir
    freeze_encoder: bool = False  # train the decoder alone: ids stay what they are in init_from
    mesh: MeshConfig = MeshConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, b1=0.5, b2=0.99)
    train: TrainConfig = TrainConfig()

    def __post_init__(self):
        self.tokenizer.latent_frames(self.data.num_frames)
        self.tokenizer.latent_size(self.data.frame_size)
        has_encoder = not self.freeze_encoder or self.init_from != ""
        require(has_encoder, "freeze_encoder", True, "give the training whose encoder to keep, --config.init_from=DIR")


@dataclasses.dataclass(frozen=True)
class LanguageModelJob:
    """Train the language model for one stage on the ids of a frozen tokenizer."""

    task: str = "language_model"
    seed: int = 0
    tokenizer_path: str = "../tokenizer"  # workdir of the tokenizer training, relative to this workdir
    init_from: str = ""  # workdir of the stage before, relative to this workdir; empty: from scratch
    codebook_init: bool = False  # from scratch, similar codes start as similar ids
    allow_untrained_tokenizer: bool = False  # for debugging: a random tokenizer where tokenizer_path is missing
    tokenizer: TokenizerConfig = TokenizerConfig()  # used only for the untrained one
    mesh: MeshConfig = MeshConfig()
    model: TransformerConfig = TransformerConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """Sample videos from a trained language model."""

    task: str = "sample"
    seed: int = 0
    model_path: str = "../stage3"  # workdir of a language-model training, relative to this workdir
    prompt: str = "a red 7 moves left"  # several prompts: separate them with "|"
    sampling: SamplingConfig = SamplingConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require(self.prompt.strip(" \n\t|") != "", "prompt", self.prompt, "give some text")


@dataclasses.dataclass(frozen=True)
class DemoJob:
    """The whole of Loong in small: both trainings, a minute of video, and a table of results."""

    task: str = "demo"
    seed: int = 0
    image_tokenizer: TokenizerJob = TokenizerJob()
    tokenizer: TokenizerJob = TokenizerJob()
    stage1: LanguageModelJob = LanguageModelJob()
    stage2: LanguageModelJob = LanguageModelJob()
    stage3: LanguageModelJob = LanguageModelJob()
    sample: SampleJob = SampleJob()
    num_eval_clips: int = 256  # held-out clips for PSNR and codebook usage
    num_eval_prompts: int = 64  # held-out prompts that are sampled and read

    def __post_init__(self):
        _require_positive(self, "num_eval_clips", "num_eval_prompts")


Job = TokenizerJob | LanguageModelJob | SampleJob | DemoJob
JOBS = {job.task: job for job in (TokenizerJob, LanguageModelJob, SampleJob, DemoJob)}
