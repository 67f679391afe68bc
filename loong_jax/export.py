"""Run an ExportJob: a trained model into a folder of its own, for ``load``, for the hub, or as a LLaMA for others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from loong_jax import hub, pipeline
from loong_jax.config import ExportJob, LanguageModelJob
from loong_jax.data.text import TextTokenizer
from loong_jax.interop.hf_llama import from_hf, hf_config, load_safetensors, save_safetensors, to_hf
from loong_jax.model_folder import CARD, write_model
from loong_jax.pipeline import Pipeline
from loong_jax.training.metrics import say


def run_export(job: ExportJob, workdir: Path) -> Path:
    """Write the model that ``job`` names to ``<workdir>/model``, as a LLaMA to ``<workdir>/llama``, and to the hub.

    Raises:
        ValueError: the model, its weights or a file of texts or results cannot be read, or the hub refuses.
    """
    pipe = pipeline.load(pipeline.found(job.model_path, workdir))
    results = _read_results(job.results) if job.results else {}
    params, known = jax.device_get(pipe.params), pipe.known_text_ids
    if job.llama_weights:
        known = None
        params = from_hf(_read_llama(Path(job.llama_weights)), pipe.job.model)
    folder = workdir / ("llama" if job.format == "llama" else "model")
    folder.mkdir(parents=True, exist_ok=True)
    if job.format == "llama":
        if known is not None:
            say(f"The model knows {len(known)} ids of texts: of the others, the LLaMA's embeddings are zero.")
        save_safetensors(folder / "model.safetensors", to_hf(params, pipe.job.model))
        (folder / "config.json").write_text(json.dumps(hf_config(pipe.job.model), indent=2) + "\n", encoding="utf-8")
    else:
        if job.texts_file:
            asked = _text_ids(Path(job.texts_file))
            known = asked if known is None else asked & known
        text_ids = None if known is None else sorted(known)
        write_model(folder, pipe.job, params, pipe.generator.tokenizer, job.dtype, text_ids)
        (folder / CARD).write_text(_card(job, pipe, params, results), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"wrote {folder}, {size / 2**20:.1f} MiB")
    if job.upload:
        say(f"it is at {hub.upload(folder, job.upload)}")
    return folder


def _text_ids(path: Path) -> frozenset[int]:
    """The ids of all texts in a file, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"texts_file {path} cannot be read as UTF-8 text: {error}.") from None
    text = TextTokenizer()
    return frozenset(number for line in lines for number in text.encode(line))


def _read_llama(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of all safetensors files in a folder, or of one file."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"There are no safetensors in {folder}: give the folder of a LlamaForCausalLM.")
    return {name: value for file in files for name, value in load_safetensors(file).items()}


def _read_results(file: str) -> dict[str, Any]:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"results {file} cannot be read as JSON: {error}.") from None


def _card(job: ExportJob, pipe: Pipeline, params: Any, results: dict[str, Any]) -> str:
    """The page that says what the model is, in the hub's format."""
    training, tokenizer = pipe.job, pipe.generator.tokenizer
    model, size = training.model, pipe.frame_size
    count = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    codec = sum(x.size for x in jax.tree.leaves(tokenizer.params)) / 1e6
    measured = "".join(f"| {name} | {value:.4g} |\n" for name, value in _numbers(results))
    table = f"\n## Measured\n\n| what | value |\n|---|---|\n{measured}" if measured else ""
    sampling = "\n".join(f"- {name}: {value}" for name, value in _chosen(training))
    return f"""---
license: apache-2.0
library_name: loong_jax
pipeline_tag: text-to-video
tags: [jax, text-to-video, autoregressive]
---

# A Loong model: text to video of {size}x{size} pixels at {pipe.fps:g} frames a second

Made with [loong_jax](https://arxiv.org/abs/2410.02757), an open implementation of Loong. A transformer of {count:.1f}M
parameters ({model.num_layers} layers of width {model.model_dim}) over ids of text and video, and a causal video
tokenizer of {codec:.1f}M parameters with {model.num_video_ids:,} codes.

```python
import loong_jax

pipe = loong_jax.load("DIR")  # this folder
loong_jax.write_video("video.mp4", pipe("{job.example}", seconds=60), fps=pipe.fps)
```

```bash
python -m loong_jax.main --config=configs/sample.py --workdir=runs/sample \\
    --config.model_path=DIR --config.prompt="{job.example}"
```

## Training

Last stage: {training.train.num_steps} steps on {training.train.batch_size} clips of {training.data.num_frames} frames
of `{training.data.source}`, seed {training.seed}, with {training.optimizer.name}; all settings are in `config.json`.
{f"Command: `{job.command}`" if job.command else ""}

## Sampling

As `load` samples it where nothing else is asked for:

{sampling}
{table}"""


def _chosen(job: LanguageModelJob) -> Iterator[tuple[str, Any]]:
    for name in ("temperature", "top_k", "guidance_scale", "continuation", "text_change"):
        yield name, getattr(job.sampling, name)
    for name in ("continuation_temperature", "continuation_guidance_scale"):
        if getattr(job.sampling, name):
            yield name, getattr(job.sampling, name)


def _numbers(results: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested results, each under the names that lead to it."""
    for name, value in results.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{before}{name} ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{before}{name}", value
