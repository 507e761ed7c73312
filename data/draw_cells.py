"""Draw the test cells of `data/PLAN.md`: joint settings at random, from a seed fixed before the first run.

python data/draw_cells.py        prints the block for a sweep's YAML file
"""

import numpy as np
import yaml

SEED, COUNT = 20261121, 10
CHOICES = {
    "width": (32, 64, 96, 128, 192),
    "depth": (1, 2, 3, 4, 6),
    "clips": (16_384, 32_768, 65_536),
    "steps": (500, 1000, 2000, 3000),
    "mask_ratio": (0.5, 0.75, 0.875),
    "lr": (1e-3, 2e-3, 4e-3),
}
CENTRE = {"width": 64, "depth": 4, "clips": 65_536, "steps": 2000, "mask_ratio": 0.75, "lr": 2e-3}


def is_planned(cell: dict) -> bool:
    """Whether a cell lies on an axis through the centre, or is a corner (width and depth both moved, nothing else)."""
    moved = {name for name, value in cell.items() if value != CENTRE[name]}
    return len(moved) <= 1 or moved == {"width", "depth"}


def draw_cells() -> list[dict]:
    """The ten cells, as fields of RunConfig."""
    rng = np.random.default_rng(SEED)
    cells = []
    while len(cells) < COUNT:
        cell = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
        if not is_planned(cell) and cell not in cells:
            cells.append(cell)
    return [{"encoder": f"en{c.pop('width')}-{c.pop('depth')}", **c} for c in cells]


if __name__ == "__main__":
    print(yaml.safe_dump({"test": {"seeds": [0], "runs": draw_cells()}}, sort_keys=False))
