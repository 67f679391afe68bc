"""What a release is: one version, and a wheel that works where nothing else of the repository is."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import loong_jax

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
LARGEST = 20 * 2**20  # bytes of a wheel


def test_the_top_level_holds_what_a_reader_looks_for_and_nothing_else():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    places = {line.split("/")[0] for line in listed.stdout.splitlines()}
    folders = {"configs", "launch", "loong_jax", "tests"}
    files = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert {place for place in places if not place.startswith(".")} == folders | files


def test_the_version_is_the_same_everywhere():
    version = loong_jax.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert [heading for heading in headings if heading != "Unreleased"][:1] == [version]


def test_the_citation_file_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["url"].removeprefix("https://") in (ROOT / "README.md").read_text()
    assert len(paper["authors"]) == 8


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout and nothing left there gets in."""
    folder = tmp_path_factory.mktemp("release")
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *arguments: str) -> str:
    """What Python prints where it finds this wheel, in a folder without anything of the repository."""
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel):
    assert wheel.stat().st_size < LARGEST
    assert wheel.name.startswith(f"loong_jax-{loong_jax.__version__}-py3-none-any")
    names = zipfile.ZipFile(wheel).namelist()
    files = {name.removeprefix("loong_jax/") for name in names if name.startswith("loong_jax/")}
    assert {name.split("/")[0] for name in names} == {"loong_jax", f"loong_jax-{loong_jax.__version__}.dist-info"}
    package = ROOT / "loong_jax"
    wanted = [*package.rglob("*.py"), *(package / "serving" / "page").iterdir(), *package.glob("assets/*.*")]
    wanted += (package / "assets" / "digits").iterdir()
    assert files == {str(path.relative_to(package)) for path in wanted} | {f"configs/{name}" for name in CONFIGS}


@pytest.mark.slow
def test_the_wheel_knows_every_config(unpacked, tmp_path):
    code = """
import json, sys
from loong_jax import config_dict
jobs = [config_dict.from_config_dict(config_dict.load_config(f"configs/{name}")) for name in sys.argv[1:]]
jobs += [config_dict.load_job("configs", f"{name.removesuffix('.py')}:debug") for name in sys.argv[1:]]
print(json.dumps([config_dict.__file__, [job.task for job in jobs]]))
"""
    path, tasks = json.loads(run(unpacked, tmp_path, "-c", code, *CONFIGS))
    assert Path(path).is_relative_to(unpacked) and len(tasks) == 2 * len(CONFIGS)


@pytest.mark.slow
def test_the_wheel_samples_from_the_model_that_it_brings(unpacked, tmp_path):
    settings = ["--config=configs/sample.py", "--config.sampling.seconds=10", "--config.outputs=mp4"]
    printed = run(unpacked, tmp_path, "-m", "loong_jax.main", *settings)
    [video] = (tmp_path / "runs" / "sample" / "samples").glob("*.mp4")
    assert f"wrote {video.relative_to(tmp_path)}" in printed
    assert loong_jax.read_video(video).shape[0] == 65
