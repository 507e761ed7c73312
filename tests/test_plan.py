"""The plan of the sweep: what its files say agrees, and its test cells are those that were drawn."""

import runpy
from pathlib import Path

import pytest
import yaml

from rankscale.config import RunConfig, profile

ROOT = Path(__file__).resolve().parent.parent
SPEC = yaml.safe_load((ROOT / "data/sweeps/small.yaml").read_text())


@pytest.fixture(scope="module")
def draw():
    return runpy.run_path(str(ROOT / "data/draw_cells.py"))


def test_the_test_cells_are_those_that_the_seed_draws(draw):
    assert SPEC["blocks"]["test"] == {"seeds": [0], "runs": draw["draw_cells"]()}


def test_no_test_cell_is_fitted(draw):
    planned = [run for name, block in SPEC["blocks"].items() if name != "test" for run in block.get("runs", [])]
    assert not [run for run in SPEC["blocks"]["test"]["runs"] if run in planned]
    assert draw["is_planned"](draw["CENTRE"]) and draw["is_planned"](draw["CENTRE"] | {"width": 32, "depth": 1})
    assert not draw["is_planned"](draw["CENTRE"] | {"width": 32, "lr": 1e-3})


def test_the_centre_is_what_the_draw_takes_it_for(draw):
    centre = profile(SPEC["profile"], **SPEC["shared"])
    assert {name: getattr(centre, name) for name in draw["CENTRE"]} == draw["CENTRE"]


@pytest.mark.parametrize("name", SPEC["blocks"])
def test_every_cell_is_a_run(name):
    block = SPEC["blocks"][name]
    for run in block.get("runs", [{}]):
        assert RunConfig(**(SPEC["shared"] | run)).schedule == "branch"
    for field, values in block.get("grid", {}).items():
        for value in values:
            RunConfig(**(SPEC["shared"] | {field: value}))
