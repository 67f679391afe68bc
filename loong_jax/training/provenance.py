"""What a checkpoint says of the training it is from, and whether another one may go on from it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from loong_jax.config import ConfigError, Job, LanguageModelJob
from loong_jax.config_dict import from_config_dict, to_json_dict
from loong_jax.vocab import SPECIALS

# Settings of a model that change how it is computed or trained, not what it is.
_HOW = {"remat", "scan_layers", "compute_dtype", "attention", "dropout", "max_length"}
_HOW |= {"clustering", "anchor", "decay", "commitment_weight", "codebook_weight", "start_step"}
_HOW |= {"dead_after", "usage_alarm"}
# Settings that say nothing of what a finished training has made.
_WITHOUT_EFFECT = ("train.", "mesh.", "choose_mesh ", "tokenizer_path ", "data.num_threads ", "data.num_workers ")


def describe(job: Job, **fingerprints: str) -> dict:
    """The meta of a checkpoint: the resolved settings, the vocabulary and its ``fingerprints``, and the code."""
    code = {"source": _source_hash(), "jax": jax.__version__}
    meta = {"config": to_json_dict(job), "code": code, **fingerprints}
    if isinstance(job, LanguageModelJob):
        meta["vocabulary"] = {"text": job.model.num_text_ids, "video": job.model.num_video_ids, "special": SPECIALS}
    return json.loads(json.dumps(meta))  # as it will be read


def check_same_model(stored: dict, wanted: dict, workdir: Path) -> None:
    """Raise ValueError, which names what differs, where ``stored`` is of another model or vocabulary."""
    task = wanted["config"]["task"]
    differing = list(_differences(stored["config"]["task"], task, "config.task"))
    metas = (meta | {"config": _completed(meta["config"])} for meta in (stored, wanted))
    differing = differing or [line for line in _differences(*metas) if _is_of_model(line.split(" ")[0], task)]
    if differing:
        raise ValueError(
            f"The checkpoint in {workdir} is of another model: {'; '.join(differing[:3])}"
            f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}. "
            "Use the settings and the tokenizer it was trained with, or another folder."
        )


def changed_settings(stored: dict, wanted: dict) -> list[str]:
    """The settings that a training which goes on has got since, each as "name is value, wanted value"."""
    return list(_differences(_completed(stored["config"]), _completed(wanted["config"])))


def check_finished(stored: dict, wanted: dict, workdir: Path, num_steps: int) -> None:
    """Raise ValueError where a training that has all its steps is started again with other settings."""
    changes = [line for line in changed_settings(stored, wanted) if not line.startswith(_WITHOUT_EFFECT)]
    if changes:
        raise ValueError(
            f"The training in {workdir} has done its {num_steps} steps with other settings: {'; '.join(changes[:3])}. "
            "Name another --workdir, or raise --config.train.num_steps to go on with these."
        )


def _completed(config: dict) -> dict:
    """Settings with the defaults of those that they lack: in an older checkpoint, what is new in this version."""
    try:
        return json.loads(json.dumps(to_json_dict(from_config_dict(config))))
    except ConfigError:  # of another version in more than that: let the differences say so
        return config


def _differences(stored: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in stored | wanted:
            yield from _differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif stored != wanted:
        yield f"{name} is {stored!r}, wanted {wanted!r}"


def _is_of_model(name: str, task: str) -> bool:
    group, *rest = name.split(".")
    if group != "config":
        return group.endswith("fingerprint") or group == "vocabulary"
    # What a language model needs of its tokenizer is in the fingerprint.
    return rest[0] == ("tokenizer" if task == "tokenizer" else "model") and rest[-1] not in _HOW


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
