"""The whole of Loong in small, on the embedded moving digits, on a laptop CPU.

    python -m loong_jax.main --config=configs/demo.py --workdir=runs/demo

Trains a video tokenizer (single frames first, then clips) and a language model in three stages, samples 60 seconds of
video from a prompt, and measures it on 64 held-out prompts. The same command goes on where it was stopped. Change the
prompt with --config.sample.prompt="a blue 3 moves up". `:long` trains the model that travels with the package, on more
data for 110 minutes, and measures it on 256 prompts; `:debug` does all of it in about a minute, with models too
small to be any good.
"""

import dataclasses

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    SMALL_TOKENIZER_OPTIMIZER,
    SMALL_TRANSFORMER_OPTIMIZER,
    DataConfig,
    DemoJob,
    LanguageModelJob,
    LossConfig,
    QuantizerConfig,
    SamplingConfig,
    TokenizerConfig,
    TokenizerJob,
    TokenizerLossConfig,
    TrainConfig,
    TransformerConfig,
)
from loong_jax.config_dict import parse_variant, to_config_dict

# 32x32 pixels -> 4x4 ids per latent frame: the strides of the full tokenizer (time 4x, space 8x), fewer channels.
TOKENIZER = TokenizerConfig(
    base_channels=24,
    channel_multipliers=(1, 2, 4),
    temporal_strides=(2, 2),
    spatial_strides=(2, 2),
    patch_size=2,
    num_res_blocks=1,
    num_mid_blocks=1,
    encoder_res_blocks=(1, 0, 0),  # it sees little more than its cell: a digit has the same ids wherever it is
    encoder_padding="edge",
    norm_groups=8,
    quantizer=QuantizerConfig(num_codes=512, dim=16, decay=0.97, commitment_weight=0.05, start_step=150),
)
MODEL = TransformerConfig(
    num_layers=3, model_dim=256, num_heads=4, num_kv_heads=4, mlp_dim=704, num_video_ids=512, max_length=384
)
# One digit a clip: two are in the data set, but take a model of this size longer than the demo may run.
DATA = DataConfig(frame_size=32, num_frames=65, two_digit_share=0.0, num_images=8192, max_text_ids=12)
SAMPLING = SamplingConfig(
    temperature=0.7,
    top_k=10,
    guidance_scale=2.0,
    continuation_temperature=0.2,
    continuation_guidance_scale=1.3,
    text_change="cut",  # none of its clips shows a second digit after a first
)
# Steps and clips of `:long`.
_LONG = {
    "image_tokenizer": (2400, 1),
    "tokenizer": (1200, 8192),
    "stage1": (600, 1),
    "stage2": (8000, 32768),
    "stage3": (1000, 8192),
}
_LONG_IMAGES = 32768


def get_config(variant: str = ""):
    parts = parse_variant(variant, ("debug", "long"))
    job = _full()
    if "long" in parts:
        job = _long(job)
    if "debug" in parts:
        job = _debug(job)
    return to_config_dict(job)


def _full() -> DemoJob:
    images = TokenizerJob(
        tokenizer=TOKENIZER,
        data=dataclasses.replace(DATA, num_frames=1),
        optimizer=SMALL_TOKENIZER_OPTIMIZER,
        train=TrainConfig(
            num_steps=800, batch_size=64, log_every=50, checkpoint_every=200, eval_every=200, eval_batches=2
        ),
    )
    clips = dataclasses.replace(
        images,
        init_from="../image_tokenizer",
        freeze_encoder=True,  # the last frame of four and the codes before tell the decoder all there is to know
        data=dataclasses.replace(DATA, num_frames=17),
        loss=TokenizerLossConfig(reencoding_weight=0.5),
        train=TrainConfig(
            num_steps=400, batch_size=6, log_every=50, checkpoint_every=100, eval_every=100, eval_batches=4
        ),
    )
    stages = {}
    # Many short clips: with few, the model learns by heart which color and digit goes where.
    for stage, before, num_frames, num_clips, share, weight, num_steps, batch, rate in (
        ("stage1", "", 1, 1, 0.0, 0.0, 300, 32, 5e-3),
        ("stage2", "../stage1", 17, 8192, 0.1, 0.0, 1900, 16, 5e-3),
        ("stage3", "../stage2", 65, 2048, 0.1, 1.0, 250, 8, 2e-3),
    ):
        stages[stage] = LanguageModelJob(
            init_from=before,
            codebook_init=before == "",
            model=MODEL,
            data=dataclasses.replace(DATA, num_frames=num_frames, num_clips=num_clips, image_share=share),
            loss=LossConfig(early_frames=5, early_weight=weight),
            sampling=SAMPLING,
            optimizer=dataclasses.replace(
                SMALL_TRANSFORMER_OPTIMIZER, learning_rate=rate, matrix_learning_rate=10 * rate
            ),
            train=TrainConfig(
                num_steps=num_steps,
                batch_size=batch,
                log_every=25,
                checkpoint_every=100,
                eval_every=250,
                eval_batches=4,
            ),
        )
    return DemoJob(image_tokenizer=images, tokenizer=clips, **stages)


def _long(job: DemoJob) -> DemoJob:
    """More steps on more clips, of which the model sees few twice."""

    def longer(part, num_steps: int, num_clips: int):
        data = dataclasses.replace(part.data, num_clips=num_clips, num_images=_LONG_IMAGES)
        train = dataclasses.replace(part.train, num_steps=num_steps, checkpoint_every=200, eval_every=500)
        return dataclasses.replace(part, data=data, train=train)

    parts = {name: longer(getattr(job, name), *sizes) for name, sizes in _LONG.items()}
    return dataclasses.replace(job, num_eval_prompts=256, **parts)


def _debug(job: DemoJob) -> DemoJob:
    train = TrainConfig(num_steps=4, batch_size=8, log_every=2, checkpoint_every=2, eval_every=4, eval_batches=1)

    def shrunk(part):
        part = dataclasses.replace(part, tokenizer=DEBUG_TOKENIZER, train=train)
        if isinstance(part, LanguageModelJob):
            data = dataclasses.replace(part.data, num_clips=16, num_images=16)
            part = dataclasses.replace(part, model=DEBUG_TRANSFORMER, data=data)
        return part

    parts = {
        name: shrunk(getattr(job, name)) for name in ("image_tokenizer", "tokenizer", "stage1", "stage2", "stage3")
    }
    return dataclasses.replace(job, num_eval_clips=4, num_eval_prompts=2, **parts)
