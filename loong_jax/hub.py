"""Model folders on the Hugging Face Hub; needs the extra [hub]."""

import re
from pathlib import Path
from types import ModuleType

HUB = "hf:"  # before OWNER/NAME, where a folder could be named instead
_FILES = ["*.json", "*.safetensors", "*.md"]


def fetch(name: str) -> Path:
    """The folder that OWNER/NAME is kept in on this machine, fetched where it is not there yet.

    Raises:
        ValueError: the name is malformed, the extra is missing, or the hub does not give it.
    """
    hub = _hub(name)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # of many types, of this library and those below it
        raise ValueError(f"{HUB}{name} cannot be fetched: {_first_line(error)}") from None


def upload(folder: Path, name: str) -> str:
    """Put a model folder on the hub as OWNER/NAME, private where it is new; returns its address.

    Raises:
        ValueError: as of ``fetch``.
    """
    hub = _hub(name)
    try:
        hub.HfApi().create_repo(name, private=True, exist_ok=True)
        hub.HfApi().upload_folder(repo_id=name, folder_path=folder, allow_patterns=_FILES)
    except Exception as error:  # as above
        raise ValueError(f"{folder} cannot be put on the hub as {name}: {_first_line(error)}") from None
    return f"https://huggingface.co/{name}"


def _hub(name: str) -> ModuleType:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{HUB}{name} is not possible: write {HUB}OWNER/NAME.")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError('Models on the hub need huggingface_hub: pip install "loong_jax[hub]".') from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
