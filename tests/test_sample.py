"""What more clips would give: the population's rank from a sample, and intervals that cover it."""

import numpy as np
import pytest
from test_spectra import gaussian

from rankscale.spectra import effective_rank, rankme, rankme_corrected, resample, sample_bias, stable_rank

SPECTRA = {"white": np.ones(96), "power law": np.arange(1, 97) ** -0.5, "steep": np.arange(1, 97) ** -1.0}


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_correction_recovers_the_population(name, ratio):
    scales = SPECTRA[name]
    population = effective_rank(scales)
    found = [rankme_corrected(gaussian(ratio * 96, scales, seed), eps=0) for seed in range(3)]
    assert np.mean([each.value for each in found]) == pytest.approx(population, rel=0.02)
    for each in found:
        assert 0.89 * population < each.raw < 0.98 * population
        assert each.low < each.value <= each.high <= 96
        assert (each.n_clip, each.dim) == (ratio * 96, 96)


def test_raw_value_is_rankme():
    z = gaussian(300, SPECTRA["power law"])
    assert rankme_corrected(z).raw == pytest.approx(rankme(z), rel=1e-9)
    assert rankme_corrected(z, center=True).raw == pytest.approx(rankme(z, center=True), rel=1e-9)


@pytest.mark.parametrize("ratio", [4, 8, 16])
def test_the_rule_for_a_flat_spectrum(ratio):
    shares = [rankme(gaussian(ratio * 64, np.ones(64), seed), eps=0) / 64 for seed in range(10)]
    assert np.mean(shares) == pytest.approx(sample_bias(ratio * 64, 64), abs=0.005)


def test_intervals_cover_the_population_about_as_often_as_they_say():
    scales = SPECTRA["power law"][:48]
    population = effective_rank(scales)
    found = [rankme_corrected(gaussian(8 * 48, scales, seed), eps=0) for seed in range(60)]
    assert 0.85 <= np.mean([each.low <= population <= each.high for each in found]) <= 1
    spread = np.std([np.log(each.value) for each in found])
    assert np.mean([each.standard_error for each in found]) == pytest.approx(spread, rel=0.35)


def test_any_number_of_a_spectrum_can_be_resampled():
    scales = SPECTRA["steep"]
    found = resample(gaussian(2000, scales), groups=12).estimate(stable_rank, level=0.9)
    assert found.low < stable_rank(scales) < found.high
    assert found.level == 0.9


def test_copies_of_a_recording_stay_together():
    """Every clip four times: without the labels, the copies would pass for independent clips."""
    z = gaussian(300, np.arange(1, 33) ** -0.5)
    copies = np.repeat(z, 4, axis=0)
    known = rankme_corrected(copies, clusters=np.repeat(np.arange(300), 4))
    blind = rankme_corrected(copies)
    once = rankme_corrected(z)
    assert known.raw == pytest.approx(once.raw, rel=1e-9)
    assert known.value == pytest.approx(once.value, rel=0.01)
    assert blind.value - blind.raw < 0.5 * (known.value - known.raw)


def test_same_seed_same_answer():
    z = gaussian(500, np.ones(16))
    assert rankme_corrected(z, seed=3) == rankme_corrected(z, seed=3) != rankme_corrected(z, seed=4)


def test_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="63 independent clips for 32 dimensions: the correction needs at least 64"):
        rankme_corrected(gaussian(63, np.ones(32)))
    with pytest.raises(ValueError, match="32 independent clips for 32 dimensions"):
        rankme_corrected(gaussian(128, np.ones(32)), clusters=np.arange(128) // 4)
    with pytest.raises(ValueError, match="15 independent clips cannot be dealt into 10 groups"):
        resample(gaussian(15, np.ones(4)))
    with pytest.raises(ValueError, match="clusters has 3 labels for 50 clips"):
        resample(gaussian(50, np.ones(4)), clusters=np.arange(3))
    with pytest.raises(ValueError, match="at least 1"):
        sample_bias(0, 3)


def test_numbers_that_cannot_be_corrected_are_refused():
    z = gaussian(60, np.ones(16))
    with pytest.raises(ValueError, match="positive and finite"):
        resample(z).estimate(lambda sigma: 0.0)
    with pytest.raises(ValueError, match="take more clips"):
        resample(z).estimate(lambda sigma: float(sigma[-1]) ** -9)
