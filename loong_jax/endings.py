"""How a run ends other than well: an exception for each way, with the exit code that schedulers and scripts see.

2 is bad input, or what else a sentence can mend: ValueError and OSError.
"""

import os


class Ended(Exception):
    """The run ends here, and its message says why and what happens at the next start."""

    exit_code: int


class Stopped(Ended):
    """A signal asked for it; the same command goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


class PeerDied(Ended):
    """Another process of the same training is gone."""

    exit_code = 4


class GaveUp(Ended):
    """The training cannot go on by itself."""

    exit_code = 3


def end_at_once(exit_code: int) -> None:
    """End the process, whatever its threads do; the terminal's cursor, which a progress bar hides, is shown again."""
    if os.isatty(1):
        os.write(1, b"\x1b[?25h")
    os._exit(exit_code)
