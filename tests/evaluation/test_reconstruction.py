import numpy as np
import pytest

from loong_jax.evaluation.reconstruction import codebook_usage, perplexity, psnr


def test_psnr_of_a_constant_error():
    a = np.full((2, 3, 4, 5, 3), 100, np.uint8)
    b = a.copy()
    b[0] += 5  # mse 25
    b[1, :, :, :, 0] -= 30  # mse 900 / 3 = 300
    np.testing.assert_allclose(psnr(a, b), [34.151, 23.360], atol=5e-4)
    np.testing.assert_allclose(psnr(b[1], a[1]), 23.360, atol=5e-4)


def test_psnr_takes_one_mse_over_the_whole_clip():
    a = np.zeros((2, 1, 1, 3), np.uint8)
    b = np.array([0, 255], np.uint8)[:, None, None, None].repeat(3, -1)
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(2))
    assert psnr(a, a) == np.inf


@pytest.mark.parametrize("b", [np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.float32)])
def test_psnr_rejects_what_it_cannot_compare(b):
    with pytest.raises(ValueError, match="uint8 videos .* of one shape"):
        psnr(np.zeros((2, 4, 4, 3), np.uint8), b)


def test_usage_and_perplexity_by_hand():
    ids = np.array([[0, 0], [1, 3]])
    assert codebook_usage(ids, 8) == 3 / 8
    # Entropy of (1/2, 1/4, 1/4) is 1.5 bits.
    np.testing.assert_allclose(perplexity(ids, 8), 2**1.5, rtol=1e-15)
    assert perplexity(np.full(7, 2), 8) == 1
    np.testing.assert_allclose(perplexity(np.arange(8), 8), 8, rtol=1e-15)


@pytest.mark.parametrize("ids", [np.array([], int), np.array([0, 8]), np.array([-1])])
def test_ids_outside_the_codebook_are_rejected(ids):
    with pytest.raises(ValueError, match="a codebook of 8 codes has the ids 0 to 7"):
        codebook_usage(ids, 8)
