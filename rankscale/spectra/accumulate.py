"""Second moments of embeddings that arrive in pieces: exact, mergeable, in memory that does not grow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.linalg.blas import dsyrk
from torch import Tensor

from rankscale.storage import write_atomically

METHODS = ("gram", "tsqr")
BLOCK = 2048  # rows that are turned into float64 at once

# Eigenvalues of a Gram matrix carry an absolute error of a few rounding errors of the largest one. On matrices of
# rank 1 and 5 it was at most 2.3, 3.0, 4.1 and 6.5 of them at widths 64, 256, 768 and 1536; this leaves a margin.
GRAM_NOISE = 16 * torch.finfo(torch.float64).eps
GRAM_RESOLUTION = math.sqrt(GRAM_NOISE)  # 6e-8: singular values below this share of the largest are lost


class SpectrumWarning(UserWarning):
    """A spectrum was asked for that the chosen method cannot resolve."""


def check_shape(z: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Refuse what is not a floating-point matrix (n_clip, dim); nothing is copied."""
    z = z if isinstance(z, Tensor) else np.asarray(z)
    if z.ndim != 2 or z.shape[1] < 1:
        raise ValueError(f"embeddings must have shape (n_clip, dim), got {tuple(z.shape)}")
    floating = z.dtype.is_floating_point if isinstance(z, Tensor) else np.issubdtype(z.dtype, np.floating)
    if not floating:
        raise ValueError(f"embeddings must be floating point, got {z.dtype}; convert with z.float()")
    return z


def check_variation(rows: int, offset: float, spread: float, center: bool) -> None:
    """Refuse what has no spectrum. offset: largest entry of the mean row; spread: largest deviation of a column."""
    if rows < 2:
        raise ValueError(f"a rank needs at least two rows (clips), got {rows}")
    if offset == 0 and spread == 0:
        raise ValueError("the embeddings are all zero: they have no spectrum")
    if center and spread <= 1e-14 * offset:
        raise ValueError("all rows of the embeddings are equal: nothing is left after centring")


def blocks(z: Tensor | np.ndarray, first_row: int = 0) -> Iterator[Tensor]:
    """A matrix in float64 pieces of at most `BLOCK` rows, each a copy of its own and checked to be finite.

    first_row: number of the matrix's first row, for the error that names a row with NaN or infinity.
    """
    for start in range(0, len(z), BLOCK):
        block = _in_float64(z[start : start + BLOCK])
        if not math.isfinite(_rows(block).sum()):
            bad = ~torch.isfinite(block).all(dim=1)
            if bad.any():
                row = first_row + start + int(bad.nonzero()[0])
                raise ValueError(f"row {row} of the embeddings holds NaN or infinity")
        yield block


def _in_float64(part: Tensor | np.ndarray) -> Tensor:
    """A copy in float64, on the device of the part."""
    if isinstance(part, Tensor):
        part = part.detach()
        if part.is_cuda or part.dtype == torch.bfloat16:  # NumPy knows neither
            return part.to(torch.float64, copy=True)
        part = part.numpy()
    return torch.from_numpy(np.array(part, dtype=np.float64))


def _rows(block: Tensor) -> Tensor | np.ndarray:
    """The same memory as NumPy sees it, where it can.

    On a CPU the loop over blocks stays in NumPy and SciPy: torch's threads spin for a while after each operation, and
    two sets of threads on the same cores took twice as long as one.
    """
    return block if block.is_cuda else block.numpy()


