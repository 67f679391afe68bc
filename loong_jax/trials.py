"""What the doctor tries in a process of its own, as it may end or hang in a library: devices, decoders, tiny programs.

``python -m loong_jax.trials NAME FOLDER`` runs one; its last line is what it found, and a failure is a traceback.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    DataConfig,
    LanguageModelJob,
    MeshConfig,
    OptimizerConfig,
    TokenizerJob,
    TrainConfig,
)

_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4", "gif", "png", "mjpeg", "webp")
_GIB = 2**30


def devices(folder: Path) -> str:
    """Kinds, counts and memory of the devices, after one product of matrices on each."""
    import jax
    import jax.numpy as jnp

    from loong_jax.chips import chip_of, host_memory

    found = []
    for device in jax.local_devices():
        x = jax.device_put(jnp.ones((128, 128)), device)
        if float((x @ x).sum()) != 128**3:
            raise ValueError(f"{device} computes wrongly: the sum of a product of ones is not {128**3}.")
        limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit is None and (chip := chip_of(device.device_kind)):
            limit = chip.memory_gib * _GIB
        if limit is None and device.platform == "cpu":
            limit = host_memory() / jax.local_device_count()
        memory = f"{limit / _GIB:.1f} GiB" if limit else "memory not known"
        kind = "" if device.device_kind == device.platform else f" {device.device_kind}"
        found.append(f"{device.platform}{kind}, {memory}")
    counts = {one: found.count(one) for one in found}
    return "; ".join(f"{count} x {one}" if count > 1 else one for one, count in counts.items())


def decoders(folder: Path) -> str:
    """Encode a short H.264 video and decode it again, and look for the decoders of the usual files."""
    import av
    import numpy as np

    from loong_jax.video import write_video
    from loong_jax.video_file import read_video

    missing = [name for name in _CODECS if not {name, f"lib{name}", f"libdav1d-{name}"} & av.codecs_available]
    video = np.full((4, 64, 64, 3), 90, np.uint8)
    write_video(folder / "gray.mp4", video, 8.0, min_side=64)
    for content in (folder / "gray.mp4", io.BytesIO((folder / "gray.mp4").read_bytes()).getvalue()):
        read = read_video(content)
        if read.shape != video.shape or np.abs(read.astype(int) - video).max() > 8:
            raise ValueError(f"A gray H.264 video {video.shape} was decoded as {read.shape} of other colors.")
    if missing:
        raise ValueError(f"PyAV {av.__version__} has no decoder of {', '.join(missing)}.")
    return f"PyAV {av.__version__}: {', '.join(_CODECS)}"


def tokenizer(folder: Path) -> str:
    """Two steps of a tiny tokenizer, its evaluation and its checkpoint."""
    from loong_jax.training.tokenizer_job import train_tokenizer

    def train(common: dict) -> None:
        train_tokenizer(TokenizerJob(tokenizer=DEBUG_TOKENIZER, **common), folder / "tokenizer")

    return _trained(train, folder / "tokenizer")


def language_model(folder: Path) -> str:
    """Two steps of a tiny language model on the ids of an untrained tokenizer."""
    from loong_jax.training.lm_job import train_language_model

    def train(common: dict) -> None:
        models = dict(tokenizer=DEBUG_TOKENIZER, model=DEBUG_TRANSFORMER, allow_untrained_tokenizer=True)
        job = LanguageModelJob(tokenizer_path="../none", **models, **common)
        train_language_model(job, folder / "language_model")

    return _trained(train, folder / "language_model")


def sampler(folder: Path) -> str:
    """A second of video from that language model."""
    from loong_jax import pipeline

    start = time.perf_counter()
    video = pipeline.load(folder / "language_model")("a red 7 moves left", seconds=1.0, reencode_frames=1)
    return f"{len(video)} frames, {time.perf_counter() - start:.0f} s with compilation"


def _trained(train: Callable[[dict], None], workdir: Path) -> str:
    import jax
    import numpy as np

    from loong_jax.training.metrics import read_metrics

    start, rows = time.perf_counter(), jax.device_count()
    train(
        dict(
            # Rows alone are cut, which any number of devices can do.
            mesh=MeshConfig(data=-1, fsdp=1),
            data=DataConfig(frame_size=32, num_frames=5, num_clips=rows, num_images=rows, max_text_ids=32),
            optimizer=OptimizerConfig(warmup_steps=1),
            train=TrainConfig(2, rows, log_every=1, checkpoint_every=2, eval_every=2, eval_batches=1),
        )
    )
    losses = [record["loss"] for record in read_metrics(workdir) if record["split"] == "train"]
    if len(losses) != 2 or not np.isfinite(losses).all():
        raise ValueError(f"The losses of two steps are {losses}.")
    return f"loss {losses[0]:.3f}, then {losses[1]:.3f}; {time.perf_counter() - start:.0f} s with compilation"


TRIALS = {trial.__name__: trial for trial in (devices, decoders, tokenizer, language_model, sampler)}

if __name__ == "__main__":
    print(TRIALS[sys.argv[1]](Path(sys.argv[2])))
