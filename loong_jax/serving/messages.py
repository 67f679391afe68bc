"""The JSON of the HTTP API, as /api/openapi.json describes it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Within these, no sum or quotient of the sampler overflows.
Temperature = Annotated[float, Field(ge=1e-3, le=100, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]


class Change(BaseModel):
    """From a second on, the video shows another text."""

    model_config = ConfigDict(extra="forbid")

    second: float = Field(gt=0, allow_inf_nan=False)
    prompt: str


class VideoRequest(BaseModel):
    """A video to sample. What is left out is as the server's settings say."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="What the video shows.")
    changes: list[Change] = Field([], description="Other texts, each from its second on, in the order of time.")
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed gives the same video.")
    temperature: Temperature | None = None
    top_k: int | None = Field(None, ge=0, lt=2**31, description="0: all codes.")
    guidance_scale: Guidance | None = Field(None, description="1: no guidance.")
    negative_prompt: str | None = Field(None, description="What guidance leads away from.")
    text_change: Literal["continue", "cut"] | None = Field(
        None, description="Whether another text goes on from the frames before, or begins a new scene."
    )
    image: str | None = Field(None, description="The first frame: base64 of a PNG, JPEG, WebP, GIF or BMP file.")


class Progress(BaseModel):
    """How far a video is."""

    id: str
    state: Literal["waiting", "sampling", "done", "stopped", "failed"] = "waiting"
    ahead: int = Field(0, description="Videos that are sampled before it.")
    frames: int = Field(0, description="Frames that there are.")
    num_frames: int = Field(description="Frames that the whole video has.")
    seconds_left: float | None = Field(None, description="Until it is done; null where that is not known.")
    message: str = Field("", description="Why it stopped or failed.")
    video: str | None = Field(None, description="Where the mp4 is, once there is one.")
    strip: str | None = Field(
        None, description="Of events: base64 of a PNG with the newest of the frames, each below the one before."
    )


class ModelFacts(BaseModel):
    """What the page must know of the model and the server."""

    name: str
    fps: float
    frame_size: int
    max_text_ids: int
    defaults: dict[str, float | int | str | list[float] | list[int]]
    limits: dict[str, float | int]


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    error: str
