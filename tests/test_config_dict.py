"""Jobs become ConfigDicts and JSON and come back; what is mistyped in them is named at every depth."""

import dataclasses
import json
import typing

import pytest
from absl import flags
from ml_collections import config_flags

from loong_jax.config import (
    DEBUG_TOKENIZER,
    DEBUG_TRANSFORMER,
    JOBS,
    CheckDataJob,
    ClaimsJob,
    ConfigError,
    DataConfig,
    DemoJob,
    DoctorJob,
    EstimateJob,
    EvaluateJob,
    ExportJob,
    IntSchedule,
    LanguageModelJob,
    LossConfig,
    MeshConfig,
    SampleJob,
    SamplingChanges,
    Schedule,
    ServeJob,
    ServingLimits,
    TokenizeJob,
    TokenizerJob,
    TrainConfig,
)
from loong_jax.config_dict import from_config_dict, parse_variant, to_config_dict, to_json_dict

# One job of each type, with something changed at every depth.
TRAIN = TrainConfig(num_steps=3, keep_checkpoints=5)
EXAMPLES = [
    TokenizerJob(
        seed=3,
        init_from="../images",
        freeze_encoder=True,
        mesh=MeshConfig(data=2, tensor=4),
        tokenizer=DEBUG_TOKENIZER,
        data=DataConfig(source="folder:videos", fps=8),
        train=TRAIN,
    ),
    TokenizeJob(data=DataConfig(source="2*folder:a|moving_digits"), num_held_out=5),
    CheckDataJob(tokenizer_path="../tokenizer", num_examples=3),
    LanguageModelJob(
        allow_untrained_tokenizer=True,
        tokenizer=DEBUG_TOKENIZER,
        model=DEBUG_TRANSFORMER,
        data=DataConfig(source="tokens:a|tokens:b", image_source="tokens:c", pack=4),
        loss=LossConfig(early_weight=0.5),
        train=TRAIN,
    ),
    SampleJob(prompt="a|b", sampling=SamplingChanges(top_p=0.5, min_p=(0.1, 0.2), top_k=(400, 20))),
    ServeJob(port=80, sampling=SamplingChanges(seconds=5.0), limits=ServingLimits(max_waiting=3)),
    DemoJob(tokenizer=TokenizerJob(tokenizer=DEBUG_TOKENIZER), stage2=LanguageModelJob(train=TRAIN), num_eval_clips=7),
    ClaimsJob(stage3=LanguageModelJob(train=TRAIN), num_seeds=2),
    EvaluateJob(data=DataConfig(num_frames=65), num_videos=3),
    EstimateJob(batch_sizes=(3,), mesh=MeshConfig(tensor=2), step="sampling"),
    DoctorJob(full=False, write_mib=1),
    ExportJob(dtype="bfloat16", texts_file="texts.txt"),
]
EXAMPLE_OF = pytest.mark.parametrize("job", EXAMPLES, ids=lambda job: job.task)


def test_there_is_an_example_of_every_job():
    assert [type(job) for job in EXAMPLES] == list(JOBS.values())


@EXAMPLE_OF
def test_jobs_come_back(job):
    assert from_config_dict(to_config_dict(job)) == job
    assert from_config_dict(json.loads(json.dumps(to_json_dict(job)))) == job  # where tuples are lists
    assert from_config_dict({"task": job.task}) == type(job)()
    assert hash(from_config_dict(to_config_dict(job))) == hash(job)


def settings(cls, values, path=()):
    """Every class in a job with its settings: (path to it, the class, its settings)."""
    yield path, cls, values
    for name, field_type in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(field_type):
            yield from settings(field_type, values[name], (*path, name))


@EXAMPLE_OF
def test_a_mistyped_field_is_named_at_every_depth(job):
    values = to_json_dict(job)
    for path, cls, inner in settings(type(job), values):
        inner["sede"] = 1
        with pytest.raises(ConfigError) as error:
            from_config_dict(values)
        fields = ", ".join(field.name for field in dataclasses.fields(cls))
        assert str(error.value) == f"{'.'.join((*path, 'sede'))} is not a field: {cls.__name__} has {fields}."
        del inner["sede"]
    assert from_config_dict(values) == job


