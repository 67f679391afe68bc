"""Settings of the whole test run: eight CPU devices, a compilation cache, strict NumPy-style broadcasting."""

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the first import of JAX, and inherited by the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "loong_jax_tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Most of the time goes into compiling what runs once: few of LLVM's optimizations are worth their time here.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # as main asks for; read by the workers, not here

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

from loong_jax import sharding  # noqa: E402
from loong_jax.config import MeshConfig, TrainConfig  # noqa: E402

pytest.register_assert_rewrite("commands")  # whose assertions say what they saw
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()  # Grain reads flags


@pytest.fixture
def make_mesh() -> Callable[..., jax.sharding.Mesh]:
    """Build a mesh of the given axis sizes, e.g. ``make_mesh(fsdp=2, tensor=4)``, from the first devices."""

    def make(**sizes: int) -> jax.sharding.Mesh:
        config = MeshConfig(**{"fsdp": 1, **sizes})
        return sharding.make_mesh(config, jax.devices()[: math.prod(sizes.values())])

    return make


@pytest.fixture
def train(make_mesh) -> Callable[..., Any]:
    """Run the loop with any ``step``: ``train(workdir, step, num_steps=5)``; returns the last state.

    Each batch holds its number, 1, 2, and so on; the parameters are two zeros, or ``state`` says what else there is.
    """
    from loong_jax.training import loop
    from loong_jax.training.state import TrainState
    from loong_jax.training.throughput import Work

    def run(workdir: Path, step: Callable, *, state: Any = None, batches: Callable | None = None, **settings) -> Any:
        defaults = {"num_steps": 5, "batch_size": 2, "eval_batches": 0}
        training = loop.Training(
            title="test",
            workdir=workdir,
            config=TrainConfig(**defaults | settings),
            mesh=make_mesh(fsdp=1),
            state=state or TrainState(jnp.zeros((), jnp.int32), {"weight": jnp.zeros(2)}, ()),
            step=step,
            batches=batches or (lambda start: ({"numbers": np.full((2, 4), n)} for n in itertools.count(start + 1))),
            evaluate=lambda state: {},
            work=Work("numbers"),
            shown=("loss",),
            meta={"config": {"task": "language_model"}},
        )
        return loop.run(training)

    return run
