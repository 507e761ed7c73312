"""The points a law is fitted to: checked columns of a table, and what belongs together in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

SHOWN = 5  # bad rows that an error names


@dataclass(frozen=True, eq=False)
class Points:
    """Measured points, one row a run.

    x: (n, variable) positive. y: (n,). names: of the columns of x, then of y. group: (n,) labels, such as the axis a
    run varies. clusters: labels of what was drawn together, from the widest to the narrowest, such as the run and, in
    it, the seed; () where each row stands alone. rows: (n,) what messages call the points, such as "row 3".
    """

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]
    group: np.ndarray | None
    clusters: tuple[np.ndarray, ...]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: np.ndarray) -> Points:
        """Some of the points: indices or a mask, (n,)."""
        some = {name: getattr(self, name)[chosen] for name in ("x", "y", "rows")}
        group = None if self.group is None else self.group[chosen]
        return replace(self, **some, group=group, clusters=tuple(labels[chosen] for labels in self.clusters))


def points(
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str] = (),
    group: Sequence | None = None,
    clusters: Sequence[Sequence] = (),
    rows: np.ndarray | None = None,
) -> Points:
    """Points from arrays: x (n,) or (n, variable), y (n,). See `Points`.

    Raises ValueError for lengths that differ, values that are not finite, x that is not positive, and columns that hold
    one value only.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    names = tuple(names) or (*(("x",) if x.shape[1] == 1 else ("x1", "x2")), "y")
    rows = np.array([f"row {index}" for index in range(len(y))]) if rows is None else np.asarray(rows)
    group = None if group is None else np.asarray(group)
    clusters = tuple(np.asarray(labels) for labels in clusters)
    labels = [part for part in (group, *clusters) if part is not None]
    if x.ndim != 2 or any(len(part) != len(y) for part in (x, *labels)) or len(names) != x.shape[1] + 1:
        raise ValueError(f"x {x.shape}, y {y.shape}, names {names} and labels do not belong together")
    if len(y) < 2:
        raise ValueError(f"{len(y)} point(s): a law needs several")
    for name, column in zip(names, (*x.T, y), strict=True):
        refuse(name, ~np.isfinite(column), rows, "are missing or not finite: fill them in or leave the rows out")
    for name, column in zip(names, x.T, strict=False):
        refuse(name, column <= 0, rows, "are not positive: laws are functions of ln x, so leave these rows out")
    for name, column in zip(names, (*x.T, y), strict=True):
        if np.ptp(column) == 0:
            raise ValueError(f"column {name} holds one value only ({column[0]:g}): a law needs it to vary")
    return Points(x, y, names, group, clusters, rows)


def refuse(name: str, bad: np.ndarray, rows: np.ndarray, what: str) -> None:
    """Raise ValueError that names the column and the bad rows, (n,) of booleans, if there are any."""
    if bad.any():
        shown = ", ".join(rows[bad][:SHOWN]) + (", ..." if bad.sum() > SHOWN else "")
        raise ValueError(f"column {name}: {bad.sum()} of {len(bad)} values {what} ({shown})")


def read_points(
    table: pd.DataFrame, x: Sequence[str], y: str, group: str | None = None, clusters: Sequence[str] = ()
) -> Points:
    """Points from columns of a table. Its index, and the name of that, are how messages name a row ("row 3").

    Raises ValueError as `points` does, for columns that are missing (listing those present) and for cells that are
    no numbers.
    """
    wanted = [*x, y, *([group] if group else []), *clusters]
    if missing := [name for name in wanted if name not in table.columns]:
        raise ValueError(f"no column {', '.join(missing)}; the table has {', '.join(map(str, table.columns))}")
    rows = np.array([f"{table.index.name or 'row'} {index}" for index in table.index])
    numbers = [_numbers(table[name], rows) for name in (*x, y)]
    for name in wanted[len(x) + 1 :]:
        refuse(name, table[name].isna().to_numpy(), rows, "are missing: every row needs a label")
    return points(
        np.column_stack(numbers[:-1]),
        numbers[-1],
        (*x, y),
        None if group is None else table[group].to_numpy(),
        [table[name].to_numpy() for name in clusters],
        rows,
    )


def _numbers(column: pd.Series, rows: np.ndarray) -> np.ndarray:
    found = pd.to_numeric(column, errors="coerce")
    bad = (found.isna() & column.notna()).to_numpy()
    if bad.any():
        raise ValueError(f"column {column.name}, {rows[bad][0]}: {column[bad].iloc[0]!r} is not a number")
    return found.to_numpy(dtype=np.float64)
