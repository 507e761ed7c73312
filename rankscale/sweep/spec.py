"""What to run: a short text, and the plan that follows from it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankscale.budget import budget
from rankscale.config import RunConfig, profile


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Axis = Annotated[list[Any], Field(min_length=1)]


class Block(_Part):
    """The runs of one question: each of `runs`, at every combination of `grid`, with every seed."""

    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    grid: dict[str, Axis] = {}
    runs: Annotated[list[dict[str, Any]], Field(min_length=1)] = [{}]

    @model_validator(mode="after")
    def _each_field_is_set_once(self) -> Block:
        listed = {name for run in self.runs for name in run}
        for name in self.grid.keys() & listed:
            raise ValueError(f"{name} is set in grid and in runs")
        for where, names in (("grid", self.grid.keys()), ("runs", listed)):
            if self.seeds and "seed" in names:
                raise ValueError(f"seed is set in {where} and in seeds")
        return self

    def settings(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The place of the seed in `seeds`, and the fields that a run of this block sets."""
        axes = [[(name, value) for value in values] for name, values in self.grid.items()]
        for k, seed in enumerate(self.seeds or [None]):
            for changes, point in itertools.product(self.runs, itertools.product(*axes)):
                yield k, changes | dict(point) | ({} if seed is None else {"seed": seed})


class Spec(_Part):
    """A sweep as it is written: a profile, settings that all runs share, and named blocks.

    attempt: runs that failed are tried again, under a hash of their own, up to this number.
    """

    profile: Literal["smoke", "small", "full"] = "small"
    attempt: Annotated[int, Field(ge=0)] = 0
    shared: dict[str, Any] = {}
    blocks: Annotated[dict[str, Block], Field(min_length=1)]


@dataclass(frozen=True)
class Planned:
    """A run and the blocks that want it. An untrained encoder is a run too, wanted wherever it is a floor."""

    config: RunConfig
    blocks: tuple[str, ...]

    @property
    def floor(self) -> RunConfig | None:
        """The run that must be there first, if any."""
        untrained = self.config.untrained()
        return None if untrained == self.config else untrained


def read_spec(path: Path, changes: Mapping[str, Any] | None = None, without: Collection[str] = ()) -> Spec:
    """Read a sweep from YAML, with changes to what its runs share, and without some of its blocks.

    Raises ValueError that names the file and the line, or the block and the field.
    """
    try:
        spec = Spec.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}, line {line}: {error.problem}") from None
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {_explain(each)}" for each in error.errors())) from None
    blocks = {name: block for name, block in spec.blocks.items() if name not in without}
    if len(blocks) + len(set(without)) > len(spec.blocks) or not blocks:
        raise ValueError(f"{path}: its blocks are {', '.join(spec.blocks)}; name some of them to leave out, not all")
    return spec.model_copy(update={"shared": spec.shared | dict(changes or {}), "blocks": blocks})


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake: the plain loader drops the first one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for k, (key, _) in enumerate(node.value):
            if key.value in keys[:k]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _explain(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in plain words: where, and what is allowed there."""
    *place, last = [str(part) for part in error["loc"]] or [""]
    if error["type"] == "extra_forbidden":
        model = Block if place else Spec
        return f"{_place(place)}unknown entry {last!r}; there are {', '.join(model.model_fields)}"
    if error["type"] == "missing":
        return f"{_place(place)}{last!r} is missing"
    if error["type"] == "value_error":
        return _place([*place, last]) + error["msg"].removeprefix("Value error, ")
    return f"{_place([*place, last])}{error['msg']} (here: {error['input']!r})"


def _place(loc: Sequence[str]) -> str:
    """("blocks", "width", "grid", "lr") -> "block width, grid, lr: "."""
    names = [f"block {loc[1]}", *loc[2:]] if len(loc) > 1 and loc[0] == "blocks" else list(loc)
    return ", ".join(name for name in names if name) + ": " if any(names) else ""


def plan(spec: Spec, failed: Callable[[RunConfig], bool] = lambda config: False) -> list[Planned]:
    """The runs of a sweep, each once, in the order in which they are started.

    First seeds of all blocks come first, then second seeds: a sweep that is cut short has every block, with fewer
    seeds. Within that, blocks as they are written, and in a block the cheapest runs first: mistakes show after
    seconds, and runs of schedule "branch" go on from the shorter ones. An untrained encoder comes before the first
    run that needs it as its floor. failed: whether a configuration has a record of failure, see `Spec.attempt`.
    Raises ValueError that names block and field.
    """
    wanted = [
        (k, position, name, configure(spec, name, settings))
        for position, (name, block) in enumerate(spec.blocks.items())
        for k, settings in block.settings()
    ]
    wanted.sort(key=lambda each: (*each[:2], budget(each[3]).train_flop))
    configs: dict[str, RunConfig] = {}
    blocks: dict[str, list[str]] = {}
    for *_, name, config in wanted:
        current = _next_attempt(config, spec.attempt, failed)
        for each in (current.untrained(), current):
            configs.setdefault(each.hash, each)
            blocks.setdefault(each.hash, []).append(name)
    return [Planned(config, tuple(dict.fromkeys(blocks[key]))) for key, config in configs.items()]


def configure(spec: Spec, block: str, settings: Mapping[str, Any]) -> RunConfig:
    """One run of a block; of no steps, it is the floor of others. Raises ValueError that names block and field."""
    _check_names("shared", spec.shared)
    _check_names(f"block {block}", settings)
    try:
        config = profile(spec.profile, **(spec.shared | dict(settings)))
        return config if config.steps else config.untrained()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"][:1]))
        where = f"block {block}" if name in settings or not name else "shared"
        message = first["msg"].removeprefix("Value error, ")
        described = f"{name} = {first['input']!r}" if name else f"the run with {dict(settings)}"
        raise ValueError(f"{where}: {described}: {message}") from None


def _check_names(where: str, settings: Mapping[str, Any]) -> None:
    known = list(RunConfig.model_fields)
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (do you mean {close[0]}?)" if close else ""
            raise ValueError(f"{where}: unknown field {name!r}{hint}; the fields of a run are {', '.join(known)}")


def _next_attempt(config: RunConfig, limit: int, failed: Callable[[RunConfig], bool]) -> RunConfig:
    """The first attempt at a run that has not failed, nor its floor; the last one that is allowed, if all have."""
    while config.attempt < limit and (failed(config) or failed(config.untrained())):
        config = config.replace(attempt=config.attempt + 1)
    return config
