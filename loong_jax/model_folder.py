"""A trained model as one folder, to keep, to hand on and to load: settings, weights, tokenizer and a card.

config.json                   how it was trained and is sampled, and which text ids it knows
language_model.safetensors    its weights
tokenizer.json, .safetensors  the tokenizer, whose codes its ids are
README.md                     the card
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from loong_jax import sharding
from loong_jax.config import LanguageModelJob
from loong_jax.config_dict import from_config_dict, to_json_dict
from loong_jax.data.text import TextTokenizer
from loong_jax.models import transformer
from loong_jax.tokenizer.video_tokenizer import VideoTokenizer
from loong_jax.weights_file import load_tree, rounded, save_tree

CONFIG, WEIGHTS, CARD = "config.json", "language_model.safetensors", "README.md"
PACKAGE = "package:"  # before the name of a model that travels with the package
_PACKAGED = Path(__file__).parent / "assets"
_FORMAT = "loong_jax 1"


def is_model_folder(folder: str | Path) -> bool:
    """Whether it is one, and not the workdir of a training."""
    return (Path(folder) / WEIGHTS).exists()


def packaged(name: str) -> Path:
    """The folder of a model that travels with the package.

    Raises:
        ValueError: there is none of that name.
    """
    names = sorted(path.parent.name for path in _PACKAGED.glob(f"*/{WEIGHTS}"))
    if name not in names:
        raise ValueError(f"{PACKAGE}{name} does not travel with loong_jax: there is {' and '.join(names)}.")
    return _PACKAGED / name


def write_model(
    folder: str | Path,
    job: LanguageModelJob,
    params: Any,
    tokenizer: VideoTokenizer,
    dtype: str = "float32",
    text_ids: list[int] | None = None,
) -> None:
    """Write all but the card.

    Args:
        folder: is made where there is none.
        job: the training that made it.
        params: of the transformer.
        tokenizer: whose ids it was trained on.
        dtype: of the weights in the files, one of ``weights_file.DTYPES``; of the tokenizer only its decoder is kept
            so, for ids are to stay what they are.
        text_ids: those that the model is to know; the embeddings of others are left out, and are zero when it is
            loaded. None: all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = tokenizer.save(folder, dtype)
    kept = _kept(job, text_ids)
    tables = {"embedding": params["embedding"][kept], "head": params["head"][:, kept]}
    save_tree(folder / WEIGHTS, rounded({**params, **tables}, dtype))
    described = {
        "format": _FORMAT,
        "job": to_json_dict(job),
        "tokenizer_fingerprint": fingerprint,
        "text_tokenizer_fingerprint": TextTokenizer().fingerprint,
        "text_ids": text_ids,
    }
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def read_model(folder: str | Path, mesh: Mesh) -> tuple[LanguageModelJob, Any, VideoTokenizer, list[int] | None]:
    """The training that made the model, its float32 parameters on the mesh, the tokenizer, and the text ids it knows.

    Raises:
        ValueError: a file is missing or damaged, or is of another model than the others.
    """
    folder = Path(folder)
    job, described = _read_config(folder)
    tokenizer = VideoTokenizer.load(folder)
    if tokenizer.fingerprint != described["tokenizer_fingerprint"]:
        raise ValueError(
            f"The model in {folder} was trained on ids of tokenizer {described['tokenizer_fingerprint']}, and the "
            f"folder holds {tokenizer.fingerprint}: export the model again."
        )
    text = TextTokenizer().fingerprint
    if text != described["text_tokenizer_fingerprint"]:
        raise ValueError(
            f"The model in {folder} reads texts with tokenizer {described['text_tokenizer_fingerprint']}, and this "
            f"version of loong_jax has {text}: install the version that exported the model."
        )
    _, abstract = transformer.abstract_params(job.model)
    kept = _kept(job, described["text_ids"])
    small = abstract | {
        "embedding": jax.ShapeDtypeStruct((len(kept), job.model.model_dim), jnp.float32),
        "head": jax.ShapeDtypeStruct((job.model.model_dim, len(kept)), jnp.float32),
    }
    params = load_tree(folder / WEIGHTS, small)
    embedding, head = (np.zeros(abstract[name].shape, np.float32) for name in ("embedding", "head"))
    embedding[kept], head[:, kept] = params["embedding"], params["head"]
    shardings = sharding.tree_shardings(mesh, abstract, transformer.logical_axes(job.model))
    params = jax.device_put(params | {"embedding": embedding, "head": head}, shardings)
    return job, params, tokenizer, described["text_ids"]


def _kept(job: LanguageModelJob, text_ids: list[int] | None) -> np.ndarray:
    """The rows of the embedding that are in the file: of texts, then those of video and the special ids."""
    texts = np.arange(job.model.num_text_ids) if text_ids is None else np.array(sorted(text_ids), int)
    return np.concatenate([texts, np.arange(job.model.num_text_ids, job.model.vocab_size)])


def _check_text_ids(text_ids: Any, job: LanguageModelJob) -> None:
    if text_ids is not None:
        whole = isinstance(text_ids, list) and all(type(number) is int for number in text_ids)
        if not whole or len(set(text_ids) & set(range(job.model.num_text_ids))) < len(text_ids):
            raise ValueError(f"text_ids must be different ids below {job.model.num_text_ids}")


def _read_config(folder: Path) -> tuple[LanguageModelJob, dict]:
    path = folder / CONFIG
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        job = from_config_dict(described["job"]) if described["format"] == _FORMAT else None
        if isinstance(job, LanguageModelJob):
            _check_text_ids(described["text_ids"], job)
    except FileNotFoundError:
        raise ValueError(f"There is no {path}: the model folder is not whole, copy or export it again.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a model ({error!r}): copy or export it again.") from None
    if not isinstance(job, LanguageModelJob):
        raise ValueError(
            f"{path} is of {described['format']!r}, and this version of loong_jax reads {_FORMAT!r}: export the model "
            "with this version, or install the one that it is of."
        )
    return job, described
