"""Effective rank: known answers, invariances, independent definitions, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscale.spectra import (
    alpha_req,
    effective_rank,
    effective_rank_squared,
    rankme,
    rankme_corrected,
    spectrum,
)


def gaussian(n, scales, seed=0):
    """n rows with the given population standard deviation in each direction, in a random basis."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(len(scales), len(scales))))[0]
    return rng.normal(size=(n, len(scales))) * scales @ basis


def numpy_rankme(z, eps):
    """The definition, written out once more and independently."""
    sigma = np.linalg.svd(np.asarray(z, dtype=np.float64), compute_uv=False)
    p = sigma / sigma.sum() + eps
    return np.exp(-(p * np.log(p)).sum())


def test_rank_one_gives_one():
    assert effective_rank(np.outer(np.arange(1.0, 9.0), np.ones(5))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dim", [2, 7, 64])
def test_isotropic_gives_dim(dim):
    assert effective_rank(np.eye(dim)) == pytest.approx(dim, rel=1e-12)
    assert rankme(np.eye(dim)) == pytest.approx(dim, rel=1e-4)


def test_the_question_of_chapter_four():
    p = np.array([100, 10, 1]) / 111
    by_hand = float(np.prod(p**-p))
    assert effective_rank(np.array([100.0, 10.0, 1.0])) == pytest.approx(by_hand, rel=1e-12)
    assert 1 < by_hand < 1.6


@pytest.mark.parametrize("eps", [0, 1e-12, 1e-7, 1e-5])
def test_agrees_with_an_independent_definition(eps):
    z = gaussian(300, 1 / np.arange(1, 25))
    assert rankme(z, eps=eps) == pytest.approx(numpy_rankme(z, eps), rel=1e-11)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 20), st.floats(1e-3, 1e3), st.integers(0, 10_000))
def test_invariances_and_bounds(n, dim, scale, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, dim))
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    rank = effective_rank(z)
    assert 1 - 1e-9 <= rank <= min(n, dim) + 1e-9
    assert effective_rank(scale * z) == pytest.approx(rank, rel=1e-9)
    assert effective_rank(z @ rotation) == pytest.approx(rank, rel=1e-9)
    assert effective_rank(z[rng.permutation(n)]) == pytest.approx(rank, rel=1e-9)
    assert effective_rank(np.vstack([z, z])) == pytest.approx(rank, rel=1e-9)


def test_matrix_and_spectrum_give_the_same():
    z = gaussian(200, 1 / np.arange(1, 33))
    assert rankme(spectrum(z)) == pytest.approx(rankme(z), rel=1e-12)
    assert rankme(spectrum(z, center=True)) == pytest.approx(rankme(z, center=True), rel=1e-12)


def test_an_offset_lowers_the_raw_rank_only():
    z = gaussian(500, np.ones(16))
    shifted = z + 1e3
    assert rankme(shifted) < 2
    assert rankme(shifted, center=True) == pytest.approx(rankme(z, center=True), rel=1e-9)


def test_squared_rank_is_not_above_the_plain_one():
    z = gaussian(500, 1 / np.arange(1, 33))
    assert effective_rank_squared(z) < effective_rank(z, center=True)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_an_exact_power_law(alpha):
    sigma = np.arange(1, 129.0) ** (-alpha / 2)
    fit = alpha_req(sigma, center=False)
    assert fit.alpha == pytest.approx(alpha, abs=1e-9)
    assert fit.r_squared == pytest.approx(1)
    assert (fit.first, fit.last) == (11, 100)


def test_alpha_refuses_few_ranks():
    with pytest.raises(ValueError, match="at least 20 ranks"):
        alpha_req(gaussian(100, np.ones(24)))


@pytest.mark.parametrize("ratio", [4, 8])
@pytest.mark.parametrize("scales", [np.ones(96), 1 / np.arange(1, 97) ** 0.5], ids=["white", "power law"])
def test_correction_recovers_the_population(ratio, scales):
    population = effective_rank(np.diag(scales))
    z = gaussian(ratio * 96, scales, seed=ratio)
    raw, corrected = rankme(z, eps=0), rankme_corrected(z, eps=0)
    assert raw < 0.99 * population
    assert corrected == pytest.approx(population, rel=0.02)


def test_correction_refuses_too_few_clips():
    with pytest.raises(ValueError, match="needs at least 128 clips"):
        rankme_corrected(gaussian(127, np.ones(32)))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(1, 4), "at least two rows"),
        (torch.zeros(5, 4), "all zero"),
        (torch.ones(5), "finite|shape"),
        (torch.ones(5, 4, dtype=torch.int64), "floating point"),
        (torch.ones(2, 3, 4), "shape"),
        (torch.tensor([[1.0, 2.0], [3.0, float("nan")], [float("inf"), 0.0]]), "row 1 .*2 such rows"),
    ],
)
def test_bad_input_is_named(z, message):
    if z.ndim == 1:
        z = -z
    with pytest.raises(ValueError, match=message):
        rankme(z)


def test_equal_rows_cannot_be_centred():
    with pytest.raises(ValueError, match="all rows"):
        rankme(np.full((5, 3), 0.3), center=True)


def test_a_spectrum_cannot_be_centred():
    with pytest.raises(ValueError, match="after the fact"):
        rankme(np.ones(4), center=True)
