"""The model's FLOPs are those that XLA counts, and rates are measured from the end of one logged step to the next's."""

import dataclasses
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from loong_jax.chips import CHIPS, chip_of
from loong_jax.config import LanguageModelJob, TransformerConfig
from loong_jax.models import transformer
from loong_jax.training import throughput
from loong_jax.training.lm_step import make_loss
from loong_jax.training.throughput import Throughput, Work, training_flops_per_token

MODEL = TransformerConfig(
    num_layers=3,
    model_dim=128,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=320,
    num_text_ids=1024,
    num_video_ids=1526,
    max_length=256,
    compute_dtype="float32",
    scan_layers=False,
    attention="reference",
)


def counted_by_xla(config: TransformerConfig, rows: int, length: int) -> float:
    """FLOPs of the loss and its gradients in the program as written, before any optimization."""
    loss = make_loss(LanguageModelJob(model=config), 4)
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    names = ("tokens", "positions", "segment_ids", "frame_ids")
    batch = dict.fromkeys(names, ids) | {"loss_weights": jax.ShapeDtypeStruct(ids.shape, jnp.float32)}
    gradient = jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0]))
    return gradient.lower(transformer.abstract_params(config)[1], batch).cost_analysis()["flops"]


@pytest.mark.parametrize("length", [64, 256])
def test_the_models_flops_are_those_that_xla_counts(length):
    """XLA also counts the half of attention that the mask hides, and what is no matrix product: norm, softmax, loss."""
    hidden_half = training_flops_per_token(MODEL, length) - training_flops_per_token(MODEL, 0)
    expected = 2 * length * (training_flops_per_token(MODEL, length) + hidden_half)
    assert 1.0 < counted_by_xla(MODEL, 2, length) / expected < 1.06


def test_the_models_flops_do_not_depend_on_text_ids_or_rematerialization():
    flops = training_flops_per_token(MODEL, 64)
    assert flops == training_flops_per_token(dataclasses.replace(MODEL, num_text_ids=32000), 64)
    assert flops == training_flops_per_token(dataclasses.replace(MODEL, remat="full"), 64)
    # By hand, the published sizes of the 7B model: 6.476e9 parameters in layers, 8,202 columns of the head.
    model = TransformerConfig(num_layers=32, model_dim=4096, num_heads=32, num_kv_heads=32, mlp_dim=11008)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 8202
    assert training_flops_per_token(model, 4608) == 6 * matrices + 6 * 32 * 4096 * 4608


@pytest.mark.parametrize(
    "kind", [kind for chip in CHIPS.values() for kind in chip.device_kinds if kind.startswith("TPU")]
)
def test_peaks_of_tpus_are_those_that_jax_knows(kind):
    """JAX counts tensor cores; one of its devices is a whole chip."""
    version = pallas_tpu.ChipVersion
    found = {"4": version.TPU_V4, "5": version.TPU_V5P, "6": version.TPU_V6E}[kind[5]]
    found = version.TPU_V5E if kind in ("TPU v5 lite", "TPU v5e") else found
    info = pallas_tpu.get_tpu_info_for_chip(found, 1)
    cores = found.num_physical_tensor_cores_per_chip
    assert chip_of(kind).flops == pytest.approx(info.bf16_ops_per_second * cores, rel=0.01)
    assert chip_of(kind + " other") is None


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def mesh(make_mesh):
    return make_mesh(fsdp=2)


def test_rates(monkeypatch, mesh):
    """Two windows of two steps: the first starts when the first step was handed out, pauses do not count."""
    clock, measured = Clock(monkeypatch), Throughput(Work("tokens", 1e9), mesh)
    batch = {"tokens": np.zeros((4, 8))}
    for seconds in (50, 1):  # the first batch, and compiling, are not counted
        with measured.waiting_for_data():
            clock.now += seconds
        clock.now += 60 if seconds == 50 else 0
        measured.count(batch)
    done = measured.done
    clock.now += 3
    first = measured.measure(done)
    assert first.pop("peak_memory_gib") > 0.01
    assert first == {
        "steps_per_second": 0.5,
        "tokens_per_second": 16.0,
        "step_seconds": 2.0,
        "data_seconds": 0.5,
        "model_flops_per_second": 16e9,
    }
    with measured.paused(jnp.zeros(())):
        clock.now += 1000
    for _ in range(2):
        measured.count({"tokens": np.zeros((4, 16))})
        clock.now += 2
    done = measured.done
    measured.count(batch)  # the next step is already under way
    second = measured.measure(done)
    assert (second["steps_per_second"], second["tokens_per_second"], second["data_seconds"]) == (0.5, 32.0, 0.0)


def test_the_share_of_the_peak_and_the_memory_of_known_devices(monkeypatch):
    """A known chip has an MFU over all devices of the mesh; a device that says its peak memory is believed."""
    clock = Clock(monkeypatch)
    for kind, mfu in (("NVIDIA H200", 1e12 / (2 * 989e12)), ("NVIDIA H200 MIG 1g.18gb", None)):
        device = SimpleNamespace(device_kind=kind, memory_stats=lambda: {"peak_bytes_in_use": 3 * 2**30})
        mesh = SimpleNamespace(size=2, local_mesh=SimpleNamespace(devices=np.array([device] * 2)))
        measured = throughput.Throughput(Work("tokens", 1e9), mesh)
        measured.count({"tokens": np.zeros((10, 100))})
        clock.now += 1
        found = measured.measure(measured.done)
        assert found["peak_memory_gib"] == 3
        assert found.get("mfu") == (mfu if mfu is None else pytest.approx(mfu))
