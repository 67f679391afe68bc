"""Prompts as users write them: on the command line, in a file, or on standard input."""

import re
import sys
import warnings
from pathlib import Path


def read_prompts(line: str, file: str = "") -> list[str]:
    """The prompts of ``line``, separated by "|", or where ``file`` is given one of each of its lines.

    Args:
        line: what the command line says.
        file: a UTF-8 text file, or "-" for standard input; empty lines are passed over.

    Raises:
        ValueError: the file is missing or not UTF-8, or there is no prompt.
    """
    if not file:
        prompts, origin = line.split("|"), f"prompt={line!r}"
    else:
        content, origin = _content(file), "standard input" if file == "-" else f"prompts_file {file}"
        prompts = _decoded(content, origin).splitlines()
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise ValueError(f"There is no prompt in {origin}: give some text.")
    return prompts


def parse_prompt(line: str) -> str | list[tuple[float, str]]:
    """A prompt as ``Pipeline`` takes it: "a red 7 @20s a blue 3" shows another text from second 20 on."""
    text, *rest = re.split(r"\s@(\d+(?:\.\d+)?)s\s", line)
    for words in (text, *rest[1::2]):
        if near := re.search(r"(?<!\S)@\d\S*", words):
            warnings.warn(
                f"{near[0]!r} is read as words of the prompt: a change of the text is written between two, as in "
                '"a red 7 @20s a blue 3".',
                stacklevel=2,
            )
    if not rest:
        return line
    return [
        (0.0, text.strip()),
        *((float(second), text.strip()) for second, text in zip(rest[::2], rest[1::2], strict=True)),
    ]


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    if not Path(file).is_file():
        raise ValueError(f"prompts_file {file} does not exist: give a text file with a prompt on each line, or - .")
    return Path(file).read_bytes()


def _decoded(content: bytes, origin: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ValueError(f"Line {number} of {origin} is not UTF-8 text: save it as UTF-8.") from None
