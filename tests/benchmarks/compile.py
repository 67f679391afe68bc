"""The 7B stage-3 step compiled for 64 TPU v5p, against MaxText's, in the same run; no TPU is needed.

    python tests/benchmarks/compile.py

In an environment with `pip install "maxtext[tpu]"` and this package. Both train one sequence of 4,608 ids a chip with
full rematerialization and parameters cut over all chips. Prints GiB that a step needs on a chip besides its arguments,
and the compiler's estimate of its seconds, from models of two and four layers without a loop, which it would count
once; the few parts of our head and loss are such a loop, a four-hundredth of the step.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LAYERS, DEPTHS, CHIPS, LENGTH = 32, (2, 4), 64, 4608
MAXTEXT = f"""-m maxtext.trainers.pre_train.train_compile model_name=llama2-7b override_model_config=true
compile_topology=v5p-{2 * CHIPS} compile_topology_num_slices=1 per_device_batch_size=1 max_target_length={LENGTH}
vocab_size=40202 ici_fsdp_parallelism={CHIPS} remat_policy=full run_name=peer base_output_directory=out
enable_checkpointing=false dataset_type=synthetic skip_jax_distributed_system=true""".split()


def maxtext(*settings: str) -> tuple[float, float]:
    """GiB of work and the compiler's seconds of MaxText's step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *MAXTEXT, *settings]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    temp, seconds = (
        re.search(pattern, printed) for pattern in (r"temp_size_in_bytes=(\d+)", r"'optimal_seconds': ([\d.e-]+)")
    )
    if not (temp and seconds):
        raise RuntimeError("MaxText did not compile: " + printed[-2000:])
    return int(temp.group(1)) / 2**30, float(seconds.group(1))


def carried_on(seconds: list[float]) -> float:
    """From those of ``DEPTHS`` layers to those of all."""
    return seconds[0] + (seconds[1] - seconds[0]) / (DEPTHS[1] - DEPTHS[0]) * (LAYERS - DEPTHS[0])


def ours() -> tuple[float, float]:
    """GiB of work and the compiler's seconds of our step."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "target": "v5p:4x4x4",
            "experiment": "stage3:7b",
            "length": LENGTH,
            "batch_sizes": f"({CHIPS},)",
            "compiler_time": True,
        }
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "loong_jax.main", "--config=configs/estimate.py", f"--workdir={folder}"]
        subprocess.run([*command, *flags], cwd=Path(__file__).parents[2], check=True)
        [row] = json.loads((Path(folder) / "results.json").read_text())["rows"]
    return row["work"], row["compiler s"]


def main() -> None:
    peer, _ = maxtext()
    peer_seconds = carried_on([maxtext("scan_layers=false", f"base_num_decoder_layers={depth}")[1] for depth in DEPTHS])
    print(f"MaxText: {peer:.3f} GiB, {peer_seconds:.3f} s")
    work, seconds = ours()
    print(f"loong_jax: {work:.3f} GiB ({work / peer:.2f}), {seconds:.3f} s ({seconds / peer_seconds:.2f})")


if __name__ == "__main__":
    main()
