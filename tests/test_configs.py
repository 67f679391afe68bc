"""Every file in configs/, with every variant: it parses, its job is possible, and the full sizes are what they say."""

import importlib.util
from pathlib import Path

import jax
import pytest

from loong_jax.config import ConfigError, LanguageModelJob
from loong_jax.config_dict import from_config_dict, to_config_dict, to_json_dict
from loong_jax.data.sequences import static_length
from loong_jax.models import transformer

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = ("stage1", "stage2", "stage3")
VARIANTS = [(file.stem, variant) for file in sorted(CONFIGS.glob("*.py")) for variant in ("", "debug")] + [
    (stage, variant) for stage in STAGES for variant in ("700m", "3b", "7b")
]
VARIANTS += [("tokenizer", variant) for variant in ("image", "low", "small", "small,image", "small,gan")]
VARIANTS += [(stage, "small") for stage in STAGES]


def load(name: str, variant: str = ""):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_config_becomes_a_job_and_comes_back(name, variant):
    job = from_config_dict(load(name, variant))
    assert from_config_dict(to_json_dict(job)) == job
    assert from_config_dict(to_config_dict(job)) == job


@pytest.mark.parametrize(("size", "billions"), [("700m", 0.803), ("3b", 3.192), ("7b", 6.807)])
def test_full_size_models_initialise_abstractly(size, billions):
    job = from_config_dict(load("stage3", size))
    assert isinstance(job, LanguageModelJob)
    _, shapes = transformer.abstract_params(job.model)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9 == pytest.approx(billions, rel=0.01)
    latents = job.tokenizer.latent_frames(job.data.num_frames) * job.tokenizer.latent_size(job.data.frame_size) ** 2
    assert latents == 4352
    assert static_length(latents, job.data.max_text_ids) <= job.model.max_length


def test_mistakes_name_the_field_the_value_and_what_is_allowed():
    with pytest.raises(ConfigError, match="huge.*'700m'"):
        load("stage2", "huge")
    values = load("stage2").to_dict()
    with pytest.raises(ConfigError, match="train.nmu_steps is not a field.*num_steps"):
        from_config_dict(values | {"train": values["train"] | {"nmu_steps": 1}})
    with pytest.raises(ConfigError, match="text_drop=1.5.*\\[0, 1\\]"):
        from_config_dict(values | {"data": values["data"] | {"text_drop": 1.5}})
    with pytest.raises(ConfigError, match="train.num_steps='many'.*type int"):
        from_config_dict(values | {"train": values["train"] | {"num_steps": "many"}})
