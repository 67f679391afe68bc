"""Settings that both trainings share: devices, data, optimizer and loop."""

import dataclasses

from loong_jax.config.checks import require, require_choice, require_not_negative, require_positive, require_share
from loong_jax.config.media import MediaLimits
from loong_jax.config.sources import is_tokens, parse_sources


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device counts along the four mesh axes; -1 (at most once) takes all devices the others leave.

    Where devices are of several slices (GPUs: of several hosts), which only the data-centre network joins, ``data``
    runs across them, or ``fsdp`` where ``data`` is not a multiple of their number; all else stays within.
    """

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1
    num_slices: int = 0  # how many there must be; 0: as many as there are

    def __post_init__(self):
        require_not_negative(self, "num_slices")
        sizes = dataclasses.asdict(self)
        del sizes["num_slices"]
        for name, size in sizes.items():
            require(size == -1 or size >= 1, f"mesh.{name}", size, "use a positive number, or -1 for the rest")
        require(list(sizes.values()).count(-1) <= 1, "mesh", sizes, "only one axis may be -1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a training reads."""

    source: str = "moving_digits"  # see config/sources.py
    image_source: str = ""  # of the single frames of image_share; empty: ``source``
    frame_size: int = 128
    num_frames: int = 17
    fps: float = 6.5
    two_digit_share: float = 0.2  # moving_digits: share of clips with two digits
    held_out_every: int = 10  # each n-th medium is the held-out split, where a source has none of its own
    num_threads: int = 2  # that read and decode, in each worker
    num_workers: int = 0  # processes that read and decode; 0: the training's own
    # Which clips are passed over, and how many may be before the run stops.
    min_brightness: float = 0.0  # mean pixel of 255 under which a clip is black
    min_motion: float = 0.0  # mean change of a pixel between frames under which a clip is frozen
    max_bad_share: float = 0.1
    limits: MediaLimits = MediaLimits()
    # Language model only: how the frozen tokenizer turns examples into ids, and how they become sequences.
    require_caption: bool = True  # pass over media without one
    cache_ids: bool = True  # encode all examples before training and keep the ids; False: each batch when it is needed
    num_clips: int = 4096  # 0: one of each medium
    num_images: int = 8192  # 0: the same
    cached_frames: int = 0  # frames per cached clip, to share one cache between stages; 0: num_frames
    image_share: float = 0.0  # single frames: share of the batches (tokenizer) or of their rows (model)
    text_drop: float = 0.1  # share of captions replaced by null_text, for guidance
    # Share of the clips whose first reencoded_frames are decoded from the clip's ids and encoded again, as rounds of
    # long videos start; such ids are read and not predicted. Only of ids that are cached before the training.
    reencoded_share: float = 0.0
    reencoded_frames: int = 5  # as sampling.reencode_frames
    max_text_ids: int = 64
    # Of cached ids: 0 puts one sequence in a row of the batch; n gives a row room for n clips and fills what is left
    # with images.
    pack: int = 0

    def __post_init__(self):
        for field in ("source", "image_source"):
            if getattr(self, field) or field == "source":
                parse_sources(f"data.{field}", getattr(self, field))
        require_positive(self, "frame_size", "num_frames", "fps", "num_threads", "max_text_ids", "reencoded_frames")
        require_not_negative(self, "num_clips", "num_images", "min_brightness", "min_motion", "num_workers", "pack")
        require_share(self, "two_digit_share", "image_share", "text_drop", "max_bad_share", "reencoded_share")
        has_pixels = self.cache_ids and not is_tokens(self.source)
        allowed = "ids are decoded again before a training alone: with cache_ids, and no source tokens:DIR"
        require(has_pixels or not self.reencoded_share, "data.reencoded_share", self.reencoded_share, allowed)
        allowed = "rows are packed from ids that are there before the training: with cache_ids, or pack=0"
        require(not self.pack or self.cache_ids or is_tokens(self.source), "data.pack", self.pack, allowed)
        is_start = not self.reencoded_share or self.reencoded_frames < self.num_frames
        allowed = f"it must be less than num_frames ({self.num_frames})"
        require(is_start, "data.reencoded_frames", self.reencoded_frames, allowed)
        is_enough = self.cached_frames == 0 or self.cached_frames >= self.num_frames
        allowed = f"use 0, or at least num_frames ({self.num_frames})"
        require(is_enough, "data.cached_frames", self.cached_frames, allowed)
        require(self.held_out_every >= 2, "data.held_out_every", self.held_out_every, "it must be at least 2")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for the layers' matrices, with linear warm-up; values of LlamaGen (arXiv 2406.06525) and LLaMA."""

    name: str = "adamw"  # or "muon": for matrices of layers and convolution kernels; all else keeps AdamW
    learning_rate: float = 1e-4
    matrix_learning_rate: float = 0.02  # of Muon
    warmup_steps: int = 1000
    # "cosine": falls from the warm-up to the end. "wsd": stays, so that a run can be prolonged, and falls in a line in
    # the last decay_share of the steps (warm-up, stable, decay; arXiv 2404.06395).
    schedule: str = "cosine"
    decay_share: float = 0.2
    end_fraction: float = 0.1  # last learning rate as a share of the peak
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float = 1.0

    def __post_init__(self):
        require_choice("optimizer.name", self.name, ("adamw", "muon"))
        require_positive(self, "learning_rate", "matrix_learning_rate", "clip_norm")
        require_not_negative(self, "warmup_steps", "weight_decay")
        require_choice("optimizer.schedule", self.schedule, ("cosine", "wsd"))
        require_share(self, "end_fraction", "decay_share")
        for field in ("b1", "b2"):
            require(0 <= getattr(self, field) < 1, f"optimizer.{field}", getattr(self, field), "it must lie in [0, 1)")


# For language models that train in minutes: the demo's and the small one.
SMALL_TRANSFORMER_OPTIMIZER = OptimizerConfig(
    name="muon",
    learning_rate=5e-3,
    matrix_learning_rate=0.05,
    warmup_steps=20,
    end_fraction=0.05,
)


# For tokenizers that train in minutes: the demo's and the small one.
SMALL_TOKENIZER_OPTIMIZER = OptimizerConfig(
    name="muon",
    learning_rate=3e-3,
    matrix_learning_rate=0.02,
    warmup_steps=50,
    end_fraction=0.05,
    weight_decay=0.0,
    b1=0.5,
    b2=0.99,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop shared by both trainings."""

    num_steps: int = 100_000
    batch_size: int = 256  # over all devices
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # checkpoints of every so many steps are kept as well; 0: none
    # After so many steps in a row that are not finite, the training goes back to its last sound checkpoint and on with
    # other data; it gives up when that did not help so many times.
    skips_before_return: int = 20
    max_returns: int = 2
    eval_every: int = 1000
    eval_batches: int = 4
    # The profiler records profile_steps steps after the first profile_start ones, into <workdir>/profile; 0: none.
    profile_start: int = 0
    profile_steps: int = 0

    def __post_init__(self):
        require_positive(self, "num_steps", "batch_size", "log_every", "eval_every")
        require_positive(self, "checkpoint_every", "keep_checkpoints")
        require_not_negative(self, "eval_batches", "profile_start", "profile_steps", "keep_every")
        require_not_negative(self, "max_returns")
        require_positive(self, "skips_before_return")
        allowed = f"it must be a multiple of checkpoint_every {self.checkpoint_every}"
        require(self.keep_every % self.checkpoint_every == 0, "train.keep_every", self.keep_every, allowed)
