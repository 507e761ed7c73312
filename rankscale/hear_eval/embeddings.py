"""Embeddings of a task's clips, kept on disk by what made them and by what they are of; and clips in two splits."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from rankscale import dasheng, embed, hear, mae, mel
from rankscale.config import BANDS, HOP, SAMPLE_RATE
from rankscale.corpus import source_digest
from rankscale.embed import Embedder, is_module, load_embedder, logmel_embedding, pool_tokens
from rankscale.mel import LogMel
from rankscale.sound.tasks import Task
from rankscale.storage import write_atomically

FLOORS = {"logmel_mean": "mean", "logmel_meanstd": "meanstd"}  # log-Mel without a model -> pooled over time by
BATCH = 16  # clips that an encoder gets at once
FLOOR_FRAMES = 4  # log-Mel frames in a frame of the floors: 40 ms, as our encoders' patches
OURS = source_digest(mel.__file__, mae.__file__, dasheng.__file__, embed.__file__, hear.__file__, __file__)


# --- encoders ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Encoder:
    """An embedder, and a digest of what it is: files, code, and what it makes of a fixed noise."""

    embedder: Embedder
    digest: str


def load_encoder(spec: str | Path, weights: str | None = None, pool: str | None = None, device: str = "cpu") -> Encoder:
    """One of `FLOORS` by its name, or what `embed.load_embedder` takes: a checkpoint, a HEAR module, a torch module.

    Errors as `load_embedder`.
    """
    if str(spec) in FLOORS:
        floor = _floor(str(spec))
        return Encoder(floor, _digest(floor, []))
    embedder = load_embedder(spec, weights, pool, device)
    return Encoder(embedder, _digest(embedder, [*_files_of(spec), *(_files_of(weights) if weights else [])]))


def _floor(name: str) -> Embedder:
    front_end, pool = LogMel(), FLOORS[name]
    over_time = logmel_embedding(pool)

    def frames(waveform: Tensor) -> tuple[Tensor, Tensor]:
        picture = front_end(waveform)
        whole = max(FLOOR_FRAMES, picture.shape[2] // FLOOR_FRAMES * FLOOR_FRAMES)
        picture = torch.nn.functional.pad(picture, (0, max(0, whole - picture.shape[2])), mode="replicate")[..., :whole]
        parts = picture.reshape(len(picture), BANDS, -1, FLOOR_FRAMES).permute(0, 2, 3, 1)
        z = pool_tokens(parts.flatten(0, 1), pool).unflatten(0, parts.shape[:2])
        hop_ms = 1000 * HOP / SAMPLE_RATE
        at_ms = (torch.arange(parts.shape[1]) + 0.5) * FLOOR_FRAMES * hop_ms - hop_ms / 2
        return z, at_ms.expand(len(z), -1)

    return Embedder(name, SAMPLE_RATE, f"{pool} over time", lambda w: over_time(front_end(w)), over_time, frames)


def _files_of(spec: str | Path) -> list[Path]:
    """The files that an encoder's code and weights are in, as far as its name tells."""
    module, _, name = str(spec).rpartition(":")
    text = module if name.isidentifier() and is_module(module) else str(spec)
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.is_file())
    found = importlib.util.find_spec(text.partition(".")[0]) if is_module(text) else None
    origin = Path(found.origin) if found and found.has_location else None
    if origin is None:
        return []
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def _digest(embedder: Embedder, files: Iterable[Path]) -> str:
    """Weights may also come from elsewhere (a default file, a package): what is made of a noise tells them apart."""
    digest = hashlib.sha256(f"{OURS} {embedder.name} {embedder.rate} {embedder.pool}".encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    noise = torch.rand(1, embedder.rate, generator=torch.Generator().manual_seed(0)) - 0.5
    digest.update(embedder.embed(noise).contiguous().numpy().tobytes())
    if embedder.frames:
        digest.update(embedder.frames(noise)[0].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# --- audio ------------------------------------------------------------------------------------------------

Hashes = dict[str, tuple[str, ...]]  # split -> one hash of the sound of each clip


def hash_clips(task: Task) -> Hashes:
    """A hash of every clip's samples at 16 kHz, whatever file or format they came in."""
    return {split: tuple(_hash(clip) for clip in task.splits[split].clips()) for split in task.splits}


def _hash(clip: Tensor) -> str:
    return hashlib.sha256(clip.contiguous().numpy().tobytes()).hexdigest()


def find_leaks(task: Task, hashes: Hashes) -> list[str]:
    """In words, every clip that is in two splits, by its name or by its sound."""
    leaks = []
    for what, keys in (("name", {s: task.splits[s].names for s in hashes}), ("sound", hashes)):
        first: dict[str, tuple[str, int]] = {}
        for split, row, key in ((s, i, key) for s, of in keys.items() for i, key in enumerate(of)):
            other, at = first.setdefault(key, (split, row))
            if other != split:
                one, two = _clip_name(task, other, at), _clip_name(task, split, row)
                leaks.append(f"{other}/{one} and {split}/{two} have the same {what}")
    return leaks


def check_leaks(task: Task, hashes: Hashes, allow: bool = False) -> str | None:
    """None for a task whose splits share nothing; else a remark, or, unless it is allowed, a ValueError."""
    leaks = find_leaks(task, hashes)
    if leaks and not allow:
        raise ValueError(
            f"task {task.name}: {len(leaks)} clips are in two splits, so that a test would leak; first: {leaks[0]}. "
            "Mend the splits, or allow it (--allow-leaks) to compare with scores that were measured so"
        )
    return f"{task.name}: {len(leaks)} clips are in two splits, so its scores may flatter" if leaks else None


def _clip_name(task: Task, split: str, row: int) -> str:
    return task.splits[split].names[row] if task.splits[split].names else f"clip {row}"


# --- embeddings -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Embedded:
    """A split as a probe meets it: a row a clip, or, of event tasks, a row a frame.

    z: (n_row, dim) float32. at_ms: (n_row,) time of each frame, and counts: (n_clip,) frames of each clip, in the order
    of the clips; both None where a row is a clip.
    """

    z: np.ndarray
    at_ms: np.ndarray | None = None
    counts: np.ndarray | None = None

    def clips(self, values: np.ndarray) -> list[np.ndarray]:
        """Rows of `values` by clip."""
        return np.split(values, np.cumsum(self.counts)[:-1])


def embed_task(encoder: Encoder, task: Task, hashes: Hashes, cache: Path, progress: bool = True) -> dict[str, Embedded]:
    """Every split embedded: clips, or the frames of event tasks. What was embedded before is read from the cache.

    The cache's file is named by the encoder's digest and by the hashes of the clips, in their order. One that is broken
    is made again. Raises ValueError for an encoder without frames, and, naming the clip, for NaN or infinity.
    """
    embedder = encoder.embedder
    if task.kind == "event" and not embedder.frames:
        raise ValueError(f"{embedder.name}: gives no frames with timestamps, which the event task {task.name} needs")
    found = {}
    for split in tqdm(hashes, f"{embedder.name} hears {task.name}", unit="split", disable=not progress, leave=False):
        of_clips = hashlib.sha256("".join(hashes[split]).encode()).hexdigest()[:16]
        path = cache / "embeddings" / encoder.digest / f"{task.name}-{split}-{task.kind}-{of_clips}.safetensors"
        found[split] = _read(path) or _write(path, partial(_embed_split, embedder, task, split))
    return found


def _embed_split(embedder: Embedder, task: Task, split: str) -> Embedded:
    blocks, times, counts = [], [], []
    for waveform in task.waveforms(split, BATCH):
        if task.kind == "scene":
            z = embedder.hear(waveform)
        else:
            z, at_ms = embedder.hear_frames(waveform)
            times.append(at_ms.flatten())
            counts += [z.shape[1]] * len(z)
        if not (finite := z.flatten(1).isfinite().all(dim=1)).all():
            row = sum(len(block) for block in blocks) if task.kind == "scene" else len(counts) - len(z)
            clip = _clip_name(task, split, row + int((~finite).nonzero()[0]))
            raise ValueError(f"{embedder.name}: gives NaN or infinity for {clip} of task {task.name}, split {split}")
        blocks.append(z.reshape(-1, z.shape[-1]))
    z = torch.cat(blocks).numpy()
    return Embedded(z) if task.kind == "scene" else Embedded(z, torch.cat(times).double().numpy(), np.array(counts))


def _write(path: Path, make: Callable[[], Embedded]) -> Embedded:
    made = make()
    arrays = {name: np.ascontiguousarray(array) for name, array in vars(made).items() if array is not None}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, {"sha256": _hash_arrays(arrays)}))
    return made


def _read(path: Path) -> Embedded | None:
    """None where there is no such file, or not the one that was written."""
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = (file.metadata() or {}).get("sha256") == _hash_arrays(arrays)
    except (FileNotFoundError, SafetensorError):
        return None
    return Embedded(**arrays) if whole else None


def _hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    parts = (f"{name} {arrays[name].shape}".encode() + arrays[name].tobytes() for name in sorted(arrays))
    return hashlib.sha256(b"".join(parts)).hexdigest()
