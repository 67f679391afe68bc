"""The picture shows each latent frame's loss where it belongs."""

import numpy as np
import pytest

from loong_jax.training.loss_picture import draw_loss_by_frame

# Where the plot is, in pixels.
LEFT, TOP, RIGHT, BOTTOM = 70, 56, 830, 480
FIRST, LAST = (39, 60, 140), (200, 40, 40)


def records(losses, split="train", every=10):
    return [
        {"step": every * index, "split": split, "loss": 0.0, "frame_loss": list(row)}
        for index, row in enumerate(losses, start=1)
    ]


def rows_of(picture, color, column):
    """Rows of the plot in which a column of pixels has about this color."""
    distance = np.abs(picture[TOP:BOTTOM, column].astype(int) - color).max(axis=-1)
    return TOP + np.flatnonzero(distance < 40)


def row_of(loss, low, high):
    """Where a loss lies: the range and 4% of it on each side fill the plot."""
    margin = 0.04 * (high - low)
    return np.interp(loss, (low - margin, high + margin), (BOTTOM, TOP))


def draw(found):
    return draw_loss_by_frame(found)["loss_by_frame"]


def test_lines_run_from_loss_to_loss():
    """Frame 0 falls from 6 to 2, the last from 4 to 1: at a quarter of the way they are at 5 and 3.25."""
    picture = draw(records(np.linspace((6, 4), (2, 1), 401)))
    assert picture.shape == (540, 960, 3) and picture.dtype == np.uint8
    quarter = LEFT + (RIGHT - LEFT) // 4
    for color, loss in ((FIRST, 5), (LAST, 3.25)):
        rows = rows_of(picture, color, quarter)
        assert len(rows) and np.abs(rows - row_of(loss, 1, 6)).max() < 4  # means of three records end a bit sooner


def test_held_out_losses_are_dots():
    """At the middle of the range the dots lie off the lines."""
    found = records([(6, 2), (6, 2), (6, 2)])
    picture = draw(found + [{"step": 20, "split": "eval", "frame_loss": [5, 3]}])
    middle = (LEFT + RIGHT) // 2
    for color, (line, dot) in ((FIRST, (6, 5)), (LAST, (2, 3))):
        rows = rows_of(picture, color, middle)
        for loss in (line, dot):
            assert np.abs(rows - row_of(loss, 2, 6)).min() < 2
        assert np.all(np.minimum(*(np.abs(rows - row_of(loss, 2, 6)) for loss in (line, dot))) < 6)


def test_a_frame_that_batches_lack_leaves_a_gap():
    """Loss 0 is no loss: the range is that of the others, and the line has a hole in it."""
    losses = [(6, 4), (6, 4), (6, 0), (6, 0), (6, 4), (6, 4)]
    picture = draw(records(losses))
    found = [len(rows_of(picture, LAST, column)) for column in np.linspace(LEFT + 20, RIGHT - 20, 5).astype(int)]
    assert found[0] and found[-1] and not found[2]
    assert np.abs(rows_of(picture, FIRST, 300) - row_of(6, 4, 6)).max() < 3


def test_a_training_that_went_on_with_longer_clips_is_drawn():
    """The frames of the longer ones begin where they do; held-out clips may be of either length."""
    longer = records([(6, 6, 2), (6, 6, 2)])
    found = records([(6, 6), (6, 6)]) + [{**record, "step": record["step"] + 40} for record in longer]
    found += [{"step": 10, "split": "eval", "frame_loss": [5, 4]}]
    picture = draw(found)
    assert len(rows_of(picture, LAST, RIGHT - 20)) and not len(rows_of(picture, LAST, LEFT + 20))


@pytest.mark.parametrize("losses", [[(4.0,)], [(3.0, 3.0)] * 2, [(0.0, 0.0)], np.ones((2, 40))])
def test_whatever_there_is_can_be_drawn(losses):
    assert draw(records(losses)).std() > 1


def test_without_losses_there_is_no_picture():
    assert draw_loss_by_frame([]) == {}
    assert draw_loss_by_frame([{"step": 1, "split": "train", "loss": 1.0}]) == {}
    assert draw_loss_by_frame(records([(1, 2)], "eval")) == {}
