"""Does the heavier loss on early frames (Loong, section 3.3) teach early frames faster? At the demo's size.

    python tests/benchmarks/imbalance.py DEMO [--steps 120] [--seeds 3]

DEMO is the workdir of a finished configs/demo.py. Its stage-1 model goes on with clips of 65 frames at once, with the
weighting and without, several seeds each; prints the held-out cross-entropy (nats per id, unweighted) of the first five
latent frames and of the rest, mean and standard deviation over seeds, and by how much the weighting lowers it: two runs
of one seed see the same data in the same order, so their difference is steadier than either. Runs are kept in
DEMO/imbalance and go on where they were stopped.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from loong_jax.config import LossConfig
from loong_jax.config_dict import load_job
from loong_jax.evaluation.report import format_table
from loong_jax.training.lm_job import train_language_model
from loong_jax.training.metrics import read_metrics

EARLY, EVERY = 5, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain reads flags
    stage = load_job(Path(__file__).parents[2] / "configs", "demo").stage3
    train = dataclasses.replace(stage.train, num_steps=arguments.steps, eval_every=EVERY, log_every=EVERY)
    curves = {}  # (weight, seed) -> held-out loss [evaluation, frame]
    for seed in range(arguments.seeds):
        for weight in (0.0, 1.0):
            job = dataclasses.replace(
                stage,
                seed=seed,
                init_from="../../stage1",
                tokenizer_path="../../tokenizer",
                loss=LossConfig(early_frames=EARLY, early_weight=weight),
                train=train,
            )
            workdir = arguments.demo / "imbalance" / f"lambda_{weight:g}_seed_{seed}"
            workdir.mkdir(parents=True, exist_ok=True)
            train_language_model(job, workdir, arguments.demo / "tokens")
            records = [record for record in read_metrics(workdir) if record["split"] == "eval"]
            curves[weight, seed] = np.array([record["frame_loss"] for record in records])
    rows = []
    for index in range(arguments.steps // EVERY):
        row = {"step": (index + 1) * EVERY}
        for name, part in (("early", slice(0, EARLY)), ("late", slice(EARLY, None))):
            losses = np.array(
                [[curves[weight, seed][index, part].mean() for seed in range(arguments.seeds)] for weight in (0.0, 1.0)]
            )
            values = {"lambda 0": losses[0], "lambda 1": losses[1], "lower by": losses[0] - losses[1]}
            row |= {f"{name}, {what}": f"{x.mean():.3f} ± {x.std():.3f}" for what, x in values.items()}
        rows.append(row)
    print(format_table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
