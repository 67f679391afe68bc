"""Several processes: when they look for each other, what they say if they fail, and that two are as good as one."""

import os
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from loong_jax import checkpoint, distributed
from loong_jax.config_dict import from_config_dict
from loong_jax.data.token_cache import TokenCache
from loong_jax.models import transformer
from loong_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
LAUNCHERS = re.compile("JAX_(COORDINATOR|NUM_PROC|PROCESS|LOCAL)|SLURM_|OMPI_|KUBERNETES_|JOB_COMPL|TPU_")
HOST = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
TWO = HOST | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without what launchers set, and with ``variables``."""
    return {name: value for name, value in os.environ.items() if not LAUNCHERS.match(name)} | variables


@pytest.fixture
def connect(monkeypatch):
    """Call ``connect`` with these variables; returns what JAX was given, or None where it was not asked."""

    def call(variables: dict[str, str], error: Exception | None = None) -> dict | None:
        asked = []

        def initialize(address, **options):
            asked.append({"address": address, **options})
            if error:
                raise error

        for name in filter(LAUNCHERS.match, list(os.environ)):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        distributed.connect()
        return asked[0] if asked else None

    return call


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_NUM_PROCESSES": "1", **HOST},
        SLURM | {"SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_process_that_runs_alone_asks_nobody(connect, variables):
    assert connect(variables) is None


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        (TWO, {"address": "10.0.0.1:1234", "num_processes": 2, "process_id": 1, "local_device_ids": None}),
        (SLURM, {"address": None, "local_device_ids": None}),
        # One task on each of two nodes has all GPUs of its node; JAX would give it the first.
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"},
            {"address": None, "local_device_ids": [0, 1, 2, 3]},
        ),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "4"}, {"local_device_ids": None}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, {"address": None}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "TPU_WORKER_HOSTNAMES": "a,b"}, {"address": None}),
    ],
)
def test_what_jax_is_asked(connect, variables, given):
    asked = connect(variables)
    assert given.items() <= asked.items() and asked["initialization_timeout"] > 300


def test_where_jax_recognises_no_cluster_the_process_runs_alone(connect):
    assert connect({}, ValueError("coordinator_address should be defined.")) is not None
    assert distributed.is_first() and distributed.process_label() == ""
    distributed.check_task("sample")


def test_while_jax_is_being_imported_the_process_runs_alone(monkeypatch):
    """Ctrl-C may come then, and is answered with the process's name."""
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    assert distributed.place() == (0, 1) and distributed.process_label() == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "JAX_COORDINATOR_ADDRESS='localhost'.*host:port"),
        (TWO | {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID='one'.*whole number"),
        (TWO | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2.*JAX_NUM_PROCESSES=2"),
        (TWO, r"Process 1 on \S+ cannot join the others \(it rains\): set JAX_COORDINATOR_ADDRESS.*--nodistributed"),
        (SLURM, r"This process on \S+ cannot join the others \(it rains\)"),
    ],
)
def test_mistakes_are_one_sentence(connect, variables, said):
    with pytest.raises(ValueError, match=said) as error:
        connect(variables, RuntimeError("it rains.\nat line 3"))
    assert "\n" not in str(error.value)


def test_a_job_of_one_process_refuses_several(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    distributed.check_task("language_model")
    with pytest.raises(ValueError, match="'sample' is the work of one process, and there are 4.*--nodistributed"):
        distributed.check_task("sample")


def test_nobody_answers_and_a_taken_port():
    code = "from loong_jax import distributed; distributed.connect(timeout=1)"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = clean_environment(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
        calls = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env=environment | {"JAX_PROCESS_ID": process},
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in ("0", "1")
        ]
        first, second = (call.communicate(timeout=60)[1] for call in calls)
    assert "ValueError: Process 0 on" in first and "Address already in use" in first
    assert calls[1].returncode == 2
    assert re.fullmatch(rf"error: Process 1 on .* did not meet the others at {address} within 1 s: .*\n", second)


def train(workdir: Path, config: str, *settings: str, num_processes: int) -> list[str]:
    """Run the command line on eight CPU devices, shared by the processes; returns what each printed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = clean_environment(JAX_NUM_CPU_DEVICES=str(8 // num_processes))
    if num_processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(num_processes)}
    command = [sys.executable, "-m", "loong_jax.main", f"--config=configs/{config}", f"--workdir={workdir}", *settings]
    calls = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | ({"JAX_PROCESS_ID": str(process)} if num_processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(num_processes)
    ]
    printed = [call.communicate(timeout=900)[0] for call in calls]
    assert [call.returncode for call in calls] == [0] * num_processes, "\n".join(printed)
    return ["".join(line for line in text.splitlines(True) if not line.startswith("[Gloo]")) for text in printed]


MEASURED = re.compile("_per_second$|_seconds$|^peak_memory|^mfu$")


def assert_same_metrics(first: Path, second: Path, rtol: float) -> None:
    expected, found = read_metrics(first), read_metrics(second)
    assert [(record["step"], record["split"]) for record in found] == [
        (record["step"], record["split"]) for record in expected
    ]
    for one, other in zip(expected, found, strict=True):
        for name in one.keys() - {"split"}:
            if not MEASURED.search(name):
                np.testing.assert_allclose(other[name], one[name], rtol=rtol, atol=1e-6, err_msg=name)


MODEL = (
    "--config.train.num_steps=20",
    "--config.train.checkpoint_every=20",
    "--config.train.eval_every=10",
    "--config.train.log_every=1",
    "--config.model.model_dim=32",
    "--config.model.num_layers=1",
    "--config.data.num_frames=5",
    "--config.data.num_images=272",  # two shards of ids: each process makes one
)


def stored_params(workdir: Path) -> dict:
    """The parameters of a model's newest checkpoint, whole on one device."""
    assert os.listdir(workdir / checkpoint.FOLDER) == ["20"]
    _, shapes = transformer.abstract_params(from_config_dict(checkpoint.load_meta(workdir)["config"]).model)
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)
    return checkpoint.load_parts(workdir, {"params": wanted})["params"]


@pytest.mark.slow
def test_two_processes_train_the_model_as_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, "stage2.py:debug", *MODEL, num_processes=1)
    first, second = train(two, "stage2.py:debug", *MODEL, num_processes=2)
    assert "on a mesh of 1 data x 8 fsdp" in first and "20/20" in first
    assert second == ""
    assert len(read_metrics(two)) == 20 + 2
    assert_same_metrics(one, two, 1e-5)

    caches = [TokenCache(path / "tokens" / "train_images_1_272") for path in (one, two)]
    assert caches[1].meta.num_shards == 2
    for index in (0, 255, 256, 271):
        np.testing.assert_array_equal(caches[0][index]["codes"], caches[1][index]["codes"])
        assert caches[0][index]["key"] == caches[1][index]["key"]

    found, expected = (stored_params(path) for path in (two, one))
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(x - y) <= 1e-3 * np.linalg.norm(y), jax.tree_util.keystr(path)

    # One process goes on where two stopped.
    (printed,) = train(two, "stage2.py:debug", *MODEL, "--config.train.num_steps=21", num_processes=1)
    assert "resuming at step 20" in printed and "21/21" in printed


