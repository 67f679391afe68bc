"""Loong's claims as an experiment on the embedded moving digits: what each part of the recipe brings.

    python -m loong_jax.main --config=configs/claims.py --workdir=runs/claims

Trains and samples the base recipe and the arms that differ from it in one thing each (loong_jax/claims/arms.py), three
seeds, one seed after the other. The same command goes on where it was stopped: claims.json has every arm that is done,
README.md beside it says what the arms show so far (`python -m loong_jax.claims.page runs/claims` writes that anew).
`:debug` does all of it once, with models too small to be any good.

Models of this size are trained and sampled about as fast on one core as on two. So seeds are best run side by side, a
process and a core for each, which fill one claims.json:

    for seed in 0 1; do
        taskset -c $seed python -m loong_jax.main --config=configs/claims.py --workdir=runs/claims \
            --config.first_seed=$seed --config.num_seeds=1 &
    done; wait

A seed takes two hours of a core or a little more: half an hour for the base, some minutes for each other arm.
"""

import dataclasses
from pathlib import Path

from loong_jax.config import ClaimsJob, DemoJob
from loong_jax.config_dict import load_job, parse_variant, to_config_dict

# The demo's recipe with fewer steps, which leaves each part of it something to bring.
STEPS = {"image_tokenizer": 400, "tokenizer": 200, "stage1": 200, "stage2": 500, "stage3": 150}
NUM_CLIPS = 4096  # of 65 frames, of which stage 2 reads the first 17: with one stage or three, the same are seen


def get_config(variant: str = ""):
    is_debug = "debug" in parse_variant(variant, ("debug",))
    demo = load_job(Path(__file__).parent, "demo:debug" if is_debug else "demo")
    job = _from_demo(demo, {} if is_debug else STEPS, 16 if is_debug else NUM_CLIPS)
    if is_debug:
        sampling = dataclasses.replace(job.stage3.sampling, seconds=20.0)
        stage3 = dataclasses.replace(job.stage3, sampling=sampling)
        job = dataclasses.replace(job, stage3=stage3, num_seeds=1, num_prompts=2, num_clips=4)
    return to_config_dict(job)


def _from_demo(demo: DemoJob, num_steps: dict[str, int], num_clips: int) -> ClaimsJob:
    parts = {name: getattr(demo, name) for name in ("image_tokenizer", "tokenizer", "stage1", "stage2", "stage3")}
    for name, steps in num_steps.items():
        # Losses are compared at the end, on 128 held-out clips.
        train = dataclasses.replace(parts[name].train, num_steps=steps, eval_every=steps, log_every=50)
        if name.startswith("stage"):
            train = dataclasses.replace(train, eval_batches=128 // train.batch_size)
        parts[name] = dataclasses.replace(parts[name], train=train)
    for name in ("stage2", "stage3"):
        data = dataclasses.replace(parts[name].data, num_clips=num_clips, cached_frames=65)
        parts[name] = dataclasses.replace(parts[name], data=data)
    # One text and one rule for all rounds, as the paper has it.
    for name in ("stage1", "stage2", "stage3"):
        sampling = dataclasses.replace(parts[name].sampling, text_change="continue")
        parts[name] = dataclasses.replace(parts[name], sampling=sampling)
    sampling = dataclasses.replace(parts["stage3"].sampling, continuation_temperature=0.0)
    parts["stage3"] = dataclasses.replace(parts["stage3"], sampling=sampling)
    return ClaimsJob(**parts)
