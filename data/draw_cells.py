"""Draw test cells: joint settings at random, from a seed fixed before the first run (see `data/PLAN.md`).

python data/draw_cells.py             prints the block for sweeps/small.yaml
python data/draw_cells.py full        prints the block for sweeps/full-3.yaml
"""

import sys
from dataclasses import dataclass

import numpy as np
import yaml


@dataclass(frozen=True)
class Draw:
    """What is drawn from, how many, and the centre of the sweep."""

    seed: int
    count: int
    choices: dict[str, tuple]
    centre: dict[str, float]


SMALL = Draw(
    20261121,
    10,
    {
        "width": (32, 64, 96, 128, 192),
        "depth": (1, 2, 3, 4, 6),
        "clips": (16_384, 32_768, 65_536),
        "steps": (500, 1000, 2000, 3000),
        "mask_ratio": (0.5, 0.75, 0.875),
        "lr": (1e-3, 2e-3, 4e-3),
    },
    {"width": 64, "depth": 4, "clips": 65_536, "steps": 2000, "mask_ratio": 0.75, "lr": 2e-3},
)
FULL = Draw(
    20261122,
    2,
    {
        "width": (128, 192, 256, 384, 512),
        "depth": (4, 8, 12, 16, 24),
        "clips": (65_536, 262_144, 786_432),
        "steps": (1500, 3000, 6000),
        "mask_ratio": (0.5, 0.75, 0.875),
        "lr": (5e-4, 1e-3, 2e-3),
    },
    {"width": 256, "depth": 12, "clips": 786_432, "steps": 6000, "mask_ratio": 0.75, "lr": 1e-3},
)


def is_planned(cell: dict, draw: Draw = SMALL) -> bool:
    """Whether a cell lies on an axis through the centre, or is a corner (width and depth both moved, nothing else)."""
    moved = {name for name, value in cell.items() if value != draw.centre[name]}
    return len(moved) <= 1 or moved == {"width", "depth"}


def draw_cells(draw: Draw = SMALL) -> list[dict]:
    """The cells, as fields of RunConfig."""
    rng = np.random.default_rng(draw.seed)
    cells = []
    while len(cells) < draw.count:
        cell = {name: values[rng.integers(len(values))] for name, values in draw.choices.items()}
        if not is_planned(cell, draw) and cell not in cells:
            cells.append(cell)
    return [{"encoder": f"en{c.pop('width')}-{c.pop('depth')}", **c} for c in cells]


if __name__ == "__main__":
    drawn = draw_cells(FULL if sys.argv[1:] == ["full"] else SMALL)
    print(yaml.safe_dump({"test": {"seeds": [0], "runs": drawn}}, sort_keys=False))
