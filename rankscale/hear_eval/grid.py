"""HEAR's shallow probe: a small network on frozen embeddings, its settings searched on a grid.

After `heareval/predictions/task_predictions.py` of hear-eval-kit 2021.1.3 (Turian et al. 2022): layers, normalisation,
dropout, initialisation, learning rates, stopping, and the very eight points that its seed 42 draws from the sixteen.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

LAYERS = (1, 2)
INITIALISATIONS = {"xavier_uniform": nn.init.xavier_uniform_, "xavier_normal": nn.init.xavier_normal_}
RATES = (3.2e-3, 1e-3, 3.2e-4, 1e-4)
HEAR_SEED = 42  # of the draw of grid points in hear-eval-kit
ROWS = 8192  # that are predicted at once: frames of long clips are many

Count = Annotated[int, Field(ge=1)]
Judge = Callable[[np.ndarray], tuple[float, Any]]  # probabilities -> how good they are, and a choice made on the way


class GridPoint(NamedTuple):
    """One setting of the probe."""

    hidden_layers: int
    initialisation: str
    lr: float


class Recipe(BaseModel):
    """How probes are trained; the defaults are HEAR's. Raises ValueError where no epoch would be validated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: Annotated[int, Field(ge=1, le=16)] = 8  # of the grid's sixteen
    hidden_dim: Count = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    batch: Annotated[int, Field(ge=2)] = 1024
    check_every: Count = 3  # epochs between validations
    patience: Count = 20  # validations without a better score
    max_epochs: Count = 500

    @model_validator(mode="after")
    def _validates_once(self) -> Recipe:
        if self.max_epochs < self.check_every:
            raise ValueError(f"max_epochs {self.max_epochs} ends before the first validation, check_every")
        return self

    @property
    def grid(self) -> list[GridPoint]:
        """The points that are tried."""
        grid = list(itertools.starmap(GridPoint, itertools.product(LAYERS, INITIALISATIONS, RATES)))
        random.Random(HEAR_SEED).shuffle(grid)
        return grid[: self.points]


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained probe as it was at its best validation. choice: what the judge chose then."""

    point: GridPoint
    epoch: int
    validation: float
    choice: Any
    predict: Callable[[np.ndarray], np.ndarray]  # features (n, dim) -> probabilities (n, n_label)


def make_probe(n_feature: int, n_label: int, point: GridPoint, recipe: Recipe) -> nn.Sequential:
    """Linear, batch norm, dropout, ReLU, once or twice, and a linear layer that gives logits."""
    initialise, layers, width, gain = INITIALISATIONS[point.initialisation], [], n_feature, 1.0
    for out in [recipe.hidden_dim] * point.hidden_layers + [n_label]:
        linear = nn.Linear(width, out)
        initialise(linear.weight, gain=gain)
        layers += [linear, nn.BatchNorm1d(out), nn.Dropout(recipe.dropout), nn.ReLU()]
        width, gain = out, nn.init.calculate_gain("relu")
    return nn.Sequential(*layers[:-3])


def fit_point(
    point: GridPoint, recipe: Recipe, x: np.ndarray, y: np.ndarray, n_label: int, valid_x: np.ndarray, judge: Judge,
    seed: int = 0, device: str = "cpu",
) -> Fit | None:  # fmt: skip
    """Train one probe and keep its best validation; None if it diverged before the first one.

    x: (n, dim) float32, in the order in which batches take them, as HEAR's executed code does; valid_x: (m, dim).
    y: (n,) class numbers or (n, n_label) bool. judge: of validation probabilities; larger is better.
    The same seed gives the same probe; torch's own generators are left alone.
    """
    loss_of = F.cross_entropy if y.ndim == 1 else F.binary_cross_entropy_with_logits
    x, valid_x = (torch.as_tensor(array, dtype=torch.float32, device=device) for array in (x, valid_x))
    y = torch.as_tensor(y, dtype=torch.int64 if y.ndim == 1 else torch.float32, device=device)
    best, waited = None, 0
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        model = make_probe(x.shape[1], n_label, point, recipe).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=point.lr, fused=True)
        for epoch in range(1, recipe.max_epochs + 1):
            model.train()
            for rows in _batches(len(x), recipe.batch):
                optimizer.zero_grad()
                loss_of(model(x[rows]), y[rows]).backward()
                optimizer.step()
            if epoch % recipe.check_every:
                continue
            answer = _probabilities(model, valid_x, y.ndim == 1)
            if not np.isfinite(answer).all():
                break
            goodness, choice = judge(answer)
            waited += 1
            if best is None or goodness > best.validation:
                best, waited = Fit(point, epoch, goodness, choice, _predictor(model, y.ndim == 1)), 0
            if waited >= recipe.patience:
                break
    return best


def _batches(n: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows in order; a last row alone goes with those before it, as batch norm needs two."""
    starts = [start for start in range(0, n, size) if n - start > 1 or start == 0]
    return itertools.starmap(slice, zip(starts, [*starts[1:], n], strict=True))


def _predictor(model: nn.Module, one_label: bool) -> Callable[[np.ndarray], np.ndarray]:
    frozen, device = copy.deepcopy(model), next(model.parameters()).device
    return lambda x: _probabilities(frozen, torch.as_tensor(x, dtype=torch.float32, device=device), one_label)


@torch.inference_mode()
def _probabilities(model: nn.Module, x: Tensor, one_label: bool) -> np.ndarray:
    model.eval()
    logits = torch.cat([model(part) for part in x.split(ROWS)]).double()
    return (logits.softmax(dim=1) if one_label else logits.sigmoid()).cpu().numpy()
