"""The page of the claims: verdicts, tables and plots are of the cells, and the stored page is of the stored cells."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from loong_jax.claims.arms import ARMS
from loong_jax.claims.page import CLAIMS, MEASURES, plot, table, verdict, write_page

STORED = Path(__file__).parents[2] / "loong_jax" / "assets" / "readme" / "claims"
CLAIM = {claim.name: claim for claim in CLAIMS}


def cell(arm: str, seed: int, digit: float = 0.5, loss: float = 1.0) -> dict:
    shares = {"digit": [0.9, digit], "color": [1.0, 1.0], "axis": [1.0, 0.8]}
    return {"arm": arm, "seed": seed, "loss": [loss] * 17, "direction": 0.75, "by_second": shares, **shares}


def test_a_claim_is_confirmed_where_the_difference_is_larger_than_its_spread():
    def said(differences):
        """Digits of seeds that are far apart, and by how much the claim's arm is ahead in each."""
        cells = [cell("top_k_all", seed, 0.1 * seed) for seed in range(len(differences))]
        cells += [cell("base", seed, 0.1 * seed + gain) for seed, gain in enumerate(differences)]
        return verdict(CLAIM["top_k"], cells)

    assert said([0.05, 0.06, 0.07]) == (
        "confirmed: digit, last 10 s: 16 ± 11 against 10 ± 10, better by 6 ± 1 (3 seeds)"
    )
    assert said([0.05, 0.02, -0.03]).startswith("not confirmed: ")
    assert said([-0.05, -0.06]).startswith("not confirmed, the opposite is: ")
    assert said([0.5]) == "not measured (one seed)" and said([]) == "not measured"


def test_lower_losses_are_better():
    cells = [cell("base", seed, loss=1.0 + seed) for seed in (0, 1)]
    cells += [cell("early_weight_0", seed, loss=1.1 + seed) for seed in (0, 1)]
    assert verdict(CLAIM["early_weight"], cells).startswith("confirmed: loss, frames 1 to 5: 1.500 ± 0.707 against")
    assert "better by 0.100 ± 0.000" in verdict(CLAIM["early_weight"], cells)


def test_seeds_that_one_arm_lacks_do_not_count():
    cells = [cell("base", seed, 0.9) for seed in range(3)] + [cell("top_k_all", seed) for seed in (1, 2)]
    assert verdict(CLAIM["top_k"], cells).endswith("(2 seeds)")


def test_a_table_has_the_measures_that_all_arms_have():
    cells = [cell("base", 0), cell("base", 1), {**cell("ids", 0), "loss": None}]
    rows = table(CLAIM["continuation"], cells)
    assert [(row["arm"], row["seeds"]) for row in rows] == [("re-encoded", 2), ("plain ids", 1)]
    assert rows[1]["direction"] == "75" and rows[0]["digit, last 10 s"] == "50 ± 0"
    assert not any("loss" in name or "PSNR" in name for name in rows[0])


def test_a_plot_of_losses_is_beside_the_claims_arm():
    cells = [
        cell(arm, seed, loss=loss + seed) for arm, loss in (("base", 1.0), ("early_weight_0", 1.5)) for seed in (0, 1)
    ]
    lines = re.findall(r'<polyline points="([^"]+)"', plot(CLAIM["early_weight"], cells))
    heights = [np.array([float(point.split(",")[1]) for point in line.split()]) for line in lines]
    assert len(lines) == 2 and all(len(line) == 17 and np.ptp(line) == 0 for line in heights)
    assert heights[0][0] > heights[1][0]  # up is down in SVG


def test_the_page_has_all_claims_and_plots_that_can_be_read(tmp_path):
    cells = [cell(arm, seed, 0.5 + 0.1 * seed) for seed in range(2) for arm in ARMS]
    (tmp_path / "claims.json").write_text(json.dumps({"cells": cells}))
    write_page(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for claim in CLAIMS:
        assert f"## {claim.title}" in text and (f"]({claim.name}.svg)" in text) == bool(claim.plot)
        if not claim.plot:
            continue
        assert ElementTree.parse(tmp_path / f"{claim.name}.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    for name in MEASURES.keys() - {"codebook_usage", "psnr"}:
        assert MEASURES[name].label in text


@pytest.mark.parametrize("count", [1, 9, len(ARMS)])
def test_the_page_is_there_whatever_is_measured(tmp_path, count):
    cells = [cell(arm, 0) for arm in list(ARMS)[:count]]
    (tmp_path / "claims.json").write_text(json.dumps({"cells": cells}))
    write_page(tmp_path)
    assert (tmp_path / "README.md").read_text().count("**not measured") == len(CLAIMS)


def test_the_stored_page_is_made_of_the_stored_cells(tmp_path):
    """Else: ``python -m loong_jax.claims.page loong_jax/assets/readme/claims``."""
    (tmp_path / "claims.json").write_bytes((STORED / "claims.json").read_bytes())
    write_page(tmp_path)
    written, stored = ({path.name for path in folder.iterdir()} for folder in (tmp_path, STORED))
    assert written == stored
    for name in written:
        assert (tmp_path / name).read_text(encoding="utf-8") == (STORED / name).read_text(encoding="utf-8"), name


def test_ten_seconds_of_video_have_a_start_and_no_end():
    short = {**cell("early_weight_0", 0), "digit": [0.9], "color": [1.0]}
    assert (MEASURES["digit_first"].of(short), MEASURES["digit_last"].of(short)) == (0.9, None)
    (row,) = table(CLAIM["early_weight"], [short])
    assert row["color, first 10 s"] == "100" and "color, last 10 s" not in row


@pytest.mark.parametrize("name", list(MEASURES))
def test_a_measure_that_an_arm_lacks_is_none(name):
    assert MEASURES[name].of({"arm": "base"}) is None
