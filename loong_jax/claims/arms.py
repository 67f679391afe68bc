"""What is trained and sampled: the base recipe, and arms that differ from it in one thing each."""

import dataclasses
from typing import Any

from loong_jax.config import ClaimsJob, LanguageModelJob, SamplingConfig, TokenizerConfig
from loong_jax.data.sequences import static_length
from loong_jax.training.throughput import training_flops_per_token

# In the order they are trained; each starts from the one before.
TOKENIZERS = ("image_tokenizer", "tokenizer")
STAGES = ("stage1", "stage2", "stage3")

_PLAIN_VQ = {"tokenizer": {"quantizer": {"clustering": False}}}
_VIDEO_ONLY = {"data": {"image_share": 0.0}}
_ROPE_3D = {"model": {"rope": "3d"}}


@dataclasses.dataclass(frozen=True)
class Arm:
    """How one arm differs from the base: settings of its trainings and of its sampling, and nothing else."""

    label: str
    trainings: dict[str, dict] = dataclasses.field(default_factory=dict)  # name -> what is changed of it
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_one_stage: bool = False  # stage 3 from scratch, for as many FLOPs as the base's three
    is_tokenizer: bool = False  # a tokenizer and nothing else
    by_second: bool = False  # its videos are also read by the second


BASE = "base"
_CLIP = {"seconds": 10.0}  # where a claim is not of long videos
# In the order in which they are run: what is needed most comes first.
ARMS = {
    BASE: Arm("base", by_second=True),
    # Of the base's model: what its videos depend on.
    "ids": Arm("plain ids", sampling={"continuation": "ids"}, by_second=True),
    "top_k_all": Arm("all ids", sampling={"top_k": 0}),
    "temperature_0.4": Arm("temperature 0.4", sampling={"temperature": 0.4}),
    "temperature_1": Arm("temperature 1", sampling={"temperature": 1.0}),
    # Stage 3 alone, for as many FLOPs as the base's three.
    "one_stage": Arm("from scratch", sampling=_CLIP, is_one_stage=True),
    # Of the base's stage 2.
    "early_weight_0": Arm("λ = 0", {"stage3": {"loss": {"early_weight": 0.0}}}, _CLIP),
    # Of the base's stage 1.
    "video_only": Arm("video only", {"stage2": _VIDEO_ONLY, "stage3": _VIDEO_ONLY}, _CLIP),
    # Of nothing of the base; what a tokenizer is good for is seen without a language model.
    "plain_vq": Arm("plain VQ", {name: _PLAIN_VQ for name in TOKENIZERS}, is_tokenizer=True),
    "corruption": Arm("corrupted context", {"stage3": {"loss": {"context_corruption": 0.2}}}),
    "reencoded": Arm("re-encoded prefixes", {"stage3": {"data": {"reencoded_share": 0.5}}}),
    "anchor": Arm("first frame and last", sampling={"continuation": "anchor"}, by_second=True),
    "top_k_1": Arm("k = 1", sampling={"top_k": 1}),
    "top_k_100": Arm("k = 100", sampling={"top_k": 100}),
    "early_weight_2": Arm("λ = 2", {"stage3": {"loss": {"early_weight": 2.0}}}, _CLIP),
    "rope_3d": Arm("3D RoPE", {stage: _ROPE_3D for stage in STAGES}, _CLIP),
    "early_weight_0.5": Arm("λ = 0.5", {"stage3": {"loss": {"early_weight": 0.5}}}, _CLIP),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of an arm: its job, and its workdir relative to those of all arms of its seed."""

    job: Any
    workdir: str


def trainings(job: ClaimsJob, name: str, seed: int) -> dict[str, Training]:
    """The trainings of an arm in turn; up to the first that differs from the base's they are the base's own.

    Raises:
        ConfigError: what the arm changes does not fit the rest of the settings.
    """
    arm, owner = ARMS[name], BASE
    found: dict[str, Training] = {}
    stages = () if arm.is_tokenizer else ("stage3",) if arm.is_one_stage else STAGES
    for part in (*TOKENIZERS, *stages):
        base = getattr(job, part)
        settings = changed(base, arm.trainings.get(part, {}))
        if arm.is_one_stage and part == "stage3":
            settings = _from_scratch(job)
        owner = owner if settings == base else name
        places = {}
        if settings.init_from:
            places["init_from"] = f"../../{list(found.values())[-1].workdir}"
        if part in STAGES:
            places["tokenizer_path"] = f"../../{found['tokenizer'].workdir}"
        found[part] = Training(dataclasses.replace(settings, seed=seed, **places), f"{owner}/{part}")
    return found


def sampling(job: ClaimsJob, name: str) -> SamplingConfig:
    """How an arm's videos are sampled."""
    return changed(job.stage3.sampling, ARMS[name].sampling)


def changed(settings: Any, changes: dict) -> Any:
    """``settings`` with what ``changes`` says, of which groups of settings are dicts themselves."""
    values = {
        field: changed(getattr(settings, field), value) if isinstance(value, dict) else value
        for field, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def training_flops(job: LanguageModelJob, tokenizer: TokenizerConfig) -> float:
    """FLOPs that a stage's model asks for, all steps together; padding is trained on like all else."""
    num_codes = tokenizer.latent_frames(job.data.num_frames) * tokenizer.latent_size(job.data.frame_size) ** 2
    length = static_length(num_codes, job.data.max_text_ids)
    per_token = training_flops_per_token(job.model, length, job.loss.all_columns)
    return job.train.num_steps * job.train.batch_size * length * per_token


def _from_scratch(job: ClaimsJob) -> LanguageModelJob:
    """Stage 3 alone, from stage 1's start and at stage 2's learning rate, for the FLOPs of all three."""
    stages = [getattr(job, stage) for stage in STAGES]
    config = job.tokenizer.tokenizer
    flops = sum(training_flops(stage, config) for stage in stages)
    steps = round(flops / training_flops(changed(job.stage3, {"train": {"num_steps": 1}}), config))
    return dataclasses.replace(
        changed(job.stage3, {"train": {"num_steps": steps}}),
        init_from="",
        codebook_init=job.stage1.codebook_init,
        optimizer=job.stage2.optimizer,
    )
