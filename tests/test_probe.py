"""Probes: known answers on features whose information is known, metrics against their definitions, bad input."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from rankscale.probe import PROBES, check_features, main_metric, metrics, probe_task, quality, random_projections
from rankscale.sound.tasks import TRAIN_VALID_TEST, Split, Task, kfold


def make_task(labels_by_split, prediction="multiclass", n_class=4, folds=TRAIN_VALID_TEST):
    splits = {name: Split(name, labels, clips=lambda: iter(())) for name, labels in labels_by_split.items()}
    vocabulary = tuple(f"class{k}" for k in range(n_class))
    return Task("toy", "v0", "scene", prediction, vocabulary, splits, folds)


def toy(separation, n=200, n_class=4, dim=10, seed=0, splits=("train", "valid", "test"), folds=TRAIN_VALID_TEST):
    """Gaussian classes whose means lie `separation` standard deviations from the origin."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_class, dim)) * separation / np.sqrt(dim)
    labels = {split: np.arange(n) % n_class for split in splits}
    features = {split: means[y] + rng.normal(size=(n, dim)) for split, y in labels.items()}
    return make_task(labels, n_class=n_class, folds=folds), features


@pytest.mark.parametrize("probe", PROBES)
def test_separable_classes_score_one_and_noise_scores_zero(probe):
    task, features = toy(separation=30)
    assert probe_task(task, features, probe)["score"] > 0.99
    task, features = toy(separation=0, n=600)
    assert abs(probe_task(task, features, probe)["score"]) < 0.08


def test_score_is_accuracy_above_chance():
    task, features = toy(separation=3)
    result = probe_task(task, features)
    assert result["chance"] == 0.25
    assert result["score"] == pytest.approx((result["top1_acc"] - 0.25) / 0.75)
    assert 0 < result["score"] < 1


def test_linear_probe_ignores_an_invertible_map_but_knn_need_not():
    task, features = toy(separation=3)
    stretched = {split: x * np.geomspace(1, 1e3, x.shape[1]) + 7 for split, x in features.items()}
    assert probe_task(task, stretched)["score"] == pytest.approx(probe_task(task, features)["score"], abs=0.01)


def test_mlp_sees_what_no_line_can():
    """Two classes by the sign of a product: each number alone, and any line, tells nothing."""
    rng = np.random.default_rng(0)
    features = {split: rng.normal(size=(1500, 2)) for split in ("train", "valid", "test")}
    task = make_task({split: (x[:, 0] * x[:, 1] > 0).astype(int) for split, x in features.items()}, n_class=2)
    assert probe_task(task, features, "mlp")["score"] > 0.85
    assert probe_task(task, features, "linear")["score"] < 0.4


def test_mlp_gives_the_same_score_again_and_leaves_the_generator_alone():
    task, features = toy(separation=2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = probe_task(task, features, "mlp")
    assert torch.rand(1) == expected
    assert probe_task(task, features, "mlp") == first


def test_folds_are_averaged():
    names = ("fold00", "fold01", "fold02", "fold03")
    task, features = toy(separation=3, splits=names, folds=kfold(names))
    single = [make_task({s: task.splits[s].labels for s in names}, folds=(fold,)) for fold in task.folds]
    scores = [probe_task(one, features)["top1_acc"] for one in single]
    assert probe_task(task, features)["top1_acc"] == pytest.approx(np.mean(scores))


def test_classes_missing_from_training_count_as_wrong():
    task, features = toy(separation=30)
    keep = task.splits["train"].labels != 3
    small = make_task(
        {**{s: task.splits[s].labels for s in ("valid", "test")}, "train": task.splits["train"].labels[keep]}
    )
    result = probe_task(small, features | {"train": features["train"][keep]})
    assert result["top1_acc"] == pytest.approx(0.75, abs=0.02)


def test_multilabel_scores_by_average_precision():
    rng = np.random.default_rng(1)
    labels = {s: rng.random((300, 3)) < 0.3 for s in ("train", "valid", "test")}
    features = {
        s: np.hstack([y + 0.1 * rng.normal(size=y.shape), rng.normal(size=(300, 5))]) for s, y in labels.items()
    }
    task = make_task(labels, "multilabel", n_class=3)
    for probe in ("linear", "knn", "mlp"):
        result = probe_task(task, features, probe)
        assert main_metric(task) == "mAP"
        assert result["mAP"] > 0.97
        assert result["chance"] == pytest.approx(labels["test"].mean())
        assert "top1_acc" not in result


def test_d_prime_of_gaussian_scores_is_their_distance():
    rng = np.random.default_rng(2)
    distance = 1.5
    y = np.arange(20_000) % 2
    score = rng.normal(size=len(y)) + distance * y
    p = norm.cdf(score)
    result = metrics(y, np.stack([1 - p, p], axis=1))
    assert result["d_prime"] == pytest.approx(distance, abs=0.05)
    assert result["aucroc"] == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.01)


def test_metrics_need_a_class_that_is_there_and_not_everywhere():
    with pytest.raises(ValueError, match="nothing can be scored"):
        metrics(np.zeros(5, dtype=int), np.ones((5, 1)))


def test_projections_are_fixed_and_keep_lengths_on_average():
    first, second = random_projections(64), random_projections(64)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1])
    x = np.random.default_rng(3).normal(size=(500, 64))
    ratio = ((x @ first[0]) ** 2).sum(1).mean() / (x**2).sum(1).mean()
    assert ratio == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("valid"), "no features for split 'valid'"),
        (lambda f: f.update(test=f["test"][:-1]), r"'test': features of shape \(199, 10\) for 200"),
        (lambda f: f["train"].__setitem__((3, 0), np.nan), "clip 3 hold NaN"),
    ],
)
def test_features_that_do_not_fit_are_named(change, message):
    task, features = toy(separation=1)
    change(features)
    with pytest.raises(ValueError, match=message):
        check_features(task, features)


def test_unknown_probe_and_empty_quality():
    task, features = toy(separation=1)
    with pytest.raises(ValueError, match="choose one of linear"):
        probe_task(task, features, "quadratic")
    with pytest.raises(ValueError, match="at least one task"):
        quality({})


def test_quality_keeps_negative_scores():
    assert quality({"a": 0.5, "b": -0.1}) == pytest.approx(0.2)
