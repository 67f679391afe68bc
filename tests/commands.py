"""Commands as pages, configs and the notebook show them: split into words, and parsed into jobs as ``main`` does it."""

import dataclasses
import os
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

from absl import flags
from ml_collections import config_flags

from loong_jax.config import (
    CheckDataJob,
    DemoJob,
    EvaluateJob,
    ExportJob,
    LanguageModelJob,
    SampleJob,
    ServeJob,
    TokenizeJob,
    TokenizerJob,
)
from loong_jax.config_dict import from_config_dict
from loong_jax.model_folder import PACKAGE

MAIN = ["python", "-m", "loong_jax.main"]


def find_commands(page: str) -> list[list[str]]:
    """The commands in the bash blocks and the code spans of a Markdown page, each as a list of words."""
    commands = []
    for kind, block, span in re.findall(r"^```(\w*)\n(.*?)^```$|`([^`]+)`", page, re.DOTALL | re.MULTILINE):
        span = " ".join(span.split())  # which may go over the end of a line
        if kind == "bash" or _is_command(span):
            commands += split_commands(span or block)
    return commands


def _is_command(span: str) -> bool:
    return re.match(r"([A-Z_]+=\S+\s+)*(python3?|pip|pytest|tensorboard|sbatch|launch/\w+\.sh)\s", span) is not None


def split_commands(script: str) -> list[list[str]]:
    """The commands of a script, each as a list of words."""
    lines = script.replace("\\\n", " ").splitlines()
    parts = [part for line in lines if not line.strip().startswith("#") for part in re.split(r"&&|;", line)]
    return [shlex.split(part, comments=True) for part in parts if part.strip()]


def parse_job(command: list[str]):
    """The job and the workdir of a command, read with flags like ``main``'s; fails where main would."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
    with mock.patch.object(sys, "argv", command[2:]):  # where ml_collections looks for overrides
        rest = values(command[2:])
    assert rest == command[2:3], f"{rest[1:]} are no flags"
    name = Path(config_flags.get_config_filename(values["config"])).stem
    return from_config_dict(config.value), Path(workdir.value or f"runs/{name}")


def trained_by(job, workdir: Path) -> dict[Path, TokenizerJob | LanguageModelJob]:
    """The workdirs that hold a finished training after ``job`` has run."""
    if isinstance(job, DemoJob):
        names = [field.name for field in dataclasses.fields(job)]
        inner = {workdir / name: getattr(job, name) for name in names}
        return {path: part for path, part in inner.items() if isinstance(part, (TokenizerJob, LanguageModelJob))}
    return {workdir: job} if isinstance(job, (TokenizerJob, LanguageModelJob)) else {}


def check_order(commands: list[list[str]]) -> None:
    """Every job finds what it starts from in the workdir of an earlier command, with the same model in it."""
    trained = {}
    for command in commands:
        job, workdir = parse_job(command)
        needed = {"init_from": getattr(job, "init_from", "")}
        if isinstance(job, LanguageModelJob) and not job.allow_untrained_tokenizer:
            needed["tokenizer_path"] = job.tokenizer_path
        if isinstance(job, EvaluateJob) and not job.videos and not job.model_path:
            needed["tokenizer_path"] = job.tokenizer_path
        if isinstance(job, TokenizeJob | CheckDataJob):
            needed["tokenizer_path"] = job.tokenizer_path
        if isinstance(job, SampleJob | ServeJob | EvaluateJob | ExportJob):
            needed["model_path"] = job.model_path
        found = {}
        for field, path in needed.items():
            if path and not path.startswith(PACKAGE):
                place = Path(os.path.normpath(workdir / path))
                assert place in trained, f"{shlex.join(command)}: nothing before it trains {field} {place}"
                found[field] = trained[place]
        if isinstance(job, TokenizerJob) and "init_from" in found:
            assert found["init_from"].tokenizer == job.tokenizer
        if isinstance(job, LanguageModelJob) and "init_from" in found:
            assert found["init_from"].model == job.model
        if "tokenizer_path" in found and isinstance(job, LanguageModelJob):
            assert found["tokenizer_path"].tokenizer.quantizer.num_codes == job.model.num_video_ids
        if "model_path" in found:
            assert isinstance(found["model_path"], LanguageModelJob)
        trained |= trained_by(job, workdir)