@EXAMPLE_OF
def test_a_wrong_type_is_named_at_every_depth(job):
    wrong = {int: (2.5, "of type int"), float: ("much", "of type float"), str: (7, "of type str")}
    wrong |= {bool: (1, "of type bool"), tuple[int, ...]: ((1, 2.0), "a tuple of integers")}
    wrong |= {Schedule: wrong[float], IntSchedule: wrong[int]}
    wrong |= {kind | None: wrong[kind] for kind in (int, float, str, Schedule, IntSchedule)}
    values = to_json_dict(job)
    tried = 0
    for path, cls, inner in settings(type(job), values):
        for name, field_type in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(field_type) or (name == "task" and not path):
                continue
            right, (inner[name], allowed) = inner[name], wrong[field_type]
            with pytest.raises(ConfigError) as error:
                from_config_dict(values)
            named = f"{'.'.join((*path, name))}={inner[name]!r} is not possible: it must be {allowed}."
            assert str(error.value) == named
            inner[name] = right
            tried += 1
    assert from_config_dict(values) == job and tried > 4


def test_an_impossible_value_says_where_it_is():
    values = to_json_dict(TokenizerJob())
    values["tokenizer"]["quantizer"]["num_codes"] = -5
    with pytest.raises(ConfigError, match=r"^In tokenizer\.quantizer.*num_codes=-5 .*greater than 0\.$"):
        from_config_dict(values)


def test_numbers_of_another_kind():
    values = to_json_dict(TokenizerJob())
    values["optimizer"]["learning_rate"] = 1
    rate = from_config_dict(values).optimizer.learning_rate
    assert rate == 1.0 and type(rate) is float
    for value, said in ((float("nan"), "finite"), (float("inf"), "finite"), (True, "type float")):
        values["optimizer"]["learning_rate"] = value
        with pytest.raises(ConfigError, match=f"optimizer.learning_rate={value} .*{said}"):
            from_config_dict(values)
    values = to_json_dict(TokenizerJob())
    values["train"]["num_steps"] = True
    with pytest.raises(ConfigError, match="train.num_steps=True .*type int"):
        from_config_dict(values)


def test_a_schedule_on_the_command_line():
    """One number or several, where the default is one."""

    def parsed(*settings: str) -> SamplingChanges:
        argv, found = ["main", *(f"--config.sampling.{setting}" for setting in settings)], flags.FlagValues()
        config_flags.DEFINE_config_dict("config", to_config_dict(SampleJob()), flag_values=found, sys_argv=argv)
        found(argv)
        return from_config_dict(found.config).sampling

    expected = SamplingChanges(temperature=0.7, top_k=(400, 20), min_p=(0.1,), guidance_scale=2.0)
    assert parsed("temperature=0.7", "top_k=(400,20)", "min_p=(0.1,)", "guidance_scale=2") == expected
    with pytest.raises(ConfigError, match="sampling.top_k='many' .*type int"):
        parsed("top_k=many")


@pytest.mark.parametrize("task", ["train", None, 3])
def test_an_unknown_task(task):
    with pytest.raises(ConfigError) as error:
        from_config_dict({"task": task})
    allowed = "'tokenizer', 'tokenize', 'check_data', 'language_model', 'sample', 'serve', 'demo', 'claims', "
    allowed += "'evaluate', 'estimate', 'doctor', 'export'"
    assert str(error.value) == f"task={task!r} is not possible: choose one of {allowed}."


def test_variants():
    assert parse_variant("", ("debug", "3b")) == set()
    assert parse_variant("image,debug", ("debug", "3b"), ("image",)) == {"debug", "image"}
    with pytest.raises(ConfigError) as error:
        parse_variant("debug,4b", ("debug", "3b"))
    assert str(error.value) == "the config's variant='4b' is not possible: choose one of 'debug', '3b'."
    with pytest.raises(ConfigError) as error:
        parse_variant("debug,3b", ("debug", "3b"))
    assert str(error.value) == "the config's variant='debug,3b' is not possible: choose one of debug, 3b."