@pytest.mark.slow
def test_processes_that_hold_the_same_rows_read_the_same(tmp_path):
    """Heads and length are cut across the processes, so that each needs all rows of a batch."""
    settings = (*MODEL, "--config.train.num_steps=3", "--config.mesh.fsdp=1", "--config.mesh.tensor=4")
    for name, count in (("one", 1), ("two", 2)):
        train(tmp_path / name, "stage2.py:debug", *settings, "--config.mesh.sequence=2", num_processes=count)
    assert_same_metrics(tmp_path / "one", tmp_path / "two", 1e-5)


@pytest.mark.slow
def test_two_processes_train_the_tokenizer_as_one_does(tmp_path):
    settings = ("--config.train.num_steps=3", "--config.train.eval_every=3", "--config.data.num_frames=5")
    settings += ("--config.mesh.data=8", "--config.mesh.fsdp=1", "--config.loss.adversarial_weight=0")
    for name, count in (("one", 1), ("two", 2)):
        train(tmp_path / name, "tokenizer.py:debug", *settings, num_processes=count)
    assert_same_metrics(tmp_path / "one", tmp_path / "two", 1e-4)
    pictures = [(tmp_path / name / "samples" / "reconstruction.png").stat().st_size for name in ("one", "two")]
    assert pictures[0] == pytest.approx(pictures[1], rel=0.02)
