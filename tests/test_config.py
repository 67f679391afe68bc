"""Every check of every setting fires and says what is allowed."""

import dataclasses

import pytest

from loong_jax.config import (
    DEBUG_TOKENIZER,
    JOBS,
    CheckDataJob,
    ClaimsJob,
    ConfigError,
    DataConfig,
    DecodingConfig,
    DemoJob,
    DiscriminatorConfig,
    DoctorJob,
    EstimateJob,
    EvaluateJob,
    ExportJob,
    FvdConfig,
    LanguageModelJob,
    LossConfig,
    MediaLimits,
    MeshConfig,
    OptimizerConfig,
    QuantizerConfig,
    SampleJob,
    SamplingChanges,
    SamplingConfig,
    ServeJob,
    ServingLimits,
    TokenizeJob,
    TokenizerConfig,
    TokenizerJob,
    TokenizerLossConfig,
    TrainConfig,
    TransformerConfig,
    checks,
    evaluation,
    jobs,
    model,
    sampling,
    serving,
    sources,
    tokenizer,
    training,
)
from loong_jax.config_dict import from_config_dict, to_json_dict

POSITIVE, SHARE, NOT_NEGATIVE = "greater than 0", "in [0, 1]", "cannot be negative"

# Class, arguments, the field as the message names it, its value there, and what the message allows.
IMPOSSIBLE = [
    (MeshConfig, {"data": 0}, "mesh.data", 0, "positive number, or -1"),
    (MeshConfig, {"fsdp": -2}, "mesh.fsdp", -2, "positive number, or -1"),
    (MeshConfig, {"sequence": 0}, "mesh.sequence", 0, "positive number, or -1"),
    (MeshConfig, {"tensor": -3}, "mesh.tensor", -3, "positive number, or -1"),
    (MeshConfig, {"data": -1}, "mesh", {"data": -1, "fsdp": -1, "sequence": 1, "tensor": 1}, "only one axis"),
    (MeshConfig, {"num_slices": -1}, "num_slices", -1, NOT_NEGATIVE),
    (QuantizerConfig, {"num_codes": 0}, "num_codes", 0, POSITIVE),
    (QuantizerConfig, {"dim": -1}, "dim", -1, POSITIVE),
    (QuantizerConfig, {"distance": "l1"}, "quantizer.distance", "l1", "'cosine', 'l2'"),
    (QuantizerConfig, {"anchor": "nearest"}, "quantizer.anchor", "nearest", "'closest', 'random', 'probrandom'"),
    (QuantizerConfig, {"decay": 1.0}, "quantizer.decay", 1.0, "in (0, 1)"),
    (QuantizerConfig, {"decay": 0.0}, "quantizer.decay", 0.0, "in (0, 1)"),
    *[
        (QuantizerConfig, {field: -1}, field, -1, NOT_NEGATIVE)
        for field in ("commitment_weight", "codebook_weight", "start_step")
    ],
    (TokenizerConfig, {"num_mid_blocks": -1}, "num_mid_blocks", -1, NOT_NEGATIVE),
    (TokenizerConfig, {"channel_multipliers": ()}, "tokenizer.channel_multipliers", (), "one or more"),
    (TokenizerConfig, {"channel_multipliers": (1, 0)}, "tokenizer.channel_multipliers", (1, 0), "greater than 0"),
    (TokenizerConfig, {"base_channels": 0}, "base_channels", 0, POSITIVE),
    (TokenizerConfig, {"patch_size": 0}, "patch_size", 0, POSITIVE),
    (TokenizerConfig, {"num_res_blocks": 0}, "num_res_blocks", 0, POSITIVE),
    (TokenizerConfig, {"norm_groups": 0}, "norm_groups", 0, POSITIVE),
    (TokenizerConfig, {"norm_groups": 48}, "tokenizer.norm_groups", 48, "one level has 128"),
    (TokenizerConfig, {"compute_dtype": "fp8"}, "tokenizer.compute_dtype", "fp8", "'auto', 'float32', 'bfloat16'"),
    (TokenizerConfig, {"temporal_strides": (2, 2)}, "tokenizer.temporal_strides", (2, 2), "need 3 strides"),
    (TokenizerConfig, {"temporal_strides": (1, 2, 4)}, "tokenizer.temporal_strides", (1, 2, 4), "1 or 2"),
    (TokenizerConfig, {"spatial_strides": (2, 2, 2, 2)}, "tokenizer.spatial_strides", (2, 2, 2, 2), "need 3 strides"),
    (TokenizerConfig, {"spatial_strides": (0, 2, 2)}, "tokenizer.spatial_strides", (0, 2, 2), "1 or 2"),
    *[
        (TransformerConfig, {field: 0}, field, 0, POSITIVE)
        for field in (
            "num_layers",
            "model_dim",
            "num_heads",
            "num_kv_heads",
            "mlp_dim",
            "num_video_ids",
            "max_length",
        )
    ],
    (TransformerConfig, {"rope_theta": 0.0}, "rope_theta", 0.0, POSITIVE),
    *[(TransformerConfig, {field: -1}, field, -1, NOT_NEGATIVE) for field in ("num_text_ids", "norm_eps")],
    (TransformerConfig, {"remat": "all"}, "model.remat", "all", "'none', 'dots', 'full'"),
    (TransformerConfig, {"attention": "flash"}, "model.attention", "flash", "'splash', 'cudnn', 'ring'"),
    (TransformerConfig, {"compute_dtype": "half"}, "model.compute_dtype", "half", "'auto', 'float32', 'bfloat16'"),
    (TransformerConfig, {"num_heads": 7}, "model.num_heads", 7, "model_dim 1536 must be a multiple of 2 x"),
    (TransformerConfig, {"num_kv_heads": 3}, "model.num_kv_heads", 3, "divide num_heads 16"),
    (DataConfig, {"source": "youtube"}, "data.source", "youtube", "'moving_digits', 'folder', 'web_shards'"),
    (DataConfig, {"source": "folder"}, "data.source", "folder", "write folder:DIR"),
    (DataConfig, {"source": "cut_list:"}, "data.source", "cut_list:", "write cut_list:FILE"),
    (DataConfig, {"source": "moving_digits:x"}, "data.source", "moving_digits:x", "write moving_digits"),
    (DataConfig, {"source": "0*folder:a|folder:b"}, "data.source", "0*folder:a", "a number above 0"),
    (TokenizerJob, {"data": DataConfig(source="tokens:a")}, "data.source", "tokens:a", "a source of videos or images"),
    (DataConfig, {"source": "tokens:a|folder:b"}, "data.source", "tokens:a|folder:b", "mixed with tokens only"),
    *[
        (DataConfig, {field: 0}, field, 0, POSITIVE)
        for field in ("frame_size", "num_frames", "fps", "num_threads", "max_text_ids", "reencoded_frames")
    ],
    *[(DataConfig, {field: 1.5}, field, 1.5, SHARE) for field in ("two_digit_share", "image_share", "text_drop")],
    (DataConfig, {"max_bad_share": -0.1}, "max_bad_share", -0.1, SHARE),
    *[
        (DataConfig, {field: -1}, field, -1, NOT_NEGATIVE)
        for field in ("num_clips", "num_images", "min_brightness", "min_motion", "num_workers", "pack")
    ],
    (TokenizeJob, {"num_held_out": 0}, "num_held_out", 0, POSITIVE),
    (CheckDataJob, {"num_examples": 0}, "num_examples", 0, POSITIVE),
    (DataConfig, {"cached_frames": 5}, "data.cached_frames", 5, "0, or at least num_frames (17)"),
    (DataConfig, {"held_out_every": 1}, "data.held_out_every", 1, "at least 2"),
    (OptimizerConfig, {"name": "sgd"}, "optimizer.name", "sgd", "'adamw', 'muon'"),
    (OptimizerConfig, {"matrix_learning_rate": 0.0}, "matrix_learning_rate", 0.0, POSITIVE),
    (TokenizerConfig, {"encoder_padding": "reflect"}, "tokenizer.encoder_padding", "reflect", "'zeros', 'edge'"),
    (
        TokenizerConfig,
        {"encoder_res_blocks": (1, 1)},
        "tokenizer.encoder_res_blocks",
        (1, 1),
        "4 channel_multipliers need",
    ),
    (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate", 0.0, POSITIVE),
    (OptimizerConfig, {"clip_norm": -1.0}, "clip_norm", -1.0, POSITIVE),
    (OptimizerConfig, {"warmup_steps": -1}, "warmup_steps", -1, NOT_NEGATIVE),
    (OptimizerConfig, {"weight_decay": -0.1}, "weight_decay", -0.1, NOT_NEGATIVE),
    (OptimizerConfig, {"end_fraction": -0.1}, "end_fraction", -0.1, SHARE),
    *[(OptimizerConfig, {field: 1.0}, f"optimizer.{field}", 1.0, "in [0, 1)") for field in ("b1", "b2")],
    (LossConfig, {"early_frames": -1}, "early_frames", -1, NOT_NEGATIVE),
    (LossConfig, {"early_weight": -0.5}, "early_weight", -0.5, NOT_NEGATIVE),
    *[
        (TrainConfig, {field: 0}, field, 0, POSITIVE)
        for field in ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "eval_every")
        + ("skips_before_return",)
    ],
    *[
        (TrainConfig, {field: -1}, field, -1, NOT_NEGATIVE)
        for field in ("eval_batches", "profile_start", "profile_steps", "keep_every", "max_returns")
    ],
    (TrainConfig, {"keep_every": 1500}, "train.keep_every", 1500, "must be a multiple of checkpoint_every 1000"),
    (SamplingConfig, {"seconds": 0.0}, "seconds", 0.0, POSITIVE),
    (SamplingConfig, {"seconds": 1e9}, "sampling.seconds", 1e9, "at most 86400, a day"),
    *[
        (SamplingConfig, {field: value}, f"sampling.{field}", value, allowed)
        for field, values, allowed in (
            ("temperature", (0.0, (1.0, 0.0), (), "hot", float("inf"), [1.0], 1e-38), "a number from 1e-06 to 1e+06"),
            ("top_k", (-1, 2.5, (100, None)), "an integer at least 0, or a tuple"),
            ("top_p", (0.0, 1.1, (0.9, 0.0)), "in (0, 1]"),
            ("min_p", (2.0, (0.1, -0.1)), "in [0, 1]"),
            ("guidance_scale", (0.5, (3.0, 0.5), 1e38), "from 1 to 1e+06"),
            ("repetition_penalty", (0.0, (1.1, -1.0), 1e-38), "from 1e-06 to 1e+06"),
            ("continuation_temperature", (-1, (0.5, 0.0), 1e-40), "from 1e-06 to 1e+06, or 0"),
            ("continuation_guidance_scale", (0.5, (2.0, 0.0), 1e38), "from 1 to 1e+06, or 0"),
        )
        for value in values
    ],
    (SamplingConfig, {"reencode_frames": 0}, "reencode_frames", 0, POSITIVE),
    (SamplingConfig, {"window_latents": 0}, "window_latents", 0, POSITIVE),
    (SamplingConfig, {"candidates": 0}, "candidates", 0, POSITIVE),
    (SamplingConfig, {"candidates": 256}, "sampling.candidates", 256, "at most 255"),
    (SamplingConfig, {"sink_latents": -1}, "sink_latents", -1, NOT_NEGATIVE),
    (
        SamplingConfig,
        {"continuation": "flow"},
        "sampling.continuation",
        "flow",
        "'reencode', 'anchor', 'ids', 'window'",
    ),
    (SamplingConfig, {"text_change": "fade"}, "sampling.text_change", "fade", "'continue', 'cut'"),
    (TokenizerJob, {"data": DataConfig(num_frames=16)}, "num_frames", 16, "1 + a multiple of 4"),
    (TokenizerJob, {"data": DataConfig(frame_size=100)}, "frame_size", 100, "a multiple of 8"),
    (QuantizerConfig, {"dead_after": 0}, "dead_after", 0, POSITIVE),
    (QuantizerConfig, {"usage_alarm": 1.1}, "usage_alarm", 1.1, "[0, 1]"),
    (TokenizerConfig, {"decoder_norm": "batch"}, "tokenizer.decoder_norm", "batch", "'group', 'adaptive'"),
    (DiscriminatorConfig, {"kind": "stylegan"}, "discriminator.kind", "stylegan", "'residual', 'patch'"),
    (DiscriminatorConfig, {"base_channels": 0}, "base_channels", 0, POSITIVE),
    (DiscriminatorConfig, {"learning_rate": 0.0}, "learning_rate", 0.0, POSITIVE),
    (DiscriminatorConfig, {"channel_multipliers": ()}, "discriminator.channel_multipliers", (), "one or more"),
    (DiscriminatorConfig, {"b1": 1.0}, "discriminator.b1", 1.0, "[0, 1)"),
    (DiscriminatorConfig, {"b2": -0.1}, "discriminator.b2", -0.1, "[0, 1)"),
    (TokenizerLossConfig, {"reconstruction": "l3"}, "loss.reconstruction", "l3", "'l1', 'l2'"),
    (TokenizerLossConfig, {"adversarial": "wgan"}, "loss.adversarial", "wgan", "'non_saturating', 'hinge'"),
    (TokenizerLossConfig, {"reconstruction_weight": 0.0}, "reconstruction_weight", 0.0, POSITIVE),
    (TokenizerLossConfig, {"adversarial_ramp": 0}, "adversarial_ramp", 0, POSITIVE),
    (TokenizerLossConfig, {"perceptual_weight": -1.0}, "perceptual_weight", -1.0, NOT_NEGATIVE),
    (TokenizerLossConfig, {"reencoding_weight": -1.0}, "reencoding_weight", -1.0, NOT_NEGATIVE),
    (TokenizerLossConfig, {"perceptual_frames": -1}, "perceptual_frames", -1, NOT_NEGATIVE),
    (TokenizerLossConfig, {"adversarial_weight": -1.0}, "adversarial_weight", -1.0, NOT_NEGATIVE),
    (TokenizerLossConfig, {"adaptive_max": -1.0}, "adaptive_max", -1.0, NOT_NEGATIVE),
    (TokenizerLossConfig, {"adversarial_start": -1}, "adversarial_start", -1, NOT_NEGATIVE),
    (TokenizerLossConfig, {"r1_weight": -1.0}, "r1_weight", -1.0, NOT_NEGATIVE),
    (TokenizerLossConfig, {"lecam_weight": -1.0}, "lecam_weight", -1.0, NOT_NEGATIVE),
    (TokenizerLossConfig, {"lecam_decay": 1.0}, "loss.lecam_decay", 1.0, "[0, 1)"),
    (TokenizerJob, {"ema_decay": 1.0}, "ema_decay", 1.0, "[0, 1)"),
    *[
        (job, {"seed": seed}, "seed", seed, "from 0 to 2147483647")
        for job, seed in ((TokenizerJob, -1), (LanguageModelJob, 2**31), (SampleJob, -1), (EvaluateJob, -1))
    ],
    (TokenizerJob, {"freeze_encoder": True}, "freeze_encoder", True, "--config.init_from=DIR"),
    (SampleJob, {"prompt": " \n"}, "prompt", " \n", "give some text"),
    (SampleJob, {"prompt": "| |"}, "prompt", "| |", "give some text"),
    (SampleJob, {"batch_size": 0}, "batch_size", 0, POSITIVE),
    (SampleJob, {"outputs": "mp4|avi"}, "outputs", "mp4|avi", "use mp4, gif, mkv, frames or sheet"),
    (SampleJob, {"outputs": "gif|mp4|gif"}, "outputs", "gif|mp4|gif", "each once"),
    (SampleJob, {"image": "a.png", "video": "b.mp4"}, "video", "b.mp4", "leave it out where image is given"),
    (
        LanguageModelJob,
        {"choose_mesh": True, "mesh": MeshConfig(tensor=2)},
        "choose_mesh",
        True,
        "leave those as they are",
    ),
    (DecodingConfig, {"weights": "int4"}, "decoding.weights", "int4", "'auto', 'int8'"),
    (DecodingConfig, {"cache": "bfloat16"}, "decoding.cache", "bfloat16", "'auto', 'int8'"),
    (DecodingConfig, {"parallel_ids": 0}, "decoding.parallel_ids", 0, POSITIVE),
    *[
        (EvaluateJob, {field: 0}, field, 0, POSITIVE)
        for field in ("num_videos", "window_seconds", "num_shown", "batch_size")
    ],
    (EvaluateJob, {"num_videos": 1}, "num_videos", 1, "needs two or more"),
    (EvaluateJob, {"videos": "a", "model_path": "b"}, "model_path", "b", "leave it out beside videos"),
    (EvaluateJob, {"reference": "a"}, "reference", "a", "compared with held-out clips: leave it out"),
    (FvdConfig, {"num_frames": 8}, "fvd.num_frames", 8, "at least 9"),
    *[(FvdConfig, {field: 0}, field, 0, POSITIVE) for field in ("stride", "clips_per_window", "num_folds")],
    (EstimateJob, {"batch_sizes": (8, 0)}, "batch_sizes", (8, 0), "greater than 0"),
    (EstimateJob, {"length": -1}, "length", -1, NOT_NEGATIVE),
    (EstimateJob, {"optimization_level": "1"}, "optimization_level", "1", "'O0', 'O1'"),
    (LossConfig, {"z_weight": -1.0}, "z_weight", -1.0, NOT_NEGATIVE),
    (EstimateJob, {"step": "decode"}, "step", "decode", "'training', 'sampling'"),
    (LossConfig, {"context_corruption": 1.5}, "context_corruption", 1.5, "in [0, 1]"),
    (DataConfig, {"reencoded_share": 1.5}, "reencoded_share", 1.5, "in [0, 1]"),
    (DataConfig, {"pack": 2, "cache_ids": False}, "data.pack", 2, "with cache_ids, or pack=0"),
    (DataConfig, {"reencoded_share": 0.5, "cache_ids": False}, "data.reencoded_share", 0.5, "with cache_ids"),
    (DataConfig, {"reencoded_share": 0.5, "source": "tokens:DIR"}, "data.reencoded_share", 0.5, "no source tokens:DIR"),
    (DataConfig, {"reencoded_share": 0.5, "num_frames": 5}, "data.reencoded_frames", 5, "less than num_frames (5)"),
    (OptimizerConfig, {"schedule": "linear"}, "optimizer.schedule", "linear", "'cosine', 'wsd'"),
    (OptimizerConfig, {"decay_share": 1.1}, "decay_share", 1.1, "in [0, 1]"),
    (TransformerConfig, {"rope": "2d"}, "model.rope", "2d", "'1d', '3d'"),
    (TransformerConfig, {"dropout": 1.0}, "model.dropout", 1.0, "[0, 1)"),
    (LanguageModelJob, {"accumulate": 3}, "accumulate", 3, "divide train.batch_size 256"),
    (LanguageModelJob, {"num_previews": -1}, "num_previews", -1, NOT_NEGATIVE),
    *[
        (MediaLimits, {field: 0}, field, 0, POSITIVE)
        for field in ("max_pixels", "max_frames", "max_seconds", "max_mib")
    ],
    *[(ServingLimits, {field.name: 0}, field.name, 0, POSITIVE) for field in dataclasses.fields(ServingLimits)],
    (ServeJob, {"port": -1}, "port", -1, NOT_NEGATIVE),
    (ServeJob, {"host": ""}, "host", "", "127.0.0.1"),
    (ServeJob, {"sampling": SamplingChanges(seconds=61.0)}, "sampling.seconds", 61.0, "at most 60"),
    (ExportJob, {"format": "gguf"}, "format", "gguf", "'loong', 'llama'"),
    (ExportJob, {"dtype": "int8"}, "dtype", "int8", "'float32', 'bfloat16', 'float16'"),
    (ExportJob, {"format": "llama", "dtype": "float16"}, "format", "llama", "in float32 and with all texts"),
    (DoctorJob, {"timeout": 0.0}, "timeout", 0.0, POSITIVE),
    (DoctorJob, {"write_mib": 0}, "write_mib", 0, POSITIVE),
    *[
        (DoctorJob, {field: -1.0}, field, -1.0, NOT_NEGATIVE)
        for field in ("min_memory_gib", "min_disk_gib", "min_write_speed")
    ],
    (DemoJob, {"num_eval_clips": 0}, "num_eval_clips", 0, POSITIVE),
    *[(ClaimsJob, {field: 0}, field, 0, POSITIVE) for field in ("num_seeds", "num_prompts")],
    (ClaimsJob, {"first_seed": -1}, "first_seed", -1, NOT_NEGATIVE),
    (DemoJob, {"num_eval_prompts": -2}, "num_eval_prompts", -2, POSITIVE),
]


