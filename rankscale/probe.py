"""How much of a task can be read from frozen embeddings: linear, MLP and kNN probes, and the scores they get.

Every probe sees features standardised by its training split, chooses its one setting on the validation split, and
is scored once on the test split. Nothing here knows where the features come from, so that encoders, untrained
encoders and log-Mel floors are measured by the same code.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from rankscale.sound.tasks import Fold, Task

PROBES = ("linear", "knn", "linear_rp32", "mlp")
LINEAR_C = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation, on standardised features
NEIGHBOURS = (1, 5, 20)
MLP_EPOCHS = (5, 15, 40)  # when training may stop
MLP_HIDDEN, MLP_DROPOUT, MLP_LR, MLP_BATCH = 256, 0.1, 2e-3, 256
PROJECTION_DIM = 32
PROJECTION_DRAWS = 5

Features = Mapping[str, np.ndarray]  # split name -> (n_clip, dim)
Scorer = Callable[[np.ndarray], np.ndarray]  # features (n_clip, dim) -> class scores (n_clip, n_class)


@dataclass(frozen=True)
class Data:
    """One split as a probe sees it: features (n_clip, dim) and labels (n_clip,) int or (n_clip, n_label) bool."""

    x: np.ndarray
    y: np.ndarray


def _linear(data: Data) -> Iterator[Scorer]:
    """Logistic regression, strongest penalty first."""
    return (_logistic(data, c) for c in LINEAR_C)


def _logistic(data: Data, c: float) -> Scorer:
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-4)
    if data.y.ndim == 2:
        model = OneVsRestClassifier(model)
    with warnings.catch_warnings():
        # A weak penalty on nearly collinear features may not converge in 1000 iterations. The fit is a candidate like
        # any other: the validation split judges it as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(data.x, data.y).predict_proba


def _knn(data: Data) -> Iterator[Scorer]:
    """Votes of the nearest neighbours by cosine, fewest first."""
    return (_neighbours(data, k) for k in NEIGHBOURS)


def _neighbours(data: Data, neighbours: int) -> Scorer:
    model = KNeighborsClassifier(min(neighbours, len(data.x)), metric="cosine", algorithm="brute")
    model.fit(data.x, data.y)
    if data.y.ndim == 1:
        return model.predict_proba
    return lambda x: np.stack([p[:, -1] if p.shape[1] > 1 else np.zeros(len(p)) for p in model.predict_proba(x)], 1)


def _mlp(data: Data) -> Iterator[Scorer]:
    """One hidden layer, trained with Adam; as it is after each of `MLP_EPOCHS`. The same start and order each time."""
    x, y = torch.as_tensor(data.x, dtype=torch.float32), _targets(data.y)
    loss_of = F.cross_entropy if data.y.ndim == 1 else F.binary_cross_entropy_with_logits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(x.shape[1], MLP_HIDDEN), nn.ReLU(), nn.Dropout(MLP_DROPOUT), nn.Linear(MLP_HIDDEN, y.shape[1])
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=MLP_LR)
        snapshots = []
        for epoch in range(1, max(MLP_EPOCHS) + 1):
            for rows in torch.randperm(len(x)).split(MLP_BATCH):
                optimizer.zero_grad()
                loss_of(model(x[rows]), y[rows]).backward()
                optimizer.step()
            if epoch in MLP_EPOCHS:
                snapshots.append(copy.deepcopy(model).eval())
    yield from (partial(_logits, snapshot) for snapshot in snapshots)


@torch.inference_mode()
def _logits(model: nn.Module, x: np.ndarray) -> np.ndarray:
    return model(torch.as_tensor(x, dtype=torch.float32)).double().numpy()


def _targets(y: np.ndarray) -> Tensor:
    """(n_clip, n_class) float32: labels as they are, or one-hot over the classes that occur."""
    return torch.as_tensor(y if y.ndim == 2 else y[:, None] == np.unique(y), dtype=torch.float32)


def _one_hot(y: np.ndarray, n_class: int) -> np.ndarray:
    return y if y.ndim == 2 else np.eye(n_class, dtype=bool)[y]


def metrics(y: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Scores of predictions against labels.

    y: (n_clip,) class numbers or (n_clip, n_label) bool; scores: (n_clip, n_class), larger is surer.
    Returns `top1_acc` (one label a clip only), `mAP`, `aucroc` and `d_prime`, macro-averaged over the classes that
    occur in y and are not in every clip; d' = sqrt(2) * probit(AUC), with AUC kept one part in 10^6 from 0 and 1.
    """
    truth, scored = _scorable(y, scores)
    auc = np.array([roc_auc_score(truth[:, k], scored[:, k]) for k in range(truth.shape[1])])
    result = {
        "mAP": float(average_precision_score(truth, scored, average="macro")),
        "aucroc": float(auc.mean()),
        "d_prime": float(np.sqrt(2) * ndtri(auc.clip(1e-6, 1 - 1e-6)).mean()),
    }
    if y.ndim == 1:
        result["top1_acc"] = _accuracy(y, scores)
    return result


