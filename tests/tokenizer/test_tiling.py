"""Cutting frames into tiles and joining them again."""

import numpy as np
import pytest

from loong_jax.tokenizer.tiling import Tiling


@pytest.mark.parametrize(("height", "width", "tile"), [(4, 4, 4), (3, 9, 4), (10, 7, 4), (17, 5, 8), (6, 6, 1)])
def test_what_is_cut_joins_to_what_it_was(height, width, tile):
    tiling, scale = Tiling.create(height, width, tile), 8
    ids = np.random.default_rng(0).integers(0, 100, (2, 3, height, width))
    tiles = tiling.cut(ids, 1)
    assert tiles.shape == (2 * tiling.num_tiles, 3, min(tile, height), min(tile, width))
    np.testing.assert_array_equal(tiling.join_ids(tiles), ids)
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, height * scale, width * scale, 3), dtype=np.uint8)
    joined = tiling.join_frames(tiling.cut(frames, scale), scale)
    assert joined.dtype == np.uint8
    np.testing.assert_array_equal(joined, frames)


def test_ids_come_from_the_tile_in_which_they_lie_deepest():
    tiling = Tiling.create(1, 7, 4)  # tiles of cells 0 to 3 and 3 to 6
    assert tiling.rows.starts == (0,) and tiling.columns.starts == (0, 3)
    tiling = Tiling.create(1, 12, 8)  # 0 to 7 and 4 to 11: they overlap in 4 to 7
    tiles = tiling.cut(np.zeros((1, 1, 1, 12), int), 1) + np.arange(2)[:, None, None, None]
    np.testing.assert_array_equal(tiling.join_ids(tiles)[0, 0, 0], [0] * 6 + [1] * 6)


def test_overlapping_pixels_are_blended():
    tiling = Tiling.create(1, 12, 8)
    tiles = np.zeros((2, 1, 1, 8, 1), np.uint8)
    tiles[1] = 100
    # In the overlap the weights are 4, 3, 2, 1 and 1, 2, 3, 4.
    expected = [0] * 4 + [20, 40, 60, 80] + [100] * 4
    np.testing.assert_array_equal(tiling.join_frames(tiles, 1)[0, 0, 0, :, 0], expected)
