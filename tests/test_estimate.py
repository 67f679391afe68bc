"""The estimate of memory: what it compiles, what it says of it, and mistakes. The TPU compiler is not needed here."""

import dataclasses
import json

import jax
import pytest
from jax.experimental import topologies

from loong_jax import estimate
from loong_jax.config import (
    DEBUG_TOKENIZER,
    FULL_TOKENIZER_JOB,
    ConfigError,
    DataConfig,
    DiscriminatorConfig,
    EstimateJob,
    MeshConfig,
)

TRAINING = dataclasses.replace(
    FULL_TOKENIZER_JOB,
    tokenizer=DEBUG_TOKENIZER,
    discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2)),
    data=DataConfig(frame_size=16, num_frames=5),
    mesh=MeshConfig(fsdp=2, sequence=2),
)


@pytest.mark.slow
def test_the_memory_of_the_step_is_that_of_its_parts():
    memory = estimate._memory(TRAINING, jax.devices()[:4], 2)
    assert memory["GiB a device"] == pytest.approx(memory["state GiB"] + memory["work GiB"], abs=0.02)
    # VGG16 alone has 14.7M float32 weights, and every device holds all of them.
    assert 14.7e6 * 4 / 2**30 < memory["state GiB"] + 0.005 < 0.08
    with pytest.raises(ConfigError, match="3 clips cannot be shared by 2 devices"):
        estimate._memory(TRAINING, jax.devices()[:4], 3)


def test_batches_are_tried_until_one_does_not_fit(monkeypatch, tmp_path, capsys):
    needed = {8: 3.0, 16: 15.5, 32: None, 64: 1.0}
    monkeypatch.setattr(estimate, "_devices", lambda topology: [None] * 8)
    monkeypatch.setattr(estimate, "_memory", lambda job, devices, batch: {"GiB a device": needed[batch]})
    rows = estimate.run_estimate(EstimateJob(topology="v5e:2x4|v6e:2x4"), tmp_path)
    assert [(row["topology"], row["batch"], row["fits"]) for row in rows] == [
        (topology, batch, fits)
        for topology in ("v5e:2x4", "v6e:2x4")
        for batch, fits in ((8, "yes"), (16, "yes"), (32, "no"))
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == {"rows": rows}
    assert "| v6e:2x4  | 8       | 32" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["v99:2x4", "v5e:77x3"])
def test_an_unknown_topology(topology, monkeypatch):
    def fail(**_):
        raise RuntimeError("INVALID_ARGUMENT: no such layout\nat line 3")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    said = "CHIP:LAYOUT" if topology.startswith("v99") else r"no such layout.*loong_jax\[tpu\]"
    with pytest.raises(ConfigError, match=said) as error:
        estimate._devices(topology)
    assert "\n" not in str(error.value)
