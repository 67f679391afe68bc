"""Sample videos from a trained language model.

    python -m loong_jax.main --config=configs/sample.py --config.prompt="a red 7 moves left"

The model is the one of moving digits that travels with the package, or `--config.model_path=../stage3`: the workdir of
a language-model training, relative to the workdir, or a model folder. How its videos are best sampled is kept with it;
`--config.sampling.temperature=1` and the like ask for something else. Several prompts are separated by "|", or are the
lines of a file, `--config.prompts_file=FILE`, or of standard input, `--config.prompts_file=-`; `batch_size` of them are
sampled together. `--config.image=FILE` is the first frame, or `--config.video=FILE` goes on. Writes `outputs` (an mp4,
a gif and a contact sheet) per prompt to <workdir>/samples, as frames come, and the ids besides: the same command goes
on where it was stopped, and `--config.decode=FILE_OR_FOLDER` makes videos of saved ids alone. In a prompt, "a red 7
@20s a blue 3" shows another text from second 20 on: a new scene with `--config.sampling.text_change=cut`, as the model
that travels with the package has it, and with `continue` what goes on from the frames before. `:debug` samples ten
seconds from the workdir of `configs/stage3.py:debug`.
"""

import dataclasses

from loong_jax.config import SampleJob, SamplingChanges
from loong_jax.config_dict import parse_variant, to_config_dict


def get_config(variant: str = ""):
    job = SampleJob()
    if "debug" in parse_variant(variant, ("debug",)):
        job = dataclasses.replace(job, model_path="../stage3", sampling=SamplingChanges(seconds=10.0, top_k=20))
    return to_config_dict(job)
