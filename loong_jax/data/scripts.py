"""Prompts as Python gives them: what a video shows, or from which second on it shows what."""

import itertools
import math
import numbers

Prompt = str | list[tuple[float, str]]
Script = list[tuple[float, str]]  # the same, as it is read


def read_scripts(prompt: Prompt | list[Prompt]) -> tuple[list[Script], bool]:
    """Of every video the seconds and what it shows from then on; and whether they are a batch.

    Raises:
        ValueError: it is no text, its seconds do not grow from 0, or those of a batch differ.
    """
    is_batch = isinstance(prompt, (list, tuple)) and not any(_is_timed(part) for part in prompt)
    scripts = []
    for part in prompt if is_batch else [prompt]:
        script = [(0, part)] if isinstance(part, str) else part
        is_script = isinstance(script, (list, tuple)) and len(script) > 0 and all(map(_is_timed, script))
        if not is_script or not all(text.strip() for _, text in script):
            raise ValueError(f"A prompt must be some text or a list of (second, text); got {shortened(part)}.")
        seconds = [second for second, _ in script]
        if seconds[0] != 0 or not all(a < b < math.inf for a, b in itertools.pairwise(seconds)):
            raise ValueError(f"A prompt's seconds must begin with 0 and grow; got {shortened(seconds)}.")
        scripts.append([(float(second), checked_text(text)) for second, text in script])
    if not scripts or len({tuple(second for second, _ in script) for script in scripts}) > 1:
        wrong = "change at the same seconds, or be sampled one by one" if scripts else "be one or more"
        raise ValueError(f"The prompts of a batch must {wrong}; got {shortened(prompt)}.")
    return scripts, is_batch


def _is_timed(part) -> bool:
    """Whether it is (second, text)."""
    is_pair = isinstance(part, (list, tuple)) and len(part) == 2
    return is_pair and isinstance(part[0], numbers.Real) and isinstance(part[1], str)


def checked_text(text: str) -> str:
    """``text``; a ValueError where it holds what UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"The prompt {shortened(text)} is not Unicode text: give it in UTF-8.") from None
    return text


def shortened(value) -> str:
    """A value as a message shows it."""
    text = ascii(value) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
