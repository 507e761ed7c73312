"""HEAR's shallow probe: its grid, its network, when it stops, and what it can learn."""

import numpy as np
import pytest
import torch
from torch import nn

from rankscale.hear_eval import GridPoint, Recipe, fit_point, make_probe

SMALL = Recipe(hidden_dim=16, max_epochs=60, check_every=2, patience=4)
ONE = GridPoint(1, "xavier_uniform", 3.2e-3)


def blobs(n=60, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return (np.eye(3)[y] * 4 + rng.normal(size=(n, 3))).astype(np.float32), y


def accuracy(y):
    return lambda probabilities: (float((probabilities.argmax(axis=1) == y).mean()), None)


def test_the_eight_points_are_those_of_hear():
    """Drawn by hear-eval-kit's own lines, with its seed 42."""
    points = [(p.hidden_layers, p.initialisation.removeprefix("xavier_"), p.lr) for p in Recipe().grid]
    assert points[:4] == [(1, "normal", 1e-4), (2, "uniform", 1e-3), (1, "normal", 1e-3), (1, "normal", 3.2e-4)]
    assert points[4:] == [(2, "normal", 3.2e-4), (2, "uniform", 3.2e-4), (2, "normal", 3.2e-3), (2, "uniform", 3.2e-3)]
    assert len(set(Recipe(points=16).grid)) == 16


def test_the_network_is_that_of_hear():
    torch.manual_seed(0)
    model = make_probe(700, 5, GridPoint(2, "xavier_normal", 1e-3), Recipe())
    block = [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU]
    assert [type(layer) for layer in model] == [*block, *block, nn.Linear]
    assert model[2].p == 0.1 and model[4].weight.shape == (1024, 1024) and model[8].weight.shape == (5, 1024)
    expected = [(2 / (700 + 1024)) ** 0.5, (2 * 2 / 2048) ** 0.5]  # Xavier; a gain of sqrt(2) behind a ReLU
    assert [model[0].weight.std().item(), model[4].weight.std().item()] == pytest.approx(expected, rel=0.02)
    uniform = make_probe(700, 5, GridPoint(1, "xavier_uniform", 1e-3), Recipe())[0].weight
    assert uniform.abs().max().item() == pytest.approx(3**0.5 * expected[0], rel=0.01)


def test_it_learns_classes_and_labels():
    (x, y), (valid_x, valid_y) = blobs(), blobs(seed=1)
    fit = fit_point(ONE, SMALL, x, y, 4, valid_x, accuracy(valid_y))  # a fourth class that never occurs
    assert fit.validation > 0.95 and fit.predict(valid_x).shape == (60, 4)
    np.testing.assert_allclose(fit.predict(valid_x).sum(axis=1), 1)
    tags = np.stack([y == 0, y != 1], axis=1)
    judge = lambda p: (float(((p > 0.5) == np.stack([valid_y == 0, valid_y != 1], axis=1)).mean()), None)  # noqa: E731
    fit = fit_point(ONE, SMALL, x, tags, 2, valid_x, judge)
    assert fit.validation > 0.95 and fit.predict(valid_x).sum(axis=1).max() > 1.5


def test_the_best_validation_is_kept_and_patience_ends_it():
    x, y = blobs()
    script = iter([0.2, 0.6, 0.5, 0.6, 0.1, 0.2, 0.9])  # the last one is never asked for
    asked = []

    def judge(probabilities):
        asked.append(probabilities)
        return next(script), f"choice {len(asked)}"

    fit = fit_point(ONE, SMALL, x, y, 3, x, judge)
    assert (fit.epoch, fit.validation, fit.choice, len(asked)) == (4, 0.6, "choice 2", 6)
    np.testing.assert_array_equal(fit.predict(x), asked[1])


def test_a_seed_decides_and_leaves_the_generator_alone():
    x, y = blobs()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (fit_point(ONE, SMALL, x, y, 3, x, accuracy(y), seed).predict(x) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_last_row_alone_joins_its_batch():
    """Batch norm cannot train on one row; HEAR fails there."""
    x, y = blobs(61)
    recipe = Recipe(hidden_dim=16, batch=20, max_epochs=20, check_every=10)
    assert fit_point(ONE, recipe, x, y, 3, x, accuracy(y)).validation > 0.8


def test_a_probe_that_diverges_is_no_probe():
    x, y = blobs()
    assert fit_point(ONE, SMALL, x * np.float32(np.nan), y, 3, x, accuracy(y)) is None


@pytest.mark.parametrize("fault", [{"max_epochs": 2}, {"points": 17}, {"batch": 1}, {"dropout": 1.0}, {"layers": 3}])
def test_recipes_that_make_no_sense_are_refused(fault):
    with pytest.raises(ValueError, match=next(iter(fault))):
        Recipe(**fault)
