"""Line plots: the points are where they should be, gaps stay gaps, and names cannot break the page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from loong_jax.evaluation.plots import as_file, line_plot, ticks


def points(svg):
    return [
        np.array([list(map(float, point.split(","))) for point in path.split()])
        for path in re.findall(r'<polyline points="([^"]+)"', svg)
    ]


def test_points_lie_on_their_axes():
    [line] = points(line_plot("a", {"x": ([0, 5, 10], [1.0, 3.0, 2.0])}, 10))
    assert line[1, 0] == pytest.approx(line[[0, 2], 0].mean(), abs=0.1)
    assert line[2, 1] == pytest.approx(line[:2, 1].mean(), abs=0.1) and line[1, 1] < line[0, 1]


def test_a_gap_divides_a_line():
    lines = points(line_plot("a", {"x": ([0, 1, 2, 3], [1.0, None, 2.0, 2.0]), "y": ([0, 1], [0.0, 0.0])}, 3))
    assert [len(line) for line in lines] == [1, 2, 2]


def test_a_band_goes_around_a_line():
    svg = line_plot("a", {"x": ([0, 10], [1.0, 2.0])}, 10, (0, 3), bands={"x": ([0.5, 1.0], [1.5, 3.0])})
    [band] = re.findall(r'<polygon points="([^"]+)"', svg)
    band = np.array([list(map(float, point.split(","))) for point in band.split()])
    [line] = points(svg)
    np.testing.assert_allclose(band[[0, 1], 0], line[:, 0])
    np.testing.assert_allclose(band[[3, 2], 0], line[:, 0])
    assert (band[[0, 1], 1] > line[:, 1]).all() and (band[[3, 2], 1] < line[:, 1]).all()


def test_a_file_is_one_svg():
    plot = line_plot("a", {"x": ([0, 10], [1.0, 2.0])}, 10, x_label="latent <frame>")
    root = ElementTree.fromstring(as_file(plot))
    names = [child.tag.rpartition("}")[2] for child in root]
    assert root.get("viewBox") and names[:2] == ["style", "rect"] and names.count("polyline") == 1
    assert "latent <frame>" in [child.text for child in root]


def test_names_are_escaped():
    svg = line_plot("<b>", {"<script>": ([0, 1], [1.0, 1.0])}, 1)
    assert "<script>" not in svg and "&lt;script&gt;" in svg and "&lt;b&gt;" in svg


def test_ticks_are_round_numbers():
    np.testing.assert_allclose(ticks(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(ticks(0, 3, smallest=1), [0, 1, 2, 3])
    np.testing.assert_allclose(ticks(-7, 60), [0, 10, 20, 30, 40, 50, 60])
