"""What the cells say of each claim: a Markdown page with a verdict, a table and a plot for each.

    python -m loong_jax.claims.page DIR

writes DIR/README.md and the plots beside it, from DIR/claims.json alone.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from loong_jax.claims.arms import ARMS, BASE
from loong_jax.evaluation.plots import as_file, line_plot
from loong_jax.evaluation.report import format_table

EARLY = 5  # latent frames: those of stage 2
_FIRST, _LAST = slice(0, 1), slice(-1, None)  # ten seconds, of a list of these; latent frame 1, of a list of frames


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a cell."""

    label: str
    path: str  # where the cell has it
    part: slice | None = None  # of a list, whose mean it is
    is_share: bool = True  # given in percent
    higher_is_better: bool = True

    def of(self, cell: dict[str, Any]) -> float | None:
        """The value, or None where this arm has none of its own."""
        value = cell.get(self.path)
        if value is None or (self.part == _LAST and len(value) == 1):  # of a single clip the last is the first
            return None
        return float(value if self.part is None else np.mean(value[self.part]))

    def text(self, values: Sequence[float]) -> str:
        """Mean over seeds and standard deviation."""
        scale, digits = (100, 0) if self.is_share else (1, 3 if self.path == "loss" else 1)
        mean = f"{scale * np.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {scale * _spread(values):.{digits}f}"


