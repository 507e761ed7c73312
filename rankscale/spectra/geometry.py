"""Label-free numbers that need the rows and not only their spectrum."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from rankscale.spectra.accumulate import SpectrumAccumulator, blocks, check_shape, check_variation
from rankscale.spectra.ranks import DEFAULT_EPS, rankme

ROWS = 1024  # rows whose distances to all others are held at once


def coherence(z: Tensor | np.ndarray, center: bool = False) -> float:
    """How much of the column space hangs on one clip: n / r * max_i ||U_i||^2, with Z = U S V^T of rank r.

    Returns 1 (every clip counts alike) up to n / r (one clip has a direction of its own, as an outlier does). Blind to
    all clips but the worst one, and to the spectrum: whitening changes nothing. A singular value below 1e-9 of the
    largest counts as zero. Source: Candes & Recht 2009, def. 1.2; for embeddings, Tsitsulin et al. 2023 (arXiv
    2305.16562).
    """
    z = check_shape(z)
    total = SpectrumAccumulator(z.shape[1], "tsqr").update(z)
    total._check(center)
    _, sigma, vt = torch.linalg.svd(total.triangle(center), full_matrices=False)
    keep = sigma > 1e-9 * sigma[0]
    whiten = vt[keep].T / sigma[keep]
    shift = total.mean if center else 0 * total.mean
    largest = max(float(((block - shift) @ whiten).square().sum(dim=1).max()) for block in blocks(z))
    return largest * len(z) / int(keep.sum())


def self_cluster(z: Tensor | np.ndarray) -> float:
    """How much more alike directions of clips are than random ones: (Q - E) / (n^2 - E), E = n + n (n - 1) / dim.

    Q is the sum of squared cosines over all ordered pairs of clips. Returns 1 if all rows point along one line, about
    0 if they are spread like random directions, slightly below if they are spread more evenly. Blind to the lengths of
    rows, and to the sign of a cosine. Uncentred: a common offset looks like a cluster. Memory O(dim^2).
    Raises ValueError for a row of zeros. Source: Tsitsulin et al. 2023 (arXiv 2305.16562), def. 3.5, with the square of
    the Frobenius norm, to which their expectation and maximum belong.
    """
    n_clip, dim = check_shape(z).shape
    check_variation(n_clip, 1.0, 1.0, center=False)
    if dim == 1:
        return 1.0  # every row lies on the one line there is
    moment = torch.zeros(dim, dim, dtype=torch.float64)
    for block in _unit_blocks(z):
        moment.addmm_(block.T, block)
    expected = n_clip + n_clip * (n_clip - 1) / dim
    return (float(moment.square().sum()) - expected) / (n_clip**2 - expected)


def uniformity(z: Tensor | np.ndarray, t: float = 2.0) -> float:
    """ln of the mean of exp(-t ||x - y||^2) over all pairs of different clips, rows scaled to length one.

    Returns 0 (all clips at one place) down to about -2 t where clips are spread evenly in many dimensions; lower is
    more uniform. Blind to lengths of rows. Takes n_clip^2 * dim operations: 10,000 clips are a few seconds.
    Source: Wang & Isola 2020 (arXiv 2005.10242), eq. 2.
    """
    if not t > 0:
        raise ValueError(f"t must be positive, got {t}")
    n_clip = len(check_shape(z))
    check_variation(n_clip, 1.0, 1.0, center=False)
    rows = torch.cat([*_unit_blocks(z)])
    total = 0.0
    for start in range(0, n_clip, ROWS):  # each pair once: rows against themselves and those that follow
        part = rows[start : start + ROWS]
        kernel = torch.exp(2 * t * (part @ rows[start:].T - 1))
        total += 2 * float(kernel.sum()) - float(kernel[:, : len(part)].sum()) - len(part)
    return float(np.log(total / (n_clip * (n_clip - 1))))


def alignment(x: Tensor | np.ndarray, y: Tensor | np.ndarray, power: float = 2.0) -> float:
    """Mean of ||x_i - y_i||^power over pairs of views of the same clip, rows scaled to length one.

    x, y: (n_pair, dim), two views of each clip in the same order. Returns 0 (views agree) up to 2^power (opposite);
    lower is better aligned. Blind to collapse: an encoder that gives one vector to everything is aligned best.
    Source: Wang & Isola 2020 (arXiv 2005.10242), eq. 1.
    """
    if check_shape(x).shape != check_shape(y).shape:
        raise ValueError(f"two views need the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not len(x):
        raise ValueError("alignment needs at least one pair of views")
    pairs = zip(_unit_blocks(x), _unit_blocks(y), strict=True)
    return sum(float((a - b).norm(dim=1).pow(power).sum()) for a, b in pairs) / len(x)


def lidar(x: Tensor | np.ndarray, delta: float = 1e-4, eps: float = DEFAULT_EPS) -> float:
    """Effective rank of what tells surrogate classes apart: exp of the entropy of the eigenvalues of
    W^-1/2 B W^-1/2, with B the scatter of class means and W that within classes plus delta.

    x: (n_class, q, dim): q >= 2 views (augmentations, or pieces of one recording) of each of n_class >= 2 clips.
    B is divided by n_class - 1 and W by n_class (q - 1), so that both are unbiased. delta: added to W's diagonal, in
    squared units of the embedding, so that the scale matters. eps as in RankMe.
    Returns about 1 up to min(dim, n_class - 1). Directions in which the views of a clip differ as much as clips do
    count little, where RankMe counts them fully. Blind to whatever all views of a clip share by accident (a
    microphone, say). Noisy unless n_class is a few times dim. Source: Thilak et al. 2024 (arXiv 2312.04000), eq. 1-3.
    """
    x = torch.as_tensor(x)
    if x.ndim != 3 or x.shape[0] < 2 or x.shape[1] < 2:
        raise ValueError(f"LiDAR needs shape (n_class >= 2, q >= 2, dim), got {tuple(x.shape)}")
    if not delta >= 0:
        raise ValueError(f"delta must not be negative, got {delta}")
    n_class, q, dim = x.shape
    check_shape(x.flatten(0, 1))
    views = torch.cat([*blocks(x.flatten(0, 1))]).reshape(x.shape).cpu()
    means = views.mean(dim=1)
    apart, around = means - means.mean(dim=0), (views - means[:, None]).flatten(0, 1)
    between = apart.T @ apart / (n_class - 1)
    within = around.T @ around / (n_class * (q - 1)) + delta * torch.eye(dim, dtype=torch.float64)
    try:
        values = scipy.linalg.eigh(between.numpy(), within.numpy(), eigvals_only=True)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the scatter within classes is singular; choose a delta above {delta}") from error
    values = np.sort(values)[::-1][: min(dim, n_class - 1)].clip(0).copy()
    if not values.any():
        raise ValueError("all class means are equal: nothing tells the classes apart")
    return rankme(values, eps)


def _unit_blocks(z: Tensor | np.ndarray):
    """Blocks of rows scaled to length one, on the CPU. Raises ValueError that names a row of zeros."""
    start = 0
    for block in blocks(check_shape(z)):
        block = block.cpu()
        length = block.norm(dim=1, keepdim=True)
        if not length.all():
            row = start + int((length[:, 0] == 0).nonzero()[0])
            raise ValueError(f"row {row} of the embeddings is all zero: it has no direction")
        start += len(block)
        yield block / length
