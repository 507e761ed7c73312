"""Effective rank: known answers, invariances, independent definitions, bad input."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankscale.spectra import (
    SpectrumAccumulator,
    SpectrumWarning,
    alpha_req,
    condition_number,
    effective_rank,
    effective_rank_squared,
    nesum,
    participation_ratio,
    power_law_tail,
    rankme,
    spectrum,
    stable_rank,
)

EXACT = ["svd", "tsqr", "gram", "auto"]


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
    fit = alpha_req(sigma)
    assert fit.alpha == pytest.approx(alpha, abs=1e-9)
    assert fit.r_squared == pytest.approx(1)
    assert (fit.first, fit.last) == (11, 100)


def test_alpha_refuses_few_ranks():
    with pytest.raises(ValueError, match="at least 20 ranks"):
        alpha_req(gaussian(100, np.ones(24)))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(1, 4), "at least two rows"),
        (torch.zeros(5, 4), "all zero"),
        (torch.ones(5), "finite|shape"),
        (torch.ones(5, 4, dtype=torch.int64), "floating point"),
        (torch.ones(2, 3, 4), "shape"),
        (torch.tensor([[1.0, 2.0], [3.0, float("nan")], [float("inf"), 0.0]]), "row 1 of the embeddings holds NaN"),
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


def test_one_question_to_all_numbers_of_a_spectrum():
    """[2, 1, 1]: by hand."""
    sigma = np.array([2.0, 1.0, 1.0])
    assert effective_rank(sigma) == pytest.approx(np.exp(0.5 * np.log(2) + 0.5 * np.log(4)), rel=1e-12)
    assert effective_rank_squared(sigma) == pytest.approx((4 / 6) ** -(4 / 6) * (1 / 6) ** -(2 / 6), rel=1e-12)
    assert stable_rank(sigma) == nesum(sigma) == pytest.approx(6 / 4)
    assert participation_ratio(sigma) == pytest.approx(36 / 18)
    assert condition_number(sigma) == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_numbers_of_a_spectrum_are_bounded_ordered_and_without_scale(values, scale):
    sigma = np.array(values)
    ordered = [stable_rank(sigma), participation_ratio(sigma), effective_rank_squared(sigma), effective_rank(sigma)]
    assert ordered[0] >= 1 - 1e-9 and ordered[-1] <= len(sigma) * (1 + 1e-9)
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(ordered))
    numbers = (*ordered, condition_number(sigma))
    functions = (stable_rank, participation_ratio, effective_rank_squared, effective_rank, condition_number)
    assert [f(scale * sigma) for f in functions] == pytest.approx(numbers, rel=1e-9)


def test_numbers_of_a_matrix_are_those_of_its_covariance():
    z = gaussian(400, 1 / np.arange(1, 31), seed=5) + 3
    values = np.linalg.eigvalsh(np.cov(z.T))
    assert nesum(z) == pytest.approx(values.sum() / values[-1], rel=1e-9)
    assert participation_ratio(z) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    assert stable_rank(z) == pytest.approx((np.linalg.norm(z) / np.linalg.norm(z, 2)) ** 2, rel=1e-9)
    assert condition_number(z) == pytest.approx(np.linalg.cond(z), rel=1e-6)


def test_participation_ratio_against_scikit_learn():
    from sklearn.decomposition import PCA

    z = gaussian(300, 1 / np.arange(1, 21), seed=8) - 2
    variance = PCA().fit(z).explained_variance_
    assert participation_ratio(z) == pytest.approx(variance.sum() ** 2 / (variance**2).sum(), rel=1e-9)
    assert spectrum(z, center=True).numpy() == pytest.approx(np.sqrt(variance * (len(z) - 1)), rel=1e-9)


def test_stable_pretraining_s_formula_at_its_own_constant():
    """The public monitor adds 1e-5 and not 1e-7: another number under the same name, and we give it when asked."""
    z = torch.as_tensor(gaussian(500, np.arange(1, 401) ** -2.0, seed=3))
    sigma = torch.linalg.svdvals(z)
    p = sigma / torch.sum(sigma) + 1e-5
    assert rankme(z, eps=1e-5) == pytest.approx(float(torch.exp(-torch.sum(p * torch.log(p)))), rel=1e-10)
    assert rankme(z, eps=1e-5) > 1.02 * rankme(z)


def brute_force_tail(values, least=10):
    """Clauset, Shalizi & Newman, written out: every start, the smallest Kolmogorov-Smirnov distance."""
    found = []
    for x_min in np.sort(values)[: len(values) - least + 1]:
        tail = np.sort(values[values >= x_min])
        exponent = 1 + len(tail) / np.log(tail / x_min).sum()
        cdf = 1 - (tail / x_min) ** (1 - exponent)
        upper, lower = np.arange(1, len(tail) + 1) / len(tail), np.arange(len(tail)) / len(tail)
        found.append((max(abs(upper - cdf).max(), abs(lower - cdf).max()), exponent, len(tail)))
    return min(found)


def test_tail_agrees_with_brute_force_and_finds_the_exponent():
    rng = np.random.default_rng(4)
    tail = rng.pareto(1.5, size=2000) + 1  # density exponent 2.5
    fit = power_law_tail(np.sqrt(tail))
    distance, exponent, count = brute_force_tail(tail)
    assert (fit.distance, fit.exponent, fit.count) == (pytest.approx(distance), pytest.approx(exponent), count)
    assert abs(fit.exponent - 2.5) < 3 * fit.standard_error


def test_tail_of_a_power_law_of_ranks_is_alpha_turned_round():
    sigma = np.arange(1, 2001.0) ** -0.5  # lambda_i = 1 / i
    assert power_law_tail(sigma).exponent == pytest.approx(1 + 1 / alpha_req(sigma).alpha, rel=0.02)


def test_tail_refuses_few_or_equal_eigenvalues():
    with pytest.raises(ValueError, match="at least 20"):
        power_law_tail(np.arange(1.0, 15))
    with pytest.raises(ValueError, match="no tail"):
        power_law_tail(np.ones(50))


def test_rounding_of_float32_does_not_bend_the_fits():
    """The centred output of a layer norm has an empty direction, which float32 fills with 1e-8."""
    z = torch.as_tensor(gaussian(3000, np.arange(1, 49) ** -0.5)).float()
    z = torch.nn.functional.layer_norm(z, (48,))
    sigma = spectrum(z, center=True)
    assert 0 < sigma[-1] < 1e-6 * sigma[0]
    assert alpha_req(z) == alpha_req(sigma[:-1])
    assert power_law_tail(z) == power_law_tail(sigma[:-1])


def test_alpha_refuses_rank_zero():
    with pytest.raises(ValueError, match="counted from 1"):
        alpha_req(np.arange(100, 1, -1.0), fit_range=(0, 50))


# --- methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(5000, 40), (64, 64), (30, 50), (2, 3)])
def test_methods_agree_on_ordinary_data(method, center, shape):
    n, dim = shape
    z = gaussian(n, np.linspace(1, 2, dim), seed=n) + 0.3
    exact = np.linalg.svd(z - z.mean(0) if center else z, compute_uv=False)
    if method == "gram" and center and n <= dim:  # the last of n centred values is exactly zero
        with pytest.warns(SpectrumWarning, match="cannot resolve"):
            found = spectrum(z, center, method)
    else:
        found = spectrum(z, center, method)
    assert found.dtype == torch.float64 and len(found) == min(n, dim)
    assert found.numpy() == pytest.approx(exact, rel=1e-9, abs=1e-7 * exact[0])


def steep(n=3000, dim=48, smallest=1e-12):
    """Singular values from 1 to `smallest`, known exactly up to rounding."""
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(n, dim)))[0], np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    sigma = np.logspace(0, np.log10(smallest), dim)
    return left * sigma @ right, sigma


@pytest.mark.parametrize("method", ["auto", "tsqr", "svd"])
def test_ill_conditioned_spectra_keep_their_tail(method):
    z, sigma = steep()
    assert spectrum(z, method=method).numpy() == pytest.approx(sigma, rel=1e-3)
    assert condition_number(spectrum(z, method=method)) == pytest.approx(1e12, rel=1e-3)


def test_gram_says_what_it_loses():
    z, sigma = steep()
    with pytest.warns(SpectrumWarning, match="singular values lie below 6e-08 of the largest"):
        found = spectrum(z, method="gram").numpy()
    seen = sigma > 1e-6
    assert found[seen] == pytest.approx(sigma[seen], rel=1e-3)
    assert (found[sigma < 1e-9] == 0).all()


def test_centred_output_of_a_layer_norm_has_one_direction_less():
    z = torch.nn.functional.layer_norm(torch.as_tensor(gaussian(2000, np.ones(32))), (32,))
    assert spectrum(z, center=True)[-1] < 1e-12 * spectrum(z, center=True)[0]
    assert condition_number(z, center=True) > 1e12


@pytest.mark.parametrize("method", ["auto", "gram", "tsqr"])
def test_a_huge_offset_costs_no_digits(method):
    z = gaussian(4000, np.linspace(1, 2, 24))
    centred = spectrum(z + 1e3, center=True, method=method).numpy()
    assert centred == pytest.approx(spectrum(z, center=True, method="svd").numpy(), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_type_is_read_exactly(dtype):
    z = torch.as_tensor(gaussian(500, np.ones(8))).to(dtype)
    assert rankme(z) == pytest.approx(numpy_rankme(z.to(torch.float64).numpy(), 1e-7), rel=1e-11)


def test_memory_mapped_files_are_read_in_blocks(tmp_path):
    z = gaussian(5000, np.ones(8)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    assert rankme(mapped) == pytest.approx(rankme(z), rel=1e-12)


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match="auto, svd, gram, tsqr"):
        spectrum(np.eye(3), method="qr")


def test_numbers_take_an_accumulator():
    z = gaussian(500, 1 / np.arange(1, 33))
    seen = SpectrumAccumulator(32).update(z)
    assert rankme(seen) == pytest.approx(rankme(z), rel=1e-10)
    assert participation_ratio(seen) == pytest.approx(participation_ratio(z), rel=1e-10)
