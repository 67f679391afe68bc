"""Where memory ran out, one sentence: what was asked, what there is, and the nearest settings that help."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from loong_jax import sharding
from loong_jax.config import Job, LanguageModelJob, MeshConfig, SampleJob, TokenizerJob
from loong_jax.models import transformer
from loong_jax.tokenizer.video_tokenizer import load_job
from loong_jax.training.lm_job import row_length
from loong_jax.training.mesh_choice import (
    Devices,
    MeshNeeds,
    Shapes,
    choose_mesh,
    estimate_needs,
    possible_meshes,
    present_devices,
)

_SAID = re.compile(r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY", re.IGNORECASE)
_GIB = 2**30
_USABLE = 0.9  # share of the memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, of whatever library, says that there is not enough memory of a device or of the host."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SAID.search(str(error))))


def explain(job: Job, workdir: Path, error: BaseException) -> str:
    """What ``job`` asked for and what would help; ``error`` is how memory ran out."""
    said = _shortened(str(error))
    try:
        if isinstance(job, LanguageModelJob):
            what, helps = _language_model(job, workdir, error)
        elif isinstance(job, TokenizerJob):
            what, helps = _tokenizer(job)
        elif isinstance(job, SampleJob):
            what, helps = _sampling(job)
        else:
            what, helps = f"task {job.task!r}", ["end other processes that use the memory of this machine"]
    except Exception:  # to say less is better than to fail at saying it
        what, helps = f"task {job.task!r}", ["use a smaller batch"]
    advice = " or ".join(helps).replace(" or use ", " or ")
    return f"Memory ran out in {what}{f' ({said})' if said else ''}: {advice}."


def _language_model(job: LanguageModelJob, workdir: Path, error: BaseException) -> tuple[str, list[str]]:
    path = (workdir / job.tokenizer_path).resolve()
    tokenizer = load_job(path).tokenizer if path.is_dir() else job.tokenizer
    length = row_length(job, tokenizer, max(job.data.pack, 1))
    itemsize = transformer.compute_dtype(job.model).itemsize
    shapes = Shapes(job.model, job.train.batch_size, length, itemsize, job.accumulate)
    devices = present_devices()
    chosen = choose_mesh(shapes, devices).mesh if job.choose_mesh else job.mesh
    mesh = MeshConfig(**sharding.make_mesh(chosen).shape)
    asked = estimate_needs(shapes, mesh)
    # What was needed is no less than what was there, or than the compiler said.
    needed = max(asked.total, devices.memory, _used(str(error)))
    scale = needed / asked.total

    def about(needs: MeshNeeds) -> str:
        return f"{scale * needs.total / _GIB:.2f} GiB"

    others = [
        (f"use {flags} (about {about(needs)})", needs.total)
        for flags, needs in _alternatives(shapes, mesh, devices)
        if needs.total < asked.total
    ]
    helps = _first_of_each([help for help, total in others if scale * total <= _USABLE * devices.memory])
    if not helps:
        least = min(others, key=lambda other: other[1], default=None)
        enough = "use more devices, or a smaller model"
        helps = [f"{least[0]} and, as that is too much yet, more devices or a smaller model" if least else enough]
    what = (
        f"the training of {shapes.batch_size} rows of {length:,} ids on a mesh of {asked}, which has "
        f"{devices.memory / _GIB:.2f} GiB and needed {about(asked)} or more"
    )
    return what, helps


def _alternatives(shapes: Shapes, mesh: MeshConfig, devices: Devices) -> Iterator[tuple[str, MeshNeeds]]:
    """(flags, needs) of settings that need less, those first that change the training's course the least."""
    lean = dataclasses.replace(shapes, model=dataclasses.replace(shapes.model, remat="full"))
    is_lean = shapes.model.remat in ("full", "offload")
    if not is_lean:
        yield "--config.model.remat=full", estimate_needs(lean, mesh)
    rows = mesh.data * mesh.fsdp
    parts = [n for n in range(shapes.accumulate + 1, shapes.batch_size + 1) if shapes.batch_size % (n * rows) == 0]
    for count in parts:
        needs = estimate_needs(dataclasses.replace(shapes, accumulate=count), mesh)
        yield f"--config.accumulate={count}", needs
    for other in possible_meshes(shapes, devices):
        changed = [axis for axis in sharding.MESH_AXES if getattr(other, axis) != getattr(mesh, axis)]
        if changed:
            flags = " ".join(f"--config.mesh.{axis}={getattr(other, axis)}" for axis in changed)
            yield flags, estimate_needs(shapes, other)
    step = rows * shapes.accumulate
    for count in range(shapes.batch_size - step, 0, -step):
        smaller = dataclasses.replace(shapes, batch_size=count)
        yield f"--config.train.batch_size={count}", estimate_needs(smaller, mesh)
    for count in [] if is_lean else parts:
        needs = estimate_needs(dataclasses.replace(lean, accumulate=count), mesh)
        yield f"--config.model.remat=full --config.accumulate={count}", needs


def _first_of_each(helps: list[str]) -> list[str]:
    """Of several that change the same settings, the first."""
    kinds: dict[str, str] = {}
    for flags in helps:
        kinds.setdefault(re.sub(r"=\S+|\(.*|(?<=mesh).*", "", flags), flags)
    return list(kinds.values())[:3]


def _tokenizer(job: TokenizerJob) -> tuple[str, list[str]]:
    mesh = sharding.make_mesh(job.mesh)
    parts, batch = sharding.num_parts(mesh, "batch"), job.train.batch_size
    helps = [] if job.tokenizer.remat else ["use --config.tokenizer.remat=True"]
    fewer = batch // 2 // parts * parts
    if fewer:
        helps.append(f"use --config.train.batch_size={fewer}")
    helps += ["use more devices" if not helps else "more devices"]
    size = f"{job.data.num_frames} frames of {job.data.frame_size}x{job.data.frame_size}"
    return f"the training on {batch} clips of {size} on {mesh.size} devices", helps


def _sampling(job: SampleJob) -> tuple[str, list[str]]:
    helps = [f"use --config.batch_size={job.batch_size // 2}"] if job.batch_size > 1 else []
    smaller = {"weights": job.sampling.decoding.weights, "cache": job.sampling.decoding.cache}
    helps += [f"use --config.sampling.decoding.{name}=int8" for name, kind in smaller.items() if kind == "auto"]
    return f"the sampling of {job.batch_size} prompts at once", helps or ["use more devices"]


def _used(said: str) -> float:
    """Bytes that a TPU's compiler says it needs; 0 where it does not say."""
    found = re.search(r"Used ([\d.]+)([MG]) of", said)
    return float(found[1]) * {"M": 2**20, "G": 2**30}[found[2]] if found else 0.0


def _shortened(said: str) -> str:
    """The part of a long message that has the numbers."""
    said = " ".join(said.split())
    found = re.search(r"(Out of memory (while )?(trying to )?allocat[^:.]*|Used [\d.]+[MG] of [\d.]+[MG]\w* hbm)", said)
    return found[0] if found else said[:200].rstrip(". ")
