"""The plan of the sweep: what its files say agrees, and its test cells are those that were drawn."""

import runpy
from pathlib import Path

import pytest
import yaml

from rankscale.config import RunConfig, profile
from rankscale.sweep import plan, read_spec

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
    centre = draw["SMALL"].centre
    assert draw["is_planned"](centre) and draw["is_planned"](centre | {"width": 32, "depth": 1})
    assert not draw["is_planned"](centre | {"width": 32, "lr": 1e-3})


def test_the_centre_is_what_the_draw_takes_it_for(draw):
    centre = profile(SPEC["profile"], **SPEC["shared"])
    assert {name: getattr(centre, name) for name in draw["SMALL"].centre} == draw["SMALL"].centre


@pytest.mark.parametrize("name", SPEC["blocks"])
def test_every_cell_is_a_run(name):
    block = SPEC["blocks"][name]
    for run in block.get("runs", [{}]):
        assert RunConfig(**(SPEC["shared"] | run)).schedule == "branch"
    for field, values in block.get("grid", {}).items():
        for value in values:
            RunConfig(**(SPEC["shared"] | {field: value}))


# --- full -------------------------------------------------------------------------------------------------

FULL = [ROOT / f"data/sweeps/full-{k}.yaml" for k in (1, 2, 3)]


def test_the_calls_of_full_share_a_centre_and_make_no_run_twice(draw):
    specs = [read_spec(path) for path in FULL]
    assert all(spec.shared == specs[0].shared for spec in specs)
    centre = profile("full", **specs[0].shared)
    assert {name: getattr(centre, name) for name in draw["FULL"].centre} == draw["FULL"].centre
    runs = [each.config for spec in specs for each in plan(spec) if each.floor]
    assert len({run.hash for run in runs}) == len(runs)
    assert (min(run.width for run in runs), max(run.width for run in runs)) == (64, 1024)
    assert (min(run.depth for run in runs), max(run.depth for run in runs)) == (4, 24)
    assert centre in runs


def test_the_test_cells_of_full_are_drawn_and_come_in_the_last_call_only(draw):
    blocks = [yaml.safe_load(path.read_text())["blocks"] for path in FULL]
    assert blocks[2]["test"] == {"seeds": [0], "runs": draw["draw_cells"](draw["FULL"])}
    assert next(iter(blocks[2])) == "test"
    assert not {"test"} & (blocks[0].keys() | blocks[1].keys())
