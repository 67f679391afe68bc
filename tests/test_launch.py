"""The scripts in launch/: shellcheck finds nothing, and beside false commands of clusters they ask for what is right.

Nothing is trained: ``python`` and the tools of clouds only write down what they are asked to do.
"""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
TRAININGS = ["image_tokenizer", "tokenizer", "stage1", "stage2", "stage3"]


class Machine:
    """A folder of commands that come before the real ones, a copy of the scripts, and what the commands were asked."""

    def __init__(self, folder: Path):
        self.folder, self._commands = folder, folder / "bin"
        self._commands.mkdir()
        shutil.copytree(LAUNCH, folder / "checkout" / "launch")
        self.add("python")

    def add(self, name: str, script: str = "") -> None:
        """A command that writes down its arguments, then runs ``script``."""
        path = self._commands / name
        # In one piece: commands of several hosts write at once.
        note = f'printf "%s\\n" "$(printf "%q " {name} "$@")" >> {self.folder}/asked'
        path.write_text(f"#!/usr/bin/env bash\n{note}\n{script}\n")
        path.chmod(0o755)

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
        """The arguments of every call of a command."""
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_reaches_the_training_once(number, to_group, machine):
    """Sent to the script alone, as containers do, or to all processes of the step, as Slurm and terminals do."""
    saving = 'count=0; trap "count=\\$((count + 1))" TERM; echo begun > begun; until ((count)); do sleep 0.05; done'
    machine.add("python", f'{saving}; sleep 0.5; echo "$count" > count; exit 75')
    with machine.start("launch/recipe.sh", "videos", "runs") as process:
        for _ in range(200):
            time.sleep(0.05)
            if (machine.folder / "checkout" / "begun").exists():
                break
        os.killpg(process.pid, number) if to_group else process.send_signal(number)
        assert process.wait(timeout=30) == 75
    assert (machine.folder / "checkout" / "count").read_text() == "1\n" and machine.jobs() == TRAININGS[:1]


def test_a_gpu_node_installs_and_looks_before_it_trains(machine):
    activate = machine.folder / "checkout" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    assert machine.run("launch/gpu_node.sh", "videos", "runs", "debug").returncode == 0
    assert machine.asked("python")[0] == ["-m", "pip", "install", "--quiet", "-e", ".[cuda,eval]"]
    assert machine.jobs() == ["doctor", *TRAININGS, "sample"]


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (2, False), (3, False), (4, True), (75, True)])
def test_a_slurm_job_that_was_stopped_is_queued_again(code, queued_again, machine):
    activate = machine.folder / "checkout" / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    machine.add("srun", 'while [[ "$1" == -* ]]; do shift; done; exec "$@"')
    machine.add("scontrol")
    machine.add("python", f'[[ "$*" != *stage3* ]] || exit {code}')
    place = {"SLURM_SUBMIT_DIR": str(machine.folder / "checkout"), "SLURM_JOB_ID": "7"}
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


# A look at the queue is the next of the states in a file; hosts are folders, of which one is gone once if ~/lost is.
CLOUD = """
case "$*" in
  *" describe "*) head -n 1 states; sed -i 1d states ;;
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
    (cloud.folder / "checkout" / "states").write_text("\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
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
    states = ["", "ACTIVE", "SUSPENDED", "SUSPENDED", "", "PROVISIONING", "ACTIVE"]
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


def test_an_error_on_chips_that_are_there_is_said_and_not_tried_forever(cloud):
    (cloud.folder / "checkout" / "states").write_text("ACTIVE\nACTIVE\n")
    cloud.add("python", "exit 2")
    result = cloud.run("launch/tpu_pod.sh", "loong", "us-east5-b", "v5p-64", "10.0.0.2:/share", PAUSE="0")
    assert result.returncode == 2 and "error: the training ended with code 2" in result.stderr
    assert not [call for call in cloud.asked("gcloud") if "delete" in call]
    assert cloud.run("launch/tpu_pod.sh", "loong", "zone", "v9-1", "10.0.0.2:/share").returncode == 2
