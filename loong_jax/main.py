"""The command line.

    python -m loong_jax.main --config=configs/NAME.py[:variant] [--workdir=DIR] [--config.field=value ...]

Parses flags, turns the ConfigDict into a job, writes ``<workdir>/config.json`` and runs the job.
"""

import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from loong_jax import config, distributed
from loong_jax.command_line import explain, help_text, locate_config, one_line, wants_help
from loong_jax.config import ConfigError
from loong_jax.config_dict import from_config_dict, to_json_dict
from loong_jax.endings import Ended, Stopped, end_at_once
from loong_jax.peers import together

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/, e.g. configs/stage2.py:debug.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and samples: runs/NAME by default.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", True, "Join the job's other processes: see loong_jax/distributed.py.")

_OF_MODELS = ("checkpoints", "language_model.safetensors")  # in the folders of trainings and of exported models


def run_job(job: config.Job, workdir: Path) -> None:
    """Run ``job`` in ``workdir``; what an earlier run has finished there is not done again."""
    if isinstance(job, config.DoctorJob):  # before anything is written: the disk may be what is broken
        from loong_jax.doctor import run_doctor

        findings = run_doctor(job, workdir)
        if any(finding.status == "broken" for finding in findings):
            distributed.leave(1)
        return
    distributed.check_task(job.task)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file: name a folder, which is made where there is none.")
    workdir.mkdir(parents=True, exist_ok=True)
    is_training = isinstance(job, config.TokenizerJob | config.LanguageModelJob)
    if not is_training and any((workdir / name).exists() for name in _OF_MODELS):
        raise ValueError(
            f"--workdir={workdir} holds a trained model, and {job.task} writes files of its own: name another folder."
        )
    if distributed.is_first() and not is_training:  # which writes it once it has checked what it needs
        (workdir / "config.json").write_text(json.dumps(to_json_dict(job), indent=2) + "\n")
    # Imported here, so that a mistake in the settings is found before JAX starts.
    match job:
        case config.TokenizerJob():
            from loong_jax.training.tokenizer_job import train_tokenizer

            train_tokenizer(job, workdir)
        case config.TokenizeJob():
            from loong_jax.training.tokenize import run_tokenize

            run_tokenize(job, workdir)
        case config.CheckDataJob():
            from loong_jax.evaluation.data import check_data

            check_data(job, workdir)
        case config.LanguageModelJob():
            from loong_jax.previews import Previews
            from loong_jax.training.lm_job import train_language_model

            train_language_model(job, workdir, preview=Previews(job))
        case config.SampleJob():
            from loong_jax.sample import run_sample

            run_sample(job, workdir)
        case config.ServeJob():
            from loong_jax.serving.server import run_serve

            run_serve(job, workdir)
        case config.DemoJob():
            from loong_jax.demo import run_demo

            run_demo(job, workdir)
        case config.ClaimsJob():
            from loong_jax.claims.experiment import run_claims

            run_claims(job, workdir)
        case config.EvaluateJob():
            from loong_jax.evaluate import run_evaluate

            run_evaluate(job, workdir)
        case config.ExportJob():
            from loong_jax.export import run_export

            run_export(job, workdir)
        case config.EstimateJob():
            from loong_jax.estimate import run_estimate

            run_estimate(job, workdir)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but a mistake in the settings is one sentence rather than a traceback, and help is of ours."""
    try:
        text = help_text(argv[1:]) if wants_help(argv) else ""
    except ConfigError as error:
        _fail(str(error))
    if text:
        with contextlib.suppress(BrokenPipeError):  # of a reader who has seen enough
            print(text, flush=True)
        distributed.leave(0)
    try:
        rest = flags.FLAGS(locate_config(argv))
        if _CONFIG.value is None:
            raise ValueError("there is no --config")  # of which ``explain`` says more
        values = _CONFIG.value.to_dict()  # a file that failed to load raises here, not when it was parsed
        if flags.FLAGS.only_check_args:  # with which absl ends after this
            from_config_dict(values)
        return rest
    except Exception as error:  # of many types: a config file is code, and its settings are parsed in many ways
        _fail(explain(argv[1:], error))


def _main(argv: list[str]) -> None:
    logging.set_verbosity(logging.FATAL)  # the libraries' own notes; progress and warnings are printed
    warnings.formatwarning = lambda message, *_: f"warning: {distributed.process_label()}{message}\n"
    try:
        if len(argv) > 1:
            raise ValueError(f"{argv[1]!r} is not a flag: settings are written --config.field=value.")
        job = from_config_dict(_CONFIG.value)
        if _DISTRIBUTED.value and not isinstance(job, config.DoctorJob):  # which looks at one host
            distributed.connect()
        with together(job):
            run_job(job, _workdir())
    except (ValueError, OSError) as error:
        if flags.FLAGS.pdb:
            raise
        _fail(one_line(error))
    except (MemoryError, RuntimeError) as error:
        from loong_jax import out_of_memory

        if flags.FLAGS.pdb or not out_of_memory.is_out_of_memory(error):
            raise
        _fail(out_of_memory.explain(job, _workdir(), error))
    except Ended as end:  # all processes alike
        print(f"{distributed.process_label()}{end}", file=sys.stderr)
        sys.exit(end.exit_code)


def _workdir() -> Path:
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem  # without its variant
    return Path(_WORKDIR.value or f"runs/{name}")


def _fail(message: str) -> None:
    print(f"error: {distributed.process_label()}{message}", file=sys.stderr)
    distributed.leave(2)


def _end(*_) -> None:
    """End at once, at Ctrl-C outside a training; an exception is lost where JAX has the garbage collector call it."""
    os.write(2, f"{distributed.process_label()}interrupted: the same command goes on.\n".encode())
    end_at_once(Stopped.exit_code)


def _with_huge_pages() -> None:
    """Start anew with the C library asking Linux for huge pages, which it reads once, at the start.

    XLA gets and returns its arrays on the CPU at every step, and their pages of 4 kB took a sixth of a training's time.
    """
    setting = "glibc.malloc.hugetlb"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and setting not in tunables and sys.orig_argv:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{setting}=1"]))
        os.execv(sys.executable, sys.orig_argv)


def run() -> None:
    """Entry point."""
    _with_huge_pages()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of what a shell starts in the background
        signal.signal(signal.SIGINT, _end)
    app.run(_main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