@pytest.mark.parametrize(
    ("cls", "kwargs", "field", "value", "allowed"),
    IMPOSSIBLE,
    ids=[f"{cls.__name__}-{field}={value}" for cls, _, field, value, _ in IMPOSSIBLE],
)
def test_an_impossible_setting(cls, kwargs, field, value, allowed):
    with pytest.raises(ConfigError) as error:
        cls(**kwargs)
    message = str(error.value)
    assert message.startswith(f"{field}={value!r} is not possible: ") and allowed in message
    assert isinstance(error.value, ValueError) and "\n" not in message


def test_every_check_is_tried_above(monkeypatch):
    checked = set()
    for module in (checks, evaluation, jobs, model, sampling, serving, sources, tokenizer, training):
        monkeypatch.setattr(
            module, "require", lambda condition, field, value, allowed: checked.add(field), raising=False
        )
    for job in JOBS.values():
        from_config_dict(to_json_dict(job()))  # builds every class inside
    assert checked - {"task"} == {field for _, _, field, _, _ in IMPOSSIBLE}


def test_sizes_of_latents():
    tokenizer = TokenizerConfig()
    assert [tokenizer.latent_frames(frames) for frames in (1, 5, 17, 65)] == [1, 2, 5, 17]
    assert [tokenizer.pixel_frames(frames) for frames in (1, 2, 5, 17)] == [1, 5, 17, 65]
    assert tokenizer.latent_size(128) == 16 and DEBUG_TOKENIZER.latent_size(32) == 4
    assert dataclasses.replace(tokenizer, temporal_strides=(1, 1, 1)).latent_frames(3) == 3
    for size in (0, -8, 12):
        with pytest.raises(ConfigError, match=f"frame_size={size} .*multiple of 8"):
            tokenizer.latent_size(size)
    for frames in (0, -3, 4):
        with pytest.raises(ConfigError, match=f"num_frames={frames} .*1 \\+ a multiple of 4"):
            tokenizer.latent_frames(frames)


