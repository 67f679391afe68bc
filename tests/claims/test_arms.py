"""The arms of the claims: each differs from the base in what it says, shares what it can, and costs as much."""

import dataclasses
from pathlib import Path

import pytest

from loong_jax.claims.arms import ARMS, BASE, STAGES, sampling, training_flops, trainings
from loong_jax.claims.page import CLAIMS
from loong_jax.config_dict import load_job, to_json_dict

JOB = load_job(Path(__file__).parents[2] / "configs", "claims")


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(job, base) -> dict:
    before = dict(flat(to_json_dict(base)))
    return {name: value for name, value in flat(to_json_dict(job)) if before[name] != value}


def test_the_base_is_the_job():
    parts = trainings(JOB, BASE, seed=2)
    assert list(parts) == ["image_tokenizer", "tokenizer", "stage1", "stage2", "stage3"]
    for name, training in parts.items():
        assert training.workdir == f"base/{name}"
        places = {"seed", "init_from", "tokenizer_path"}
        assert set(differences(training.job, getattr(JOB, name))) <= places and training.job.seed == 2
    assert parts["tokenizer"].job.init_from == "../../base/image_tokenizer"
    assert parts["stage3"].job.init_from == "../../base/stage2"
    assert parts["stage1"].job.tokenizer_path == "../../base/tokenizer" and parts["stage1"].job.init_from == ""


@pytest.mark.parametrize(
    ("name", "part", "changes", "shared"),
    [
        ("early_weight_2", "stage3", {"loss.early_weight": 2.0}, 4),
        ("corruption", "stage3", {"loss.context_corruption": 0.2}, 4),
        ("reencoded", "stage3", {"data.reencoded_share": 0.5}, 4),
        ("video_only", "stage2", {"data.image_share": 0.0}, 3),
        ("rope_3d", "stage1", {"model.rope": "3d"}, 2),
        ("plain_vq", "image_tokenizer", {"tokenizer.quantizer.clustering": False}, 0),
        ("ids", None, {}, 5),
    ],
)
def test_an_arm_changes_one_thing_and_shares_what_comes_before(name, part, changes, shared):
    base, own = trainings(JOB, BASE, 0), trainings(JOB, name, 0)
    homes = [training.workdir.partition("/")[0] for training in own.values()]
    assert homes == [BASE] * shared + [name] * (len(own) - shared)
    assert list(own) == list(base)[: 2 if name == "plain_vq" else 5]
    for each in list(own)[:shared]:
        assert own[each] == base[each]
    if part:
        places = {"init_from", "tokenizer_path"}
        found = {key: value for key, value in differences(own[part].job, base[part].job).items() if key not in places}
        assert found == changes


def test_one_stage_costs_as_much_as_three():
    three, [*_, one] = trainings(JOB, BASE, 0), trainings(JOB, "one_stage", 0).values()
    config = JOB.tokenizer.tokenizer
    total = sum(training_flops(three[stage].job, config) for stage in STAGES)
    assert training_flops(one.job, config) == pytest.approx(total, rel=0.002)
    assert one.job.init_from == "" and one.job.codebook_init and one.workdir == "one_stage/stage3"
    # By hand: 600 steps of 16 rows of 96 ids have 2.7 times the ids of 150 steps of 8 rows of 288, and look back less.
    stage2 = dataclasses.replace(three["stage2"].job, train=dataclasses.replace(JOB.stage2.train, num_steps=600))
    assert training_flops(stage2, config) / training_flops(three["stage3"].job, config) == pytest.approx(2.6, rel=0.1)


def test_videos_of_an_arm_are_sampled_by_its_rules():
    own = JOB.stage3.sampling
    assert sampling(JOB, "rope_3d") == dataclasses.replace(own, seconds=10.0)
    assert sampling(JOB, BASE) == own and own.continuation_temperature == 0
    assert sampling(JOB, "ids") == dataclasses.replace(own, continuation="ids")
    assert {sampling(JOB, name).top_k for name in ARMS} == {1, 10, 100, 0}


def test_every_claim_is_of_arms_and_every_arm_of_a_claim():
    assert {arm for claim in CLAIMS for arm in claim.arms} == set(ARMS)
    for claim in CLAIMS:
        if claim.plot == "digit_by_second":
            assert all(ARMS[arm].by_second for arm in claim.arms)
