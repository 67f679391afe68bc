"""The estimate: what it compiles, what it makes of the compiler's words, and mistakes. Needs no TPU compiler."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from loong_jax import estimate, programs
from loong_jax.compiled import memory_of
from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    FULL_TOKENIZER_JOB,
    ConfigError,
    DataConfig,
    DecodingConfig,
    DiscriminatorConfig,
    EstimateJob,
    LanguageModelJob,
    TokenizerJob,
)

CONFIGS = str(Path(__file__).parents[1] / "configs")
TOKENIZER = dataclasses.replace(
    FULL_TOKENIZER_JOB,
    tokenizer=DEBUG_TOKENIZER,
    discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2)),
    data=DataConfig(frame_size=16, num_frames=5),
)
MODEL = LanguageModelJob(
    tokenizer=DEBUG_TOKENIZER,
    model=dataclasses.replace(DEBUG_TRANSFORMER, num_text_ids=50),
    data=DataConfig(frame_size=16, num_frames=5, max_text_ids=8),
)


@pytest.mark.slow
def test_the_memory_of_the_tokenizers_step_is_that_of_its_parts(make_mesh):
    mesh = make_mesh(fsdp=2, sequence=2)
    program = programs.lower_tokenizer_training(TOKENIZER, mesh, 2)
    memory = memory_of(program.lowered.compile())
    # VGG16 alone has 14.7M float32 weights, and every device holds all of them.
    state = programs.bytes_on_device((program.params, program.rest))
    assert 14.7e6 * 4 < memory.arguments - state < 14.8e6 * 4 and memory.work > 0
    with pytest.raises(ConfigError, match="3 clips cannot be shared by 2 devices"):
        programs.lower_tokenizer_training(TOKENIZER, mesh, 3)


def test_the_memory_of_the_models_step_is_that_of_its_parts(make_mesh):
    """AdamW keeps two moments of every parameter; the state is given back where it was."""
    program = programs.lower_model_training(MODEL, make_mesh(fsdp=2, tensor=2), 4)
    num_params = sum(x.size for x in jax.tree.leaves(program.params))
    params, rest = programs.bytes_on_device(program.params), programs.bytes_on_device(program.rest)
    assert num_params <= params < 1.02 * num_params  # float32 over four devices; norm scales are whole
    assert rest == pytest.approx(2 * params, rel=1e-3)
    memory = memory_of(program.lowered.compile())
    state = programs.bytes_on_device((program.params, program.rest))
    assert state < memory.arguments < state + 4 * 4 * 5 * 48 and memory.aliased >= 0.99 * state
    assert memory.total == memory.arguments + memory.work


def test_the_sampling_loop_changes_its_cache_in_place(make_mesh):
    program = programs.lower_decoding(MODEL, make_mesh(tensor=2), 3, DecodingConfig())
    model = MODEL.model
    slots = 8 + 4 + 2 * 2 * 2  # prompt, and 2 latent frames of 2 x 2 ids
    cache = 2 * model.num_layers * 3 * model.num_kv_heads // 2 * slots * model.head_dim * 4 + 3 * slots
    assert programs.bytes_on_device(program.rest) == cache
    assert memory_of(program.lowered.compile()).aliased >= cache


def test_batches_are_tried_until_one_does_not_fit(monkeypatch, tmp_path, capsys):
    rows = run(monkeypatch, tmp_path, {8: 3.0, 16: 15.5, 32: None, 64: 1.0}, batch_sizes=(8, 16, 32, 64))
    assert [(row["target"], row["batch"], row["fits"]) for row in rows] == [
        (target, batch, fits)
        for target in ("v5e:2x4", "v6e:2x4")
        for batch, fits in ((8, "yes"), (16, "yes"), (32, "no"))
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == {"rows": rows}
    assert "v6e:2x4 | 8       | 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("needed", "largest"),
    [
        (lambda batch: 3 + batch / 8, 96),  # 8 devices: 1 GiB a row of each, 13 rows and no more
        (lambda batch: 3 + batch / 8 if batch < 80 else 17, 72),  # the line leads too far
        (lambda batch: None, 8),
    ],
)
def test_the_largest_batch_is_found(needed, largest, monkeypatch, tmp_path):
    (row,) = run(monkeypatch, tmp_path, needed, target="v5e:2x4")
    assert row["batch"] == largest
    assert row["fits"] == ("no" if needed(8) is None else "yes")


def run(monkeypatch, workdir, needed, target="v5e:2x4|v6e:2x4", **settings) -> list[dict]:
    """An estimate whose compiler says what ``needed`` (batch -> GiB) says."""
    of_batch = needed if callable(needed) else needed.get

    def compile_batch(self, batch):
        gib = of_batch(batch)
        fits = gib is not None and gib < self._available
        return {"batch": batch, "GiB": gib, "of": self._available, "fits": "yes" if fits else "no"}

    monkeypatch.setattr(estimate, "_devices", lambda target: jax.devices()[:8])
    monkeypatch.setattr(estimate._Compiler, "__call__", compile_batch)
    return estimate.run_estimate(EstimateJob(configs=CONFIGS, target=target, **settings), workdir)


def test_times_are_those_of_the_rates(make_mesh, monkeypatch):
    """700M on one v5e: 6 FLOPs a parameter and id, a third more for what is computed again, over 197 TFLOP/s."""
    job = EstimateJob(length=4608)
    training = estimate._changed(LanguageModelJob(model=dataclasses.replace(MODEL.model, remat="full")), job)
    compiler = estimate._Compiler(job, training, make_mesh(data=8), estimate.CHIPS["v5e"], None)
    row = compiler._times(16, sent=int(100e9))
    model = training.model
    layer = 4 * model.model_dim**2 + 3 * model.model_dim * model.mlp_dim
    matrices = model.num_layers * layer + model.model_dim * (model.num_video_ids + 10)
    needed = (6 * matrices + 6 * model.num_layers * model.model_dim * 4608) * 16 * 4608
    np.testing.assert_allclose(row["computing s"], needed * 4 / 3 / (8 * 197e12), rtol=1e-6)
    np.testing.assert_allclose(row["sending s"], 0.5, rtol=1e-6)
    assert row["step s"] == max(row["computing s"], row["sending s"])
    np.testing.assert_allclose(row["MFU"], needed / (row["step s"] * 8 * 197e12))


def test_what_is_no_experiment(tmp_path):
    for experiment, said in (
        ("stage9", "no config file .*stage9.py.*stage1"),
        ("stage3:8b", "8b"),
        ("sample", "name one a training"),
    ):
        with pytest.raises(ConfigError, match=said):
            estimate.run_estimate(EstimateJob(configs=CONFIGS, experiment=experiment, target="cpu"), tmp_path)
    with pytest.raises(ConfigError, match="of the language model"):
        estimate._changed(TokenizerJob(), EstimateJob(step="sampling"))


@pytest.mark.parametrize("target", ["v99:2x4", "h100:8", "v5e:77x3"])
def test_an_unknown_target(target, monkeypatch):
    def fail(**_):
        raise RuntimeError("INVALID_ARGUMENT: no such layout\nat line 3")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    said = r"no such layout.*loong_jax\[tpu\]" if target.startswith("v5e") else "CHIP:LAYOUT"
    with pytest.raises(ConfigError, match=said) as error:
        estimate._devices(target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "target, wrap",
    [
        ("v5p:4x4x4", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("v5e:4x4", (False, False, False)),
        ("v6e:8x16", (False, True, False)),
        ("v5e:16x16", (True, True, False)),
    ],
)
def test_which_slices_are_rings(target, wrap):
    assert estimate._wrap(target) == wrap
