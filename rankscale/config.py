"""What a run is: one flat, validated, hashable description of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION = 1
SAMPLE_RATE = 16_000  # Hz; every waveform in the project has this rate
BANDS = 64  # Mel bands; a patch spans all of them
HOP = 160  # samples between frames: 10 ms
HEAD_WIDTH = 32  # width of an attention head unless `heads` says otherwise
PROFILES = ("smoke", "small", "full")
FAMILIES = ("speech", "music", "environment")  # of the synthesiser, `sound.synth`
STREAMS = ("shards:", "resampled:")  # how corpus entries begin that name tar shards, see `sound.shards`

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class EncoderName(NamedTuple):
    """The two numbers in a name such as ``en64-4``: width (embedding dimensions) and depth (blocks)."""

    width: int
    depth: int

    @classmethod
    def parse(cls, name: str) -> EncoderName:
        """``en128-12`` -> (128, 12). Raises ValueError on anything else."""
        match = re.fullmatch(r"en([1-9]\d*)-([1-9]\d*)", name)
        if not match:
            raise ValueError(f"encoder {name!r}: write en{{width}}-{{depth}}, for example en64-4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"en{self.width}-{self.depth}"


def stream_of(entry: str) -> str:
    """How the shards are drawn that a corpus entry names, "shards:" or "resampled:"; empty for any other entry."""
    return next((way for way in STREAMS if entry.startswith(way)), "")


def is_synthetic(entry: str) -> bool:
    """Whether an entry names synthetic sound: "synth", or one part of it, such as "synth:speech"."""
    return entry.partition(":")[0] == "synth"


def family_of(entry: str) -> str | None:
    """The family of a synthetic entry of a corpus: "synth:speech" -> "speech"; None for "synth", mixtures of all.

    Raises ValueError on a family that the synthesiser does not know.
    """
    _, colon, family = entry.partition(":")
    if colon and family not in FAMILIES:
        raise ValueError(f"{entry!r}: write synth for all families, or one of synth:{', synth:'.join(FAMILIES)}")
    return family or None


def _portable(entry: str) -> str:
    """The name of a folder without what lies above it; of a pattern of shards, with the folder that they lie in."""
    way = stream_of(entry)
    return way + "/".join(Path(entry.removeprefix(way)).parts[-2:]) if way else Path(entry).name


class RunConfig(BaseModel):
    """Everything that decides a run's record, apart from host and time.

    Field defaults are the profile `small`. Chapters use these names for their papermill parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # encoder and decoder
    encoder: str = "en64-4"
    heads: Count | None = None  # None: width / 32, at least 1
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    patch_frames: Count = 4  # frames of 10 ms in a patch
    decoder_width: Count = 64
    decoder_depth: Count = 2
    # masking
    mask_ratio: Fraction = 0.75
    mask_group: Count = 2  # neighbouring tokens that are masked together
    # pre-training audio: "synth" (or one family of it: "synth:speech"), folders of audio files or HEAR task folders
    # (whose test folds are left out); or tar shards, "shards:PATTERN" (every clip once an epoch) or
    # "resampled:PATTERN" (drawn with replacement)
    corpus: tuple[str, ...] = ("synth",)
    corpus_seed: int = 0
    clips: Count = 16_384  # unique clips in the training corpus
    real_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the clips, when synth and folders are mixed
    clip_s: Annotated[float, Field(ge=0.04, le=60)] = 1.28
    # optimisation
    steps: Annotated[int, Field(ge=0)] = 2000  # 0: the untrained encoder
    batch: Count = 64
    lr: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Literal["cosine", "branch"] = "cosine"  # "branch": constant rate, then a short decay at the end
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the steps, of "cosine"
    warmup_steps: Count = 200  # of "branch", whatever the number of steps, so that branches share a trunk
    decay: Fraction = 0.2  # share of the steps, of "branch": the rate falls to zero
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["float32", "bf16"] = "float32"
    log_det: float = 0.0  # weight of `mae.log_det` in training: above 0 embeddings are spread out
    seed: int = 0  # initialisation, data order and masks
    # measurement
    pool: Literal["mean", "meanstd"] = "mean"  # over time
    layer: Count | None = None  # the block whose output is measured, from 1; None: the last, normalised
    rank_clips: Annotated[int, Field(ge=2)] = 12_288  # held-out clips that RankMe is measured on
    rank_eps: Annotated[float, Field(ge=0)] = 1e-7
    rank_on: tuple[str, ...] = ()  # other audio that it is measured on too: "synth", "synth:speech", ..., or folders
    tasks: tuple[str, ...] = ("synth",)  # "synth", one such as "synth:pitch", or HEAR task folders
    test_folds: Literal["unseen", "all"] = "unseen"  # of folder tasks: the fold kept out of every corpus, or all
    task_clips: Annotated[int, Field(ge=20)] | None = None  # per synthetic task and split, None: the frozen sizes
    checkpoints: Count = 10  # points in the history at which loss and RankMe are measured
    attempt: Annotated[int, Field(ge=0)] = 0  # above 0: a deliberate second try of a failed run

    @field_validator("encoder")
    @classmethod
    def _encoder_parses(cls, name: str) -> str:
        return str(EncoderName.parse(name))

    @field_validator("corpus", "tasks", "rank_on", mode="before")
    @classmethod
    def _one_is_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _shapes_fit(self) -> RunConfig:
        if self.width % self.n_heads:
            raise ValueError(f"width {self.width} is not divisible by {self.n_heads} heads")
        if self.layer and self.layer > self.depth:
            raise ValueError(f"layer {self.layer}: {self.encoder} has {self.depth} blocks")
        if not self.corpus or not self.tasks:
            raise ValueError("corpus and tasks each need at least one entry, for example 'synth'")
        for entry in filter(is_synthetic, (*self.corpus, *self.rank_on)):
            family_of(entry)
        if sum(map(is_synthetic, self.corpus)) > 1:
            raise ValueError(f"corpus {list(self.corpus)}: name synthetic sound once, synth or one family of it")
        if streams := [entry for entry in self.rank_on if stream_of(entry)]:
            raise ValueError(f"rank_on {streams}: tar shards are only trained on; name the folder, or synth")
        if len({stream_of(entry) for entry in self.corpus}) > 1:
            raise ValueError(
                f"corpus {list(self.corpus)}: tar shards are streamed and not mixed with other sound, nor with those "
                "drawn otherwise; write folders as shards too (rankscale data shard), and name several patterns"
            )
        if self.tokens < 2 * self.mask_group:
            raise ValueError(
                f"clip_s {self.clip_s} gives {self.tokens} tokens of {self.patch_frames} frames: "
                f"too few for groups of {self.mask_group}; use longer clips"
            )
        return self

    @property
    def width(self) -> int:
        return EncoderName.parse(self.encoder).width

    @property
    def depth(self) -> int:
        return EncoderName.parse(self.encoder).depth

    @property
    def n_heads(self) -> int:
        return self.heads or max(1, self.width // HEAD_WIDTH)

    @property
    def frames(self) -> int:
        """Log-Mel frames of a training clip: whole patches only."""
        return round(self.clip_s * SAMPLE_RATE) // HOP // self.patch_frames * self.patch_frames

    @property
    def tokens(self) -> int:
        return self.frames // self.patch_frames

    def portable(self) -> RunConfig:
        """The same run with folders given by name only, so that a record says nothing about one machine's disk."""
        named = {field: tuple(map(_portable, getattr(self, field))) for field in ("corpus", "tasks", "rank_on")}
        return self.replace(**named)

    def untrained(self) -> RunConfig:
        """The run with the same encoder and measurements and no training: the floor that training must beat."""
        training = ("decoder_width", "decoder_depth", "mask_ratio", "mask_group", "batch", "lr", "weight_decay",
                    "schedule", "warmup", "warmup_steps", "decay", "grad_clip", "precision", "log_det",
                    "checkpoints")  # fmt: skip
        defaults = {name: type(self).model_fields[name].default for name in training}
        return self.replace(steps=0, **defaults)

    def canonical(self) -> str:
        """JSON of the non-default fields and the schema version: what the hash is taken of."""
        changed = self.portable().model_dump(mode="json", exclude_defaults=True)
        return json.dumps(changed | {"schema_version": SCHEMA_VERSION}, sort_keys=True)

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that name the run; the seed is part of it."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    def replace(self, **changes: Any) -> RunConfig:
        """A validated copy with some fields changed."""
        return RunConfig(**(self.model_dump() | changes))


_PROFILE_CHANGES: dict[str, dict[str, Any]] = {
    "smoke": {
        "encoder": "en32-1", "decoder_width": 32, "decoder_depth": 1, "clips": 256, "steps": 12, "batch": 16,
        "rank_clips": 256, "task_clips": 60, "checkpoints": 3,
    },
    "small": {},
    "full": {
        "encoder": "en256-12", "decoder_width": 192, "clips": 1_000_000, "clip_s": 2.56, "steps": 6000,
        "batch": 512, "precision": "bf16", "lr": 1e-3,
    },
}  # fmt: skip


def profile(name: str, **changes: Any) -> RunConfig:
    """The run configuration of a profile (smoke, small or full), with some fields changed."""
    if name not in PROFILES:
        raise ValueError(f"profile {name!r}: choose one of {', '.join(PROFILES)}")
    return RunConfig(**(_PROFILE_CHANGES[name] | changes))