class SpectrumAccumulator:
    """Sees rows once, in any pieces, and knows the spectrum of all of them.

    It keeps the number of rows, their mean, and one matrix (dim, dim) about the mean: with method "gram" the
    scatter matrix sum (z - mean)(z - mean)^T, with "tsqr" a triangular R with R^T R equal to it. Pieces are
    combined by the exact update of Chan, Golub & LeVeque (1983), so that an offset of any size costs no digits, and
    shards merge to what one pass gives. Memory is O(dim^2), whatever the number of rows. All in float64.

    "gram" costs one symmetric product a block. It squares the condition number: singular values below 6e-8 of the
    largest are lost in rounding. They are returned as 0 with a `SpectrumWarning`. "tsqr" (a QR decomposition a block;
    Demmel et al. 2012) keeps them to 1e-15 and costs several times as much.

    dim: width of the embeddings. device: where the sums live; rows are moved there.
    """

    def __init__(self, dim: int, method: str = "gram", device: torch.device | str = "cpu") -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if method not in METHODS:
            raise ValueError(f"method {method!r}: choose {' or '.join(METHODS)}")
        self.dim, self.method = dim, method
        self.rows = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._about_mean = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, z: Tensor | np.ndarray) -> SpectrumAccumulator:
        """Add rows, (n_clip, dim), any floating type; n_clip may be 1, or 0.

        A row with NaN or infinity raises ValueError and is named; nothing from its block of 2048 rows on is added.
        """
        z = check_shape(z)
        if z.shape[1] != self.dim:
            raise ValueError(f"embeddings of width {z.shape[1]} were given to an accumulator of width {self.dim}")
        for block in blocks(z, self.rows):
            block = block.to(self.mean.device)
            rows = _rows(block)
            mean = rows.mean(0)
            rows -= mean
            self._add(len(block), torch.as_tensor(mean), block)
        return self

    def merge(self, other: SpectrumAccumulator) -> SpectrumAccumulator:
        """Add everything another accumulator has seen. Both need the same width and method."""
        if (self.dim, self.method) != (other.dim, other.method):
            raise ValueError(
                f"cannot merge width {other.dim}, method {other.method} into width {self.dim}, method {self.method}"
            )
        if other.rows:
            device = self.mean.device
            self._add(other.rows, other.mean.to(device), other._about_mean.to(device), summed=True)
        return self

    def _add(self, rows: int, mean: Tensor, centred: Tensor, summed: bool = False) -> None:
        """Combine with `rows` rows of this mean. centred: the rows less their mean, or their matrix if summed."""
        total = self.rows + rows
        step = mean - self.mean
        bridge = (step * math.sqrt(self.rows / total * rows)).unsqueeze(0)  # between the two means
        if self.method == "tsqr":
            self._about_mean = _triangle(torch.cat([self._about_mean, centred, bridge]))
        else:
            if summed:
                self._about_mean += centred
            else:
                _add_product(self._about_mean, centred)
            _add_product(self._about_mean, bridge)
        self.mean = self.mean + step * (rows / total)
        self.rows = total

    def spectrum(self, center: bool = False) -> Tensor:
        """Singular values of all rows seen, largest first: (min(rows, dim),) float64.

        center: of the rows less their mean. Raises ValueError for fewer than two rows, or if nothing varies.
        """
        self._check(center)
        values, lost = self._decompose(center)
        if lost:
            warnings.warn(
                f"{lost} of {len(values)} singular values lie below {GRAM_RESOLUTION:.0e} of the largest, where method "
                "'gram' cannot resolve them; they count as 0. Method 'tsqr' keeps them.",
                SpectrumWarning,
                stacklevel=2,
            )
        return values

    def _check(self, center: bool) -> None:
        check_variation(self.rows, float(self.mean.abs().max()), self._spread(), center)

    def _decompose(self, center: bool) -> tuple[Tensor, int]:
        """Singular values, and how many of them the method has lost."""
        kept = min(self.rows, self.dim)
        if self.method == "tsqr":
            return torch.linalg.svdvals(self.triangle(center))[:kept].cpu(), 0
        gram = self._about_mean if center else torch.addr(self._about_mean, self.mean, self.mean, alpha=self.rows)
        energy = _eigenvalues(gram)[:kept]
        lost = energy < GRAM_NOISE * energy[0]
        return energy.masked_fill(lost, 0).sqrt(), int(lost.sum())

    def triangle(self, center: bool = False) -> Tensor:
        """A matrix (dim + 1, dim) with the singular values of all rows, and their right singular vectors."""
        if self.method != "tsqr":
            raise ValueError("only method 'tsqr' keeps a triangle")
        mean = (0 if center else math.sqrt(self.rows)) * self.mean
        return torch.cat([self._about_mean, mean.unsqueeze(0)])

    def _spread(self) -> float:
        """Root mean square of the centred rows along the widest column."""
        if self.method == "tsqr":
            return float(self._about_mean.square().sum(dim=0).max().sqrt()) / math.sqrt(max(1, self.rows))
        return math.sqrt(float(self._about_mean.diagonal().max()) / max(1, self.rows))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> SpectrumAccumulator:
        """Merge the accumulators of all processes of a torch.distributed group; each ends with the total."""
        count = torch.tensor([self.rows], dtype=torch.float64, device=self.mean.device)
        total_mean = self.mean * self.rows
        dist.all_reduce(count, group=group)
        dist.all_reduce(total_mean, group=group)
        total = int(count)
        if total == 0:
            return self
        total_mean /= total
        bridge = ((self.mean - total_mean) * math.sqrt(self.rows)).unsqueeze(0)
        if self.method == "gram":
            _add_product(self._about_mean, bridge)
            dist.all_reduce(self._about_mean, group=group)
        else:
            mine = _triangle(torch.cat([self._about_mean, bridge]))
            parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, mine, group=group)
            self._about_mean = _triangle(torch.cat(parts))
        self.mean, self.rows = total_mean, total
        return self

    def save(self, path: str | Path) -> Path:
        """Write the state as safetensors, whole or not at all."""
        tensors = {"mean": self.mean.cpu(), "about_mean": self._about_mean.cpu().contiguous()}
        metadata = {"format": "rankscale-spectrum-1", "rows": str(self.rows), "method": self.method}
        return write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> SpectrumAccumulator:
        """Read what `save` wrote. Raises ValueError that names the file if it is something else."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a saved spectrum: {error}") from error
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        if metadata.get("format") != "rankscale-spectrum-1":
            raise ValueError(f"{path} is not a saved spectrum: write one with SpectrumAccumulator.save")
        state = cls(len(tensors["mean"]), metadata["method"], device)
        state.rows = int(metadata["rows"])
        state.mean, state._about_mean = tensors["mean"].to(device), tensors["about_mean"].to(device)
        return state


def mixture(parts: Sequence[SpectrumAccumulator], shares: Sequence[float]) -> SpectrumAccumulator:
    """Moments of a mixture in which rows of part i make up shares[i] of all, whatever their number.

    By the law of total covariance: mean m = sum w_i m_i, covariance = sum w_i (C_i + (m_i - m)(m_i - m)^T). Its `rows`
    are the whole number of rows that its mean is as certain as, 1 / sum(w_i^2 / n_i) (Kish 1965). Shares in proportion
    to the parts' rows give what merging them does. Raises ValueError unless all parts have rows, one width and method
    "gram", and the shares, none negative, sum to 1.
    """
    if len(parts) != len(shares) or min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares {list(shares)}: give each of the {len(parts)} parts one, from 0 up, with sum 1")
    kinds = {(part.dim, part.method, part.rows > 0) for part in parts}
    if len(kinds) > 1 or not all(part.rows and part.method == "gram" for part in parts):
        found = [(part.dim, part.method, part.rows) for part in parts]
        raise ValueError(f"a mixture needs parts of one width, with method 'gram' and with rows; got {found}")
    rows = round(1 / sum(share**2 / part.rows for share, part in zip(shares, parts, strict=True)))
    mixed = SpectrumAccumulator(parts[0].dim, device=parts[0].mean.device)
    for part, share in zip(parts, shares, strict=True):
        if share:
            mixed._add(share * rows, part.mean, part._about_mean * (share * rows / part.rows), summed=True)
    mixed.rows = rows
    return mixed


def _add_product(gram: Tensor, block: Tensor) -> None:
    """gram += block^T block. On a CPU only on and above the diagonal, which is half the work."""
    if gram.is_cuda:
        gram.addmm_(block.T, block)
    else:  # BLAS counts columns first: its lower half is our upper half
        dsyrk(1.0, block.numpy().T, beta=1.0, c=gram.numpy().T, lower=1, overwrite_c=1)


def _eigenvalues(gram: Tensor) -> Tensor:
    """Of a symmetric matrix, largest first; its upper half is read. NumPy's LAPACK takes half the time of torch's."""
    if gram.is_cuda:
        return torch.linalg.eigvalsh(gram, UPLO="U").flip(0).cpu()
    return torch.from_numpy(np.linalg.eigvalsh(gram.numpy(), UPLO="U")).flip(0)


def _triangle(rows: Tensor) -> Tensor:
    """A square matrix R with R^T R = rows^T rows."""
    r = torch.linalg.qr(rows, mode="r").R
    if len(r) < r.shape[1]:
        r = torch.cat([r, r.new_zeros(r.shape[1] - len(r), r.shape[1])])
    return r