def test_changes_of_the_sampling():
    """They have every field; what is None stays as the model's own settings say, decoding aside."""
    own = {field.name: getattr(SamplingConfig(), field.name) for field in dataclasses.fields(SamplingConfig)}
    assert {field.name for field in dataclasses.fields(SamplingChanges)} == own.keys()
    model = SamplingConfig(temperature=(0.7, 0.5), top_k=10, decoding=DecodingConfig(weights="int8"))
    changed = SamplingChanges(top_k=0, seconds=5.0).over(model)
    assert changed == SamplingConfig(temperature=(0.7, 0.5), top_k=0, seconds=5.0)
    # What is asked for holds in all rounds, whatever the model has for those that continue.
    model = SamplingConfig(continuation_temperature=0.2, continuation_guidance_scale=1.3)
    changed = SamplingChanges(temperature=0.9, guidance_scale=1.0).over(model)
    assert changed.continuing.temperature == 0.9 and not changed.is_guided
    assert SamplingChanges(temperature=0.9, continuation_temperature=0.4).over(model).continuing.temperature == 0.4
    assert SamplingChanges(top_k=5).over(model).continuing.temperature == 0.2
    with pytest.raises(ConfigError, match="sampling.top_k=-1"):
        SamplingChanges(top_k=-1)
