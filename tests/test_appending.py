"""A record that does not fit is not begun."""

import subprocess
import sys


def test_a_record_is_appended_whole_or_not_at_all(tmp_path):
    code = """
import pathlib, resource, signal, sys
from loong_jax.appending import append_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
path = pathlib.Path(sys.argv[1])
append_whole(path, b"12345678")
try:
    append_whole(path, b"abcdefgh")  # of which the first two bytes have room
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "No space left on device" in result.stdout
    assert (tmp_path / "file").read_bytes() == b"12345678"
