"""A folder of videos and images, with captions from a table or from text files."""

import warnings
from pathlib import Path

from loong_jax.data.clips import MOST_CAPTION, Medium
from loong_jax.data.tables import read_rows
from loong_jax.video_file import EXTENSIONS, IMAGE_EXTENSIONS

_CAPTION_FIELDS = ("caption", "text")
_FILE_FIELDS = ("file_name", "file", "video", "image", "path")


def read_folder(path: str | Path) -> list[Medium]:
    """Every video and image under a folder, by name; nothing is opened but the captions.

    Captions come from a ``*.jsonl`` or ``*.csv`` file in the folder (fields file_name and caption or text), else from a
    ``.txt`` beside each file, else they are empty.

    Raises:
        ValueError: the folder is missing or holds neither, or a table of captions is malformed.
    """
    root = Path(path)
    if not root.is_dir():
        found = f"{path} is no folder" if root.exists() else f"Folder {path} does not exist"
        raise ValueError(f"{found}: name the one that holds your videos.")
    allowed = (*EXTENSIONS, *IMAGE_EXTENSIONS)
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in allowed)
    if not files:
        raise ValueError(f"Folder {path} holds no video or image: looked for {', '.join(allowed)}.")
    captions = _read_captions(root, files)
    return [Medium(str(file.relative_to(root)), file, captions.get(file, "")) for file in files]


def _read_captions(root: Path, files: list[Path]) -> dict[Path, str]:
    tables = [file for file in sorted(root.iterdir()) if file.suffix in (".jsonl", ".csv")]
    if not tables:
        return {file: _text_beside(file) for file in files if file.with_suffix(".txt").is_file()}
    known, absent = set(files), []
    captions = {}
    for table in tables:
        for line, row in read_rows(table):
            name = next((row[field] for field in _FILE_FIELDS if row.get(field)), None)
            caption = next((row[field] for field in _CAPTION_FIELDS if row.get(field) is not None), None)
            if not isinstance(name, str) or not isinstance(caption, str):
                raise ValueError(f"{table}, line {line}: a row needs the texts file_name and caption; it has {row}.")
            if root / name in known:
                captions[root / name] = caption.strip()
            else:
                absent.append(f"{table}, line {line}: {name}")
    if not captions:
        raise ValueError(
            f"{absent[0] if absent else tables[0]} is no file in {root}, nor is any other of the captions'."
        )
    if absent:
        warnings.warn(f"{len(absent)} captions are of files that are not in {root}, first {absent[0]}.", stacklevel=3)
    return captions


def _text_beside(file: Path) -> str:
    with file.with_suffix(".txt").open(encoding="utf-8", errors="replace") as text:
        return text.read(MOST_CAPTION).strip()
