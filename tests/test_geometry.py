"""Numbers that need the rows: by hand, by an independent definition, at their limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from test_spectra import gaussian

from rankscale.spectra import alignment, coherence, lidar, rankme, self_cluster, uniformity


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("center", [False, True])
def test_coherence_agrees_with_the_definition(center):
    z = gaussian(3000, 1 / np.arange(1, 21)) + 1
    u = np.linalg.svd(z - z.mean(0) if center else z, full_matrices=False)[0]
    expected = len(z) / 20 * (u**2).sum(axis=1).max()
    assert coherence(z, center) == pytest.approx(expected, rel=1e-9)


def test_coherence_at_its_limits():
    hadamard = np.kron([[1, 1], [1, -1]], np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]])).astype(float)
    assert coherence(hadamard[:, :4]) == pytest.approx(1)  # every row counts alike
    z = np.zeros((10, 2))
    z[:, 0], z[3, 1] = 1, 1  # the second direction belongs to one clip
    z[3, 0] = 0
    assert coherence(z) == pytest.approx(10 / 2)


def test_self_cluster_agrees_with_all_pairs():
    z = gaussian(300, 1 / np.arange(1, 11)) + 0.4
    n, d = z.shape
    expected = n + n * (n - 1) / d
    quality = ((unit(z) @ unit(z).T) ** 2).sum()
    assert self_cluster(z) == pytest.approx((quality - expected) / (n**2 - expected), rel=1e-9)


def test_self_cluster_at_its_limits():
    assert self_cluster(np.ones((50, 8))) == pytest.approx(1)
    assert self_cluster(np.eye(8)) == pytest.approx(-1 / 7)
    assert abs(self_cluster(gaussian(5000, np.ones(32)))) < 1e-3
    assert self_cluster(gaussian(10, np.ones(1))) == 1


@pytest.mark.parametrize("n", [2, 100, 1500])
def test_uniformity_agrees_with_all_pairs(n):
    z = gaussian(n, np.ones(5)) + 0.5
    expected = np.log(np.exp(-2 * pdist(unit(z)) ** 2).mean())
    assert uniformity(z) == pytest.approx(expected, rel=1e-9)
    assert uniformity(z, t=1) == pytest.approx(np.log(np.exp(-(pdist(unit(z)) ** 2)).mean()), rel=1e-9)


def test_uniformity_at_its_limits():
    assert uniformity(np.ones((20, 3))) == pytest.approx(0, abs=1e-12)
    assert uniformity(gaussian(2000, np.ones(400))) == pytest.approx(-4, abs=0.05)


def test_alignment_agrees_with_the_definition():
    x, y = gaussian(3000, np.ones(6), seed=1), gaussian(3000, np.ones(6), seed=2)
    distance = np.linalg.norm(unit(x) - unit(y), axis=1)
    assert alignment(x, y) == pytest.approx((distance**2).mean(), rel=1e-9)
    assert alignment(x, y, power=1) == pytest.approx(distance.mean(), rel=1e-9)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)


def independent_lidar(x, delta, eps):
    """The definition with an explicit inverse root of the within-class scatter."""
    n, _, d = x.shape
    means = x.mean(axis=1)
    between = np.cov(means.T)
    within = sum(np.cov(views.T) for views in x) / n + delta * np.eye(d)
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    spectrum = np.linalg.eigvalsh(root @ between @ root)[::-1][: min(d, n - 1)].clip(0)
    p = spectrum / spectrum.sum() + eps
    return np.exp(-(p * np.log(p)).sum())


def views(n_class, q, signal, noise, seed=0):
    """q noisy views of each of n_class clips. signal, noise: standard deviations, each (dim,)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_class, 1, len(signal))) * signal + rng.normal(size=(n_class, q, len(signal))) * noise


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 60), st.integers(2, 5), st.integers(2, 12), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_lidar_agrees_with_the_definition(n_class, q, dim, delta):
    x = views(n_class, q, 1 / np.arange(1, dim + 1), np.full(dim, 0.3), seed=dim)
    assert lidar(x, delta) == pytest.approx(independent_lidar(x, delta, 1e-7), rel=1e-6)
    assert 1 - 1e-6 <= lidar(x, delta) <= min(dim, n_class - 1) * (1 + 1e-4)


def test_lidar_sees_through_noise_that_fools_rankme():
    """Four directions of signal among 28 that differ from view to view as much as from clip to clip."""
    signal, noise = np.r_[np.ones(4), np.zeros(28)], np.r_[np.full(4, 0.05), np.ones(28)]
    x = views(800, 8, signal, noise)
    assert rankme(x.reshape(-1, 32)) > 28
    assert lidar(x) == pytest.approx(4, abs=0.3)


def test_lidar_does_not_depend_on_rotation_or_offset():
    x = views(100, 4, np.ones(8), np.full(8, 0.5))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    assert lidar(x @ rotation + 100) == pytest.approx(lidar(x), rel=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lidar(np.ones((5, 4))), "n_class >= 2"),
        (lambda: lidar(np.ones((5, 1, 4))), "q >= 2"),
        (lambda: lidar(np.ones((5, 3, 4))), "class means are equal"),
        (lambda: lidar(np.ones((5, 3, 4)), delta=-1.0), "delta"),
        (lambda: lidar(np.arange(60.0).reshape(5, 3, 4) ** 0, delta=0.0), "singular|equal"),
        (lambda: lidar(np.full((5, 3, 4), np.nan)), "row 0"),
        (lambda: self_cluster(np.zeros((4, 3))), "row 0 .* all zero"),
        (lambda: self_cluster(np.ones((1, 3))), "at least two"),
        (lambda: uniformity(np.ones((4, 3)), t=0), "t must be positive"),
        (lambda: uniformity(np.ones(4)), "shape"),
        (lambda: alignment(np.ones((4, 3)), np.ones((5, 3))), "same shape"),
        (lambda: alignment(np.ones((0, 3)), np.ones((0, 3))), "at least one pair"),
        (lambda: coherence(np.ones((4, 3)), center=True), "all rows"),
        (lambda: coherence(torch.ones(4, 3, dtype=torch.int32)), "floating point"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
