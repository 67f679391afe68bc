"""The scripts in launch/: shellcheck finds nothing, and beside false commands of clusters they ask for what is right.

Nothing is trained: ``python`` and the tools of clouds only write down what they are asked to do.
"""

import dataclasses
import functools
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import find_commands, parse_job
from jax.sharding import AbstractMesh

from loong_jax import sharding
from loong_jax.chips import CHIPS
from loong_jax.config import ConfigError, DataConfig, LanguageModelJob, MeshConfig, TokenizerJob, TrainConfig
from loong_jax.models import transformer
from loong_jax.tokenizer import autoencoder
from loong_jax.training.lm_job import row_length
from loong_jax.training.mesh_choice import Devices, Shapes, choose_mesh, estimate_needs
from loong_jax.training.optimizer import make_optimizer
from loong_jax.training.tokenizer_step import create_tokenizer_state

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
GIB = 2**30
TRAININGS = ["image_tokenizer", "tokenizer", "stage1", "stage2", "stage3"]


class Machine:
    """A folder of commands that come before the real ones, a copy of the scripts, and what the commands were asked."""

    def __init__(self, folder: Path):
        self.folder, self._commands = folder, folder / "bin"
        self._commands.mkdir()
        shutil.copytree(LAUNCH, folder / "checkout" / "launch")
        self.add("python")

    def add(self, name: str, script: str = "") -> None:
        """A command that writes down its arguments, then runs ``script``; where it shall only check them, $CHECK."""
        path = self._commands / name
        check = f'name={name}; [[ "$*" != *--only_check_args* ]] || name=check'
        # In one piece: commands of several hosts write at once.
        note = f'printf "%s\\n" "$(printf "%q " "$name" "$@")" >> {self.folder}/asked'
        check_alone = '[[ "$name" != check ]] || exec bash -c "${CHECK:-}" check "$@"'
        path.write_text("\n".join(["#!/usr/bin/env bash", check, note, check_alone, script, ""]))
        path.chmod(0o755)

    def add_environment(self) -> None:
        """What the scripts for GPUs make, or expect, in the checkout."""
        activate = self.folder / "checkout" / ".venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.touch()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        changed = {"PATH": f"{self._commands}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.folder)}
        place = self.folder / "checkout"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            arguments, cwd=place, env=os.environ | changed | environment, text=True, start_new_session=True, **pipes
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        with self.start(*arguments, **environment) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def asked(self, name: str) -> list[list[str]]:
        """The arguments of every call of a command; calls that only check arguments are those of "check"."""
        path = self.folder / "asked"
        lines = [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [words[1:] for words in lines if words[0] == name]

    def jobs(self) -> list[str]:
        """The workdirs of the jobs that were started, by name."""
        options = [option for words in self.asked("python") for option in words]
        return [Path(option).name for option in options if option.startswith("--workdir=")]


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip('shellcheck is not installed: pip install -e ".[test]"')
    result = subprocess.run([checker, script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
    assert script.suffix == ".sbatch" or script.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_a_script_says_how_to_use_it(script, machine):
    result = machine.run("bash", f"launch/{script.name}", SLURM_SUBMIT_DIR="")
    assert result.returncode != 0 and f"launch/{script.name} " in result.stderr
    assert not machine.asked("python")
    assert f"launch/{script.name} " in script.read_text().split("set -euo")[0]


def test_the_recipe_trains_in_turn_with_the_users_flags(machine):
    result = machine.run("launch/recipe.sh", "my videos", "runs", "7b", "--config.mesh.tensor=4")
    assert result.returncode == 0 and machine.jobs() == TRAININGS
    calls = machine.asked("python")
    assert all("--config.data.source=folder:my videos" in call for call in calls)
    assert ["--config.mesh.tensor=4" in call for call in calls] == [False, False, True, True, True]
    assert [call[2] for call in calls[2:]] == [f"--config=configs/stage{n}.py:7b" for n in (1, 2, 3)]
    assert machine.run("launch/one_machine.sh", "videos", "runs").returncode == 0
    assert machine.jobs()[5:] == [*TRAININGS, "sample"]


def test_the_recipe_ends_where_a_training_ends_badly(machine):
    machine.add("python", '[[ "$*" != *stage1* ]] || exit 3')
    assert machine.run("launch/recipe.sh", "videos", "runs").returncode == 3
    assert machine.jobs() == TRAININGS[:3]
    assert machine.run("launch/one_machine.sh", "videos", "runs").returncode == 3 and "sample" not in machine.jobs()


@pytest.mark.parametrize(("size", "variant"), [("700m", ""), ("7b", ""), ("small", "small"), ("debug", "debug")])
def test_the_tokenizer_is_of_the_size_and_has_flags_of_its_own(size, variant, machine):
    given = "--config.mesh.data=2 --config.seed=3"
    assert machine.run("launch/recipe.sh", "videos", "runs", size, TOKENIZER_FLAGS=given).returncode == 0
    calls = machine.asked("python")
    variants = [set(call[2].removeprefix("--config=configs/tokenizer.py").strip(":").split(",")) for call in calls[:2]]
    assert variants == [{"image", *filter(None, [variant])}, {variant}]
    assert [set(given.split()) <= set(call) for call in calls] == [True, True, False, False, False]


def test_a_mistake_is_found_before_the_first_training(machine):
    result = machine.run("launch/recipe.sh", "videos", "runs", "13b")
    assert result.returncode == 2 and "SIZE 13b is none of 700m, 3b, 7b, small and debug" in result.stderr
    assert not machine.asked("check")
    flag = "--config.mseh.data=2"
    check = f'[[ "$*" != *{flag}* ]] || exit 2'
    assert machine.run("launch/recipe.sh", "videos", "runs", "7b", flag, CHECK=check).returncode == 2
    assert machine.run("launch/recipe.sh", "videos", "runs", CHECK=check, TOKENIZER_FLAGS=flag).returncode == 2
    assert not machine.jobs()


def test_the_settings_that_are_checked_are_those_of_the_trainings(machine):
    """By ``main`` itself, which then ends."""
    assert machine.run("launch/recipe.sh", "my videos", "runs", "7b", "--config.accumulate=2").returncode == 0
    checked, trained = machine.asked("check"), machine.asked("python")
    without = [[word for word in call if not word.startswith("--workdir=")] for call in trained]
    assert checked == [[*call, "--only_check_args"] for call in without]
    for flags, code, said in (([], 0, ""), (["--config.accumulate=3"], 2, "error: In config: accumulate=3")):
        command = [sys.executable, *checked[2], *flags]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == code and result.stderr.startswith(said), result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("script", ["recipe", "one_machine", "gpu_node"])
def test_a_signal_reaches_the_training_once(script, number, to_group, machine):
    """Sent to the script alone, as containers do, or to all processes of the step, as Slurm and terminals do."""
    saving = 'count=0; trap "count=\\$((count + 1))" TERM; echo begun > begun; until ((count)); do sleep 0.05; done'
    machine.add("python", f'[[ "$*" == *tokenizer* ]] || exit 0; {saving}; sleep 0.5; echo "$count" > count; exit 75')
    machine.add_environment()
    with machine.start(f"launch/{script}.sh", "videos", "runs") as process:
        for _ in range(200):
            time.sleep(0.05)
            if (machine.folder / "checkout" / "begun").exists():
                break
        os.killpg(process.pid, number) if to_group else process.send_signal(number)
        assert process.wait(timeout=30) == 75
    assert (machine.folder / "checkout" / "count").read_text() == "1\n"
    assert [name for name in machine.jobs() if name != "doctor"] == TRAININGS[:1]


def test_a_gpu_node_installs_and_looks_before_it_trains(machine):
    machine.add_environment()
    assert machine.run("launch/gpu_node.sh", "videos", "runs", "debug").returncode == 0
    assert machine.asked("python")[0] == ["-m", "pip", "install", "--quiet", "-e", ".[cuda,eval]"]
    assert machine.jobs() == ["doctor", *TRAININGS, "sample"]


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (2, False), (3, False), (4, True), (75, True)])
def test_a_slurm_job_that_was_stopped_is_queued_again(code, queued_again, machine):
    machine.add_environment()
    machine.add("srun", 'while [[ "$1" == -* ]]; do shift; done; exec "$@"')
    machine.add("scontrol")
    machine.add("python", f'[[ "$*" != *stage3* ]] || exit {code}')
    place = {"SLURM_SUBMIT_DIR": str(machine.folder / "checkout"), "SLURM_JOB_ID": "7"}
    assert "#SBATCH --exclusive\n#SBATCH --mem=0\n" in (LAUNCH / "slurm.sbatch").read_text()  # else one CPU a node
    assert machine.run("bash", "launch/slurm.sbatch", "videos", "runs", "3b", **place).returncode == code
    assert machine.jobs() == TRAININGS
    assert machine.asked("scontrol") == ([["requeue", "7"]] if queued_again else [])


def test_gke_gets_a_jobset_that_restarts(machine):
    machine.add("xpk")
    words = ["my-cluster", "my-project", "us-east5-b", "v6e-64", "loong", "7b", "--config.mesh.tensor=4"]
    assert machine.run("launch/gke.sh", *words, SLICES="2").returncode == 0
    [call] = machine.asked("xpk")
    options = dict(word.split("=", 1) for word in call[2:])
    assert call[:2] == ["workload", "create"] and options["--num-slices"] == "2" and options["--tpu-type"] == "v6e-64"
    assert options["--restart-on-exit-codes"] == "4,75" and int(options["--max-restarts"]) > 100
    machine.add("python3")
    assert machine.run("bash", "-c", options["--command"]).returncode == 0
    assert machine.asked("python3") == [["-m", "pip", "install", "--quiet", "-e", ".[tpu,eval]"]]
    assert machine.jobs() == TRAININGS and "--config.mesh.tensor=4" in machine.asked("python")[-1]


ABSENT = "NOT_FOUND: Resource 'projects/p/locations/us-east5-b/queuedResources/loong' was not found"
# A look at the queue is the next of the states in a file, or fails with that; hosts are folders, of which one is gone
# once if ~/lost is.
CLOUD = """
case "$*" in
  *" describe "*)
    state="$(head -n 1 states)"; sed -i 1d states
    [[ "$state" != *:* ]] || { echo "ERROR: (gcloud) $state" >&2; exit 1; }
    echo "$state" ;;
  *" ssh "*)
    for word in "$@"; do [[ "$word" != --command=* ]] || command="${word#--command=}"; done
    mkdir -p ~/"$5"/venv/bin && cd ~/"$5" && touch venv/bin/activate
    ! rm ~/lost 2>/dev/null || exit 255
    bash -c "$command" ;;
  *" scp "*) mkdir -p ~/"${6%%:*}" && cp "$5" ~/"${6%%:*}" ;;
esac
"""


@pytest.fixture
def cloud(machine) -> Machine:
    """A machine with gcloud, whose hosts are a folder, and a checkout under git."""
    machine.add("gcloud", CLOUD)
    for name in ("mountpoint", "sudo", "uv", "python3"):
        machine.add(name, "exit 1" if name == "mountpoint" else "")
    place = machine.folder / "checkout"
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "launch"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    return machine


def test_a_tpu_pod_is_asked_for_trains_and_is_given_back(cloud):
    (cloud.folder / "checkout" / "states").write_text(f"{ABSENT}\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    words = ["loong", "us-east5-b", "v6e-64", "10.0.0.2:/share", "7b", "--config.x=a b"]
    result = cloud.run("launch/tpu_pod.sh", *words, PAUSE="0")
    assert result.returncode == 0, result.stderr
    calls = [call for call in cloud.asked("gcloud") if "describe" not in call]
    assert [call[2:4] for call in calls] == [
        ["queued-resources", "create"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert {"--node-id=loong", "--spot", "--runtime-version=v2-alpha-tpuv6e"} <= set(calls[0])
    assert all("--zone=us-east5-b" in call for call in calls) and "--worker=all" in calls[2]
    assert ["mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/loong"] in cloud.asked("sudo")
    assert cloud.asked("uv")[-1] == ["pip", "install", "--quiet", "-e", ".[tpu,eval]"]
    assert cloud.jobs() == TRAININGS and "--config.x=a b" in cloud.asked("python")[-1]


def test_slices_are_one_training_and_lost_ones_are_asked_for_again(cloud):
    states = [ABSENT, "ACTIVE", "SUSPENDED", "SUSPENDED", ABSENT, "PROVISIONING", "ACTIVE"]
    (cloud.folder / "checkout" / "states").write_text("\n".join(states) + "\n")
    (cloud.folder / "lost").touch()
    words = ["loong", "us-east5-b", "v5litepod-256", "10.0.0.2:/share"]
    result = cloud.run("launch/tpu_pod.sh", *words, PAUSE="0", SLICES="2", SPOT="no")
    assert result.returncode == 0, result.stderr
    calls = [call[2:] for call in cloud.asked("gcloud")]
    created = [call for call in calls if "create" in call]
    assert len(created) == 2 and all({"--node-prefix=loong", "--node-count=2"} <= set(call) for call in created)
    assert all("--spot" not in call for call in created)
    assert len([call for call in calls if "delete" in call]) == 2
    reached = [call[2] for call in calls if call[:2] == ["tpu-vm", "ssh"]]
    assert sorted(reached) == ["loong-0", "loong-0", "loong-1", "loong-1"]


def test_a_look_that_fails_says_nothing_of_the_chips(cloud):
    """Before the training none are asked for; after one that failed it does not begin again."""
    states = ["UNAVAILABLE: try again", "ACTIVE", "UNAVAILABLE: try again", "INTERNAL: a fault", "ACTIVE"]
    (cloud.folder / "checkout" / "states").write_text("\n".join(states) + "\n")
    cloud.add("python", "exit 2")
    result = cloud.run("launch/tpu_pod.sh", "loong", "us-east5-b", "v5p-64", "10.0.0.2:/share", PAUSE="0")
    assert result.returncode == 2 and result.stderr.count("cannot look, trying again: ERROR: (gcloud) UNAVAIL") == 2
    assert [call[3] for call in cloud.asked("gcloud") if "describe" not in call] == ["scp", "ssh"]


def test_an_error_on_chips_that_are_there_is_said_and_not_tried_forever(cloud):
    (cloud.folder / "checkout" / "states").write_text("ACTIVE\nACTIVE\n")
    cloud.add("python", "exit 2")
    result = cloud.run("launch/tpu_pod.sh", "loong", "us-east5-b", "v5p-64", "10.0.0.2:/share", PAUSE="0")
    assert result.returncode == 2 and "error: the training ended with code 2" in result.stderr
    assert not [call for call in cloud.asked("gcloud") if "delete" in call]
    assert cloud.run("launch/tpu_pod.sh", "loong", "zone", "v9-1", "10.0.0.2:/share").returncode == 2


def examples() -> list[list[str]]:
    """The commands of the scripts' beginnings and of the page that leave nothing open, as words."""
    heads = [re.sub(r"^#", "", script.read_text().split("set -euo")[0], flags=re.MULTILINE) for script in SCRIPTS]
    lines = [line for head in heads for line in head.replace("\\\n", " ").splitlines() if line.startswith("   ")]
    commands = [shlex.split(line) for line in lines if " launch/" in line and "[" not in line]
    commands += [words for words in find_commands((LAUNCH / "README.md").read_text()) if "launch/" in "".join(words)]
    return [list(words) for words in dict.fromkeys(map(tuple, commands)) if "DIR" not in words and len(words) > 2]


def machines(words: list[str], slices: int) -> Devices:
    """The devices that a command is for."""
    line = " ".join(words)
    if found := re.search(r"(v5litepod|v5p|v6e)-(\d+)", line):
        kind, count = {"v5litepod": "v5e"}.get(found[1], found[1]), int(found[2])
        # Of v5p the number is that of cores, two a chip.
        return Devices(count * slices // (2 if kind == "v5p" else 1), int(CHIPS[kind].memory_gib * GIB), slices)
    if found := re.search(r"--nodes=(\d+) --gpus-per-node=(\d+)", line):
        return Devices(int(found[1]) * int(found[2]), int(0.92 * CHIPS["h100"].memory_gib * GIB), int(found[1]))
    kind, share = ("h100", 0.92) if "gpu_node" in line else ("v6e", 1)
    return Devices(8, int(share * CHIPS[kind].memory_gib * GIB))


def laid_out(mesh: MeshConfig, count: int) -> MeshConfig:
    """With the axis that takes the rest."""
    sizes = {axis: getattr(mesh, axis) for axis in sharding.MESH_AXES}
    rest = count // -math.prod(sizes.values())
    return dataclasses.replace(mesh, **{axis: rest if size == -1 else size for axis, size in sizes.items()})


def abstract(mesh: MeshConfig) -> AbstractMesh:
    return AbstractMesh(tuple(getattr(mesh, axis) for axis in sharding.MESH_AXES), sharding.MESH_AXES)


@functools.cache
def check_tokenizer_is_cut(job: TokenizerJob, mesh: MeshConfig) -> None:
    optimizer = make_optimizer(job.optimizer, job.train.num_steps, autoencoder.matrix_axes)
    create_tokenizer_state(job, optimizer, abstract(mesh), is_abstract=True)


def check_training(job: TokenizerJob | LanguageModelJob, there: Devices) -> None:
    """It can be cut over the devices, and has room on them by the package's own arithmetic."""
    if isinstance(job, TokenizerJob):
        mesh = laid_out(job.mesh, there.count)
        sharding.check_batch(abstract(mesh), job.train.batch_size)
        assert mesh.data % there.num_slices == 0 or mesh.fsdp % there.num_slices == 0
        check_tokenizer_is_cut(dataclasses.replace(job, data=DataConfig(), train=TrainConfig(), init_from=""), mesh)
        clips = job.train.batch_size / (mesh.data * mesh.fsdp) * job.data.num_frames / 17
        # As many GiB as launch/README.md says of 2 and 4 clips a chip.
        assert 14.2 + (clips - 2) / 2 * (20.9 - 14.2) < 0.9 * there.memory / GIB
        return
    length = row_length(job, job.tokenizer, max(job.data.pack, 1))
    shapes = Shapes(job.model, job.train.batch_size, length, accumulate=job.accumulate)
    needs = choose_mesh(shapes, there) if job.choose_mesh else estimate_needs(shapes, laid_out(job.mesh, there.count))
    mesh = abstract(needs.mesh)
    sharding.check_batch(mesh, job.train.batch_size // job.accumulate)
    sharding.tree_shardings(mesh, transformer.abstract_params(job.model)[1], transformer.logical_axes(job.model))
    assert needs.total < 0.9 * there.memory, str(needs)


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_a_documented_command_can_train_on_its_machines(words, cloud, monkeypatch):
    skip_options = 'while [[ "$1" == -* ]]; do shift; done'
    cloud.add("sbatch", f'{skip_options}; exec bash "$@"')
    cloud.add("srun", f'{skip_options}; exec "$@"')
    cloud.add("xpk", 'for word in "$@"; do [[ "$word" != --command=* ]] || bash -c "${word#--command=}"; done')
    cloud.add_environment()
    place = cloud.folder / "checkout"
    (place / "states").write_text("ACTIVE\n")
    given = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: word[0].isupper(), words))
    result = cloud.run(*words[len(given) :], SLURM_SUBMIT_DIR=str(place), **given)
    assert result.returncode == 0, result.stderr
    is_training = re.compile(r"configs/(tokenizer|stage\d)\.").search
    calls = [call for call in cloud.asked("python") if is_training(" ".join(call))]
    monkeypatch.chdir(ROOT)
    jobs = [parse_job(["python", *call])[0] for call in dict.fromkeys(map(tuple, calls))]
    assert [job.task for job in jobs] == ["tokenizer"] * 2 + ["language_model"] * 3
    for job in jobs:
        check_training(job, machines(words, int(given.get("SLICES", "1"))))


@pytest.mark.parametrize(
    "words",
    [
        "launch/tpu_pod.sh loong us-east5-b v6e-64 10.0.0.2:/share 7b",
        "SLICES=4 launch/tpu_pod.sh loong us-east5-b v6e-64 10.0.0.2:/share 7b --config.choose_mesh=True",
        "launch/tpu_pod.sh loong us-east5-b v5litepod-64 10.0.0.2:/share 7b --config.choose_mesh=True",
        "launch/gpu_node.sh videos runs 700m",
    ],
)
def test_a_command_that_cannot_train_would_be_found(words, cloud, monkeypatch):
    """Rows, channels, the memory of one chip, that of one GPU."""
    with pytest.raises((ConfigError, AssertionError), match="cannot be cut into|^assert"):
        test_a_documented_command_can_train_on_its_machines(words.split(), cloud, monkeypatch)