_LOSS = {"is_share": False, "higher_is_better": False}
MEASURES = {
    "loss_first": Measure("loss, frame 1", "loss", _FIRST, **_LOSS),
    "loss_early": Measure(f"loss, frames 1 to {EARLY}", "loss", slice(0, EARLY), **_LOSS),
    "loss_late": Measure("loss, the others", "loss", slice(EARLY, None), **_LOSS),
    "loss": Measure("loss, all", "loss", slice(None), **_LOSS),
    "digit_first": Measure("digit, first 10 s", "digit", _FIRST),
    "color_first": Measure("color, first 10 s", "color", _FIRST),
    "direction": Measure("direction", "direction"),
    "digit_last": Measure("digit, last 10 s", "digit", _LAST),
    "color_last": Measure("color, last 10 s", "color", _LAST),
    "axis_last": Measure("axis of motion, last 10 s", "axis", _LAST),
    "codebook_usage": Measure("codes in use", "codebook_usage"),
    "psnr": Measure("PSNR, dB", "psnr", is_share=False),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """That ``arm`` has more (or, of losses, less) of ``measure`` than ``against``."""

    name: str
    title: str
    text: str
    measure: str
    arm: str
    against: str
    others: tuple[str, ...] = ()
    # "digit" over the video, "digit_by_second" finer, "loss" by latent frame beside that of ``arm``, or "": none.
    plot: str = "digit"
    labels: dict[str, str] = dataclasses.field(default_factory=dict)  # what arms are called here

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that the claim shows, the two that are compared first."""
        return (self.arm, self.against, *self.others)

    def label(self, arm: str) -> str:
        """What an arm is called in this claim's table and plot."""
        return self.labels.get(arm, ARMS[arm].label)


CLAIMS = (
    Claim(
        "stages",
        "Three stages against stage 3 from scratch",
        "Images first, then 17 frames, then 65 make a better model than 65 frames from the start (Loong, section 3.3). "
        "Both are trained for as many FLOPs.",
        "digit_first",
        BASE,
        "one_stage",
        plot="loss",
        labels={BASE: "three stages"},
    ),
    Claim(
        "early_weight",
        "Heavier loss on early frames",
        "With weight 1 + λ on the first five latent frames they are learned better, though later ones are many and "
        "easy (section 3.3). λ is stage 3's.",
        "loss_early",
        BASE,
        "early_weight_0",
        ("early_weight_0.5", "early_weight_2"),
        plot="loss",
        labels={BASE: "λ = 1"},
    ),
    Claim(
        "continuation",
        "Re-encoding against going on from the ids",
        "A round that starts from the last frames encoded again keeps to the video longer than one that starts from "
        "the last ids as they are (section 3.4).",
        "digit_last",
        BASE,
        "ids",
        plot="digit_by_second",
        labels={BASE: "re-encoded"},
    ),
    Claim(
        "top_k",
        "Top-k sampling",
        "Fewer ids to choose from let less error add up (section 3.4).",
        "digit_last",
        BASE,
        "top_k_all",
        ("top_k_1", "top_k_100"),
        labels={BASE: "k = 10"},
    ),
    Claim(
        "temperature",
        "Temperature",
        "So does a lower temperature.",
        "digit_last",
        "temperature_0.4",
        "temperature_1",
        (BASE,),
        labels={BASE: "temperature 0.7"},
    ),
    Claim(
        "clustering",
        "Clustering VQ against plain VQ",
        "Codes without use are moved to where latents are, so that more of the codebook is in use (arXiv 2307.15139).",
        "codebook_usage",
        BASE,
        "plain_vq",
        plot="",
        labels={BASE: "clustering VQ"},
    ),
    Claim(
        "joint",
        "Images and videos against videos alone",
        "Images among the clips of stages 2 and 3 keep what was learned of first frames.",
        "loss_first",
        BASE,
        "video_only",
        plot="loss",
        labels={BASE: "images and videos"},
    ),
    Claim(
        "corruption",
        "Corrupted context",
        "Not the paper's: in stage 3 up to a fifth of the ids that are read are random, so that the model learns to go "
        "on from errors.",
        "digit_last",
        "corruption",
        BASE,
        labels={BASE: "clean context"},
    ),
    Claim(
        "rope",
        "3D positions",
        "Not the paper's: rotary positions are time, row and column in place of one count.",
        "loss",
        "rope_3d",
        BASE,
        plot="loss",
        labels={BASE: "1D RoPE"},
    ),
    Claim(
        "anchor",
        "First-frame anchor",
        "Not the paper's: rounds start from the video's very first frame and then the last ones.",
        "digit_last",
        "anchor",
        BASE,
        plot="digit_by_second",
        labels={BASE: "last frames"},
    ),
    Claim(
        "prefixes",
        "Training on re-encoded prefixes",
        "Not the paper's: in stage 3 half of the clips start with frames that were decoded and encoded again, as "
        "rounds do.",
        "digit_last",
        "reencoded",
        BASE,
        labels={BASE: "plain clips"},
    ),
)

_HEAD = """# The claims as an experiment

What each part of Loong's recipe brings on moving digits of 32x32 pixels, in small models trained for minutes:
`python -m loong_jax.main --config=configs/claims.py --workdir=runs/claims`. Arms differ in one thing each. Losses are
cross-entropy of 128 held-out clips, in nats an id, by latent frame; a judge of pixels reads the videos of 128 held-out
prompts, a minute each, or ten seconds where the claim is not of long videos, and shares are in percent. Values are
means over seeds ± standard deviation. A claim is confirmed where the difference within seeds is larger, in the mean,
than twice its standard error, and not measured with fewer than two seeds. The recipe has a half of the demo's steps or
less, so that its models are worse than the demo's, and so is its tokenizer, of which re-encoding asks the most.

This page is made of `claims.json` by `python -m loong_jax.claims.page DIR`.
"""


def write_page(folder: Path) -> None:
    """Write README.md and the plots of the cells in ``folder``/claims.json."""
    path = folder / "claims.json"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    parts = [_HEAD, format_table([{"claim": c.title, "verdict": verdict(c, cells)} for c in CLAIMS], _COLUMNS)]
    for claim in CLAIMS:
        parts += [f"\n## {claim.title}\n\n{claim.text}\n\n**{verdict(claim, cells)}**"]
        if not {claim.arm, claim.against} <= {cell["arm"] for cell in cells}:
            continue
        rows = table(claim, cells)
        parts.append("\n" + format_table(rows, list(rows[0])))
        if claim.plot:
            (folder / f"{claim.name}.svg").write_text(as_file(plot(claim, cells)), encoding="utf-8")
            parts.append(f"\n![{claim.title}]({claim.name}.svg)")
    (folder / "README.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


_COLUMNS = ("claim", "verdict")


def verdict(claim: Claim, cells: Sequence[dict]) -> str:
    """Whether the claim is confirmed, and by what."""
    measure = MEASURES[claim.measure]
    ours, theirs = (_by_seed(measure, arm, cells) for arm in (claim.arm, claim.against))
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return "not measured" + (" (one seed)" if seeds else "")
    gains = [(ours[seed] - theirs[seed]) * (1 if measure.higher_is_better else -1) for seed in seeds]
    mean, error = np.mean(gains), _spread(gains) / len(seeds) ** 0.5
    found = "confirmed" if mean > 2 * error else "not confirmed"
    found = "not confirmed, the opposite is" if -mean > 2 * error else found
    values = [measure.text([side[seed] for seed in seeds]) for side in (ours, theirs)]
    gain = measure.text(gains)
    return f"{found}: {measure.label}: {values[0]} against {values[1]}, better by {gain} ({len(seeds)} seeds)"


def table(claim: Claim, cells: Sequence[dict]) -> list[dict[str, Any]]:
    """A row for each arm that has cells: its measures, of those that all of them have."""
    rows = []
    for arm in claim.arms:
        values = {name: list(_by_seed(measure, arm, cells).values()) for name, measure in MEASURES.items()}
        if any(values.values()):
            own = {MEASURES[name].label: MEASURES[name].text(found) for name, found in values.items() if found}
            rows.append({"arm": claim.label(arm), "seeds": max(map(len, values.values()))} | own)
    columns = [measure.label for measure in MEASURES.values() if all(measure.label in row for row in rows)]
    return [{name: row[name] for name in ("arm", "seeds", *columns)} for row in rows]


def plot(claim: Claim, cells: Sequence[dict]) -> str:
    """Means over the seeds, and the least and largest, against time or latent frames."""
    lines, bands, end = {}, {}, 0.0
    is_loss, step = claim.plot == "loss", 10.0 if claim.plot == "digit" else 1.0
    for arm in claim.arms:
        curves = _curves(claim, arm, cells)
        if curves.size:
            at = step * (np.arange(curves.shape[1]) + (0 if is_loss else 0.5))
            end = max(end, step * (curves.shape[1] - is_loss))
            lines[claim.label(arm)] = (at.tolist(), curves.mean(axis=0).tolist())
            bands[claim.label(arm)] = (curves.min(axis=0).tolist(), curves.max(axis=0).tolist())
    if is_loss:
        title = f"loss beside that of {claim.label(claim.arm)}, nats an id"
        return line_plot(title, lines, end, x_label="latent frame", bands=bands)
    return line_plot("right digits, share of the videos", lines, end, (0.0, 1.0), bands=bands)


def _curves(claim: Claim, arm: str, cells: Sequence[dict]) -> Float[np.ndarray, "seeds times"]:
    own = {cell["seed"]: cell for cell in cells if cell["arm"] == arm}
    if claim.plot == "digit":
        return np.array([cell["digit"] for cell in own.values()])
    if claim.plot == "digit_by_second":
        return np.array([cell["by_second"]["digit"] for cell in own.values()])
    start = {cell["seed"]: cell for cell in cells if cell["arm"] == claim.arm}
    return np.array([np.subtract(own[seed]["loss"], start[seed]["loss"]) for seed in own if seed in start])


def _by_seed(measure: Measure, arm: str, cells: Sequence[dict]) -> dict[int, float]:
    found = {cell["seed"]: measure.of(cell) for cell in cells if cell["arm"] == arm}
    return {seed: value for seed, value in found.items() if value is not None}


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


if __name__ == "__main__":
    workdir = Path(*sys.argv[1:2])
    if not (workdir / "claims.json").exists():
        sys.exit(f"There is no claims.json in {workdir}: give the workdir of configs/claims.py.")
    write_page(workdir)
