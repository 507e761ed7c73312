"""Effective rank and its relatives: what an embedding matrix looks like without labels.

`accumulate` second moments of embeddings that arrive in pieces; `decompose` singular values; `ranks` numbers of a
spectrum; `sample` what they would be with more clips, and intervals; `geometry` numbers that need the rows;
`layers` the spectra of every layer of a network in one pass.
"""

from rankscale.spectra.accumulate import SpectrumAccumulator, SpectrumWarning, mixture
from rankscale.spectra.decompose import spectrum
from rankscale.spectra.geometry import alignment, coherence, lidar, self_cluster, uniformity
from rankscale.spectra.layers import LayerSpectra
from rankscale.spectra.ranks import (
    DEFAULT_EPS,
    PowerLawDecay,
    PowerLawTail,
    alpha_req,
    condition_number,
    effective_rank,
    effective_rank_squared,
    nesum,
    participation_ratio,
    power_law_tail,
    rankme,
    stable_rank,
)
from rankscale.spectra.sample import (
    FEWEST_PER_DIMENSION,
    RankEstimate,
    Resampled,
    deal,
    rankme_corrected,
    resample,
    sample_bias,
)

__all__ = [
    "DEFAULT_EPS",
    "FEWEST_PER_DIMENSION",
    "LayerSpectra",
    "PowerLawDecay",
    "PowerLawTail",
    "RankEstimate",
    "Resampled",
    "SpectrumAccumulator",
    "SpectrumWarning",
    "alignment",
    "alpha_req",
    "coherence",
    "condition_number",
    "deal",
    "effective_rank",
    "effective_rank_squared",
    "lidar",
    "mixture",
    "nesum",
    "participation_ratio",
    "power_law_tail",
    "rankme",
    "rankme_corrected",
    "resample",
    "sample_bias",
    "self_cluster",
    "spectrum",
    "stable_rank",
    "uniformity",
]
