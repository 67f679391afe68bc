"""Settings of the web page and the HTTP API that a trained model is served by."""

import dataclasses

from loong_jax.config.checks import require, require_not_negative, require_positive
from loong_jax.config.sampling import SamplingChanges
from loong_jax.config.training import MeshConfig


@dataclasses.dataclass(frozen=True)
class ServingLimits:
    """What the server does for whoever asks; what is beyond is refused with one sentence."""

    max_waiting: int = 8  # videos in the queue, besides the one that is sampled
    max_seconds: float = 60.0  # of a video
    max_prompt_length: int = 500  # characters of a text
    max_segments: int = 16  # texts of a video
    max_body_mib: int = 8  # of a request
    max_image_pixels: int = 20_000_000
    max_sampling_seconds: float = 1800.0  # after which a video ends where it is
    max_connections: int = 64
    client_timeout: float = 20.0  # seconds after which a video that nobody follows or asks for is given up
    # Finished videos that are kept for download.
    keep_videos: int = 32
    keep_seconds: float = 3600.0

    def __post_init__(self):
        require_positive(self, *(field.name for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class ServeJob:
    """Serve a trained language model: a page to sample videos on, and an HTTP API."""

    task: str = "serve"
    model_path: str = "package:digits"  # or the workdir of a language-model training, relative to this workdir
    host: str = "127.0.0.1"  # this machine alone; "0.0.0.0": every network that it is in
    port: int = 8000  # 0: any that is free
    token_file: str = ""  # file with a secret that every request must bring; empty: none is asked for
    sampling: SamplingChanges = SamplingChanges(seconds=10.0)  # of what a request does not say
    limits: ServingLimits = ServingLimits()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        require_not_negative(self, "port")
        require(self.host != "", "host", self.host, "give an address of this machine, as 127.0.0.1")
        seconds, longest = self.sampling.seconds, self.limits.max_seconds
        require(seconds is None or seconds <= longest, "sampling.seconds", seconds, f"at most {longest:g}")