def _scorable(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Truth (n_clip, n) bool and scores of the classes that occur, and are not in every clip."""
    truth = _one_hot(y, scores.shape[1])
    both = truth.any(axis=0) & ~truth.all(axis=0)
    if not both.any():
        raise ValueError("no class occurs in some test clips and is missing from others: nothing can be scored")
    return truth[:, both], scores[:, both]


def _accuracy(y: np.ndarray, scores: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == y).mean())


def _main_score(y: np.ndarray, scores: np.ndarray) -> float:
    """The one metric of `metrics` that counts: settings are chosen by it, and it is the cheapest."""
    if y.ndim == 1:
        return _accuracy(y, scores)
    return float(average_precision_score(*_scorable(y, scores), average="macro"))


def main_metric(task: Task) -> str:
    """The metric that counts for Q: top-1 accuracy where each clip has one label, else mean average precision."""
    return "top1_acc" if task.prediction == "multiclass" else "mAP"


def _full_width(score: Scorer, classes: np.ndarray, n_class: int) -> Scorer:
    """Scores for every class of the vocabulary, also those that the training split lacks."""

    def widened(x: np.ndarray) -> np.ndarray:
        scores = score(x)
        wide = np.full((len(x), n_class), scores.min(initial=0.0))  # logits may be negative: absent classes come last
        wide[:, classes] = scores
        return wide

    return widened


CANDIDATES: dict[str, Callable[[Data], Iterator[Scorer]]] = {"linear": _linear, "knn": _knn, "mlp": _mlp}


def fit_probe(kind: str, train: Data, valid: Data, n_class: int) -> Scorer:
    """Train the probe `kind` (linear, knn, mlp) at each of its settings and keep the best on the validation split.

    Ties go to the stronger regularisation (linear), the fewer neighbours (kNN) or the fewer epochs (MLP).
    """
    best, best_score = None, -np.inf
    for scorer in CANDIDATES[kind](train):
        if train.y.ndim == 1:
            scorer = _full_width(scorer, np.unique(train.y), n_class)
        score = _main_score(valid.y, scorer(valid.x))
        if score > best_score:
            best, best_score = scorer, score
    return best


def _gather(task: Task, features: Features, splits: Sequence[str]) -> Data:
    return Data(np.concatenate([features[s] for s in splits]), np.concatenate([task.splits[s].labels for s in splits]))


def _fold_metrics(
    task: Task, features: Features, fold: Fold, kind: str, projection: np.ndarray | None
) -> dict[str, float]:
    train, valid, test = (_gather(task, features, part) for part in (fold.train, fold.valid, fold.test))
    scaler = StandardScaler().fit(train.x)

    def prepare(data: Data) -> Data:
        x = scaler.transform(data.x)
        return Data(x if projection is None else x @ projection, data.y)

    train, valid, test = prepare(train), prepare(valid), prepare(test)
    metric = main_metric(task)
    scorer = fit_probe(kind, train, valid, len(task.vocabulary))
    result = metrics(test.y, scorer(test.x))
    return result | {"chance": task.chance, "score": (result[metric] - task.chance) / (1 - task.chance)}


def random_projections(dim: int, draws: int = PROJECTION_DRAWS) -> list[np.ndarray]:
    """Gaussian matrices (dim, 32), the same for every encoder of one width, scaled to keep lengths on average."""
    rng = np.random.default_rng(dim)
    return [rng.normal(size=(dim, PROJECTION_DIM)) / np.sqrt(PROJECTION_DIM) for _ in range(draws)]


def probe_task(task: Task, features: Features, probe: str = "linear") -> dict[str, float]:
    """Score one scene task from frozen features, averaged over its folds (and over draws of the projection).

    features: split name -> (n_clip, dim), rows in the order of the split's labels.
    probe: "linear" (multinomial logistic regression), "knn" (cosine), "mlp" (one hidden layer of 256, after HEAR's
    shallow probe), or "linear_rp32" (linear on random projections to 32 dimensions, 5 draws), which tells more features
    from better features.
    Returns the metrics of `metrics`, `chance`, and `score` = (main metric - chance) / (1 - chance), which is
    negative below chance. Raises ValueError for features that do not fit the labels or are not finite.
    """
    if probe not in PROBES:
        raise ValueError(f"probe {probe!r}: choose one of {', '.join(PROBES)}")
    check_features(task, features)
    dim = next(iter(features.values())).shape[1]
    kind = probe.removesuffix("_rp32")
    projections = random_projections(dim) if probe == "linear_rp32" else [None]
    rows = [_fold_metrics(task, features, fold, kind, p) for fold in task.folds for p in projections]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def check_features(task: Task, features: Features) -> None:
    """Raise ValueError where features are missing for a split, of the wrong length, or not finite."""
    for fold in task.folds:
        for split in (*fold.train, *fold.valid, *fold.test):
            if split not in features:
                raise ValueError(f"task {task.name}: no features for split {split!r}")
    for split, x in features.items():
        if x.ndim != 2 or len(x) != len(task.splits[split].labels):
            raise ValueError(
                f"task {task.name}, split {split!r}: features of shape {x.shape} for "
                f"{len(task.splits[split].labels)} labelled clips"
            )
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise ValueError(f"task {task.name}, split {split!r}: features of clip {row} hold NaN or infinity")


def quality(scores: Mapping[str, float]) -> float:
    """Q: the plain mean of the tasks' normalised scores; negative scores count."""
    if not scores:
        raise ValueError("quality needs at least one task score")
    return float(np.mean(list(scores.values())))
