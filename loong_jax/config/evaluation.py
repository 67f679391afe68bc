"""Settings of the evaluation: what is measured, what it is compared with, and by which protocol."""

import dataclasses

from loong_jax.config.checks import require, require_positive, require_seed
from loong_jax.config.sampling import SamplingChanges
from loong_jax.config.sources import require_pixels
from loong_jax.config.training import DataConfig, MeshConfig

HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True)
class FvdConfig:
    """The clips of Frechet video distance; evaluation/frechet.py has the protocol."""

    num_frames: int = 16
    stride: int = 1  # frames of the video from one of the clip to the next
    clips_per_window: int = 1
    num_folds: int = 4

    def __post_init__(self):
        require_positive(self, "stride", "clips_per_window", "num_folds")
        require(self.num_frames >= 9, "fvd.num_frames", self.num_frames, "I3D needs at least 9")


@dataclasses.dataclass(frozen=True)
class EvaluateJob:
    """Measure videos: a folder's, else those that a model samples, else what a tokenizer makes of held-out clips."""

    task: str = "evaluate"
    seed: int = 0
    videos: str = ""  # a folder of videos, with their texts if there are any
    model_path: str = ""  # workdir of a language-model training, relative to this workdir: samples of held-out prompts
    tokenizer_path: str = "../tokenizer"  # where neither is given: workdir of a tokenizer training, relative likewise
    # What they are compared with: a folder (files of the same names are pairs), or "held_out", clips of data.source.
    # Empty: nothing for a folder, held-out clips for the others.
    reference: str = ""
    data: DataConfig = DataConfig()  # frame_size and fps are those that all videos are brought to
    num_videos: int = 64  # of each set, at most
    window_seconds: float = 10.0  # what drifts is measured in each window of this length
    measure_fvd: bool = True  # needs the extra [eval]
    fvd: FvdConfig = FvdConfig()
    measure_lpips: bool = True  # of pairs; needs the extra [eval]
    lpips_weights: str = ""  # see loss.perceptual_weights
    clip_path: str = ""  # folder with CLIP from Hugging Face, for CLIPSIM; needs the extra [clip]
    num_shown: int = 12  # videos in the page
    sampling: SamplingChanges = SamplingChanges()
    batch_size: int = 8  # prompts that are sampled together
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require_seed(self)
        require_positive(self, "num_videos", "window_seconds", "num_shown", "batch_size")
        require_pixels("data.source", self.data.source)
        require(not (self.videos and self.model_path), "model_path", self.model_path, "leave it out beside videos")
        is_possible = not self.reference or bool(self.videos) or self.reference == HELD_OUT or bool(self.model_path)
        require(is_possible, "reference", self.reference, "a tokenizer is compared with held-out clips: leave it out")
        is_enough = self.num_videos > 1 or not self.measure_fvd
        require(is_enough, "num_videos", self.num_videos, "a Frechet distance needs two or more, or measure_fvd=False")
