"""A training goes on with other devices and other processes, and learns as it would have."""

import numpy as np
import pytest
from runs import finish, records, start

pytestmark = pytest.mark.slow
# Batches of eight rows, at every device count; the first metrics are the same to a rounding.
SETTINGS = ("--config.train.checkpoint_every=4",)


def train(workdir, *parts):
    """Up to each number of steps in turn, with so many devices and processes; the schedule is that of all steps."""
    for steps, devices, processes in parts:
        settings = (f"--config.train.num_steps={steps}", "--config.optimizer.schedule=wsd", *SETTINGS)
        settings += ("--config.optimizer.decay_share=0.0",)
        finish(start(workdir, "language_model", *settings, num_devices=devices, num_processes=processes), workdir)
    return [record for record in records(workdir) if record["split"] == "train"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(tmp_path_factory.mktemp("devices") / "unbroken", (12, 8, 1))


@pytest.mark.parametrize(
    "parts",
    [[(4, 8, 1), (8, 4, 1), (12, 8, 1)], [(4, 8, 1), (8, 8, 2), (12, 8, 1)]],
    ids=["8 to 4 to 8 devices", "1 to 2 to 1 processes"],
)
def test_the_loss_is_that_of_the_unbroken_training(parts, unbroken, tmp_path):
    found = train(tmp_path / "broken", *parts)
    assert [record["step"] for record in found] == list(range(1, 13))
    losses = [[record["loss"] for record in run] for run in (found, unbroken)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
