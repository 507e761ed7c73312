"""A stream of log-Mel clips from any sound: made once, kept on disk, drawn in an order that the seed decides.

Log-Mel clips are stored as float16 (steps of at most 0.06 dB) in shards of 256, so that corpora of different sizes
share their shards, memory stays constant, and an interrupted preparation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from rankscale import mel as mel_room
from rankscale.config import RunConfig, family_of, is_synthetic, stream_of
from rankscale.mel import LogMel, MelStats, mel_stats
from rankscale.sound import files, shards, synth, synthetic_tasks, tasks
from rankscale.storage import write_atomically

SHARD = 256  # clips in a file
HELDOUT_START = 2**40  # index of the first synthetic clip that no run trains on
HELDOUT_ONE_IN = 10  # of the files of a folder, one in ten is held out, chosen by the hash of its name
STATS_CLIPS = 1000  # clips that the input statistics are set from
CACHE = Path("runs/cache")


def source_digest(*paths: str | Path) -> str:
    """Identify code by the text of its files: what it made is reused only while it is unchanged."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()[:12]


# Taken when the code is loaded: a file that is edited while a run goes on must not name what the old code made.
SYNTH_DIGEST = source_digest(synth.__file__, *sorted(Path(synth.__file__).parent.glob("_[a-z]*.py")), mel_room.__file__)
FOLDER_DIGEST = source_digest(files.__file__, mel_room.__file__)
TASKS_DIGEST = source_digest(synthetic_tasks.__file__, mel_room.__file__)


class ClipStore:
    """Log-Mel clips (band, frame) in shards on disk, read as they are asked for."""

    def __init__(self, shards: Sequence[Path]):
        self._shards = [np.load(path, mmap_mode="r") for path in shards]
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Clips at the given rows: (n, band, frame) float32, in dB. They travel to the device as they are stored."""
        shard_of = np.searchsorted(self._ends, rows, side="right")
        clips = [self._shards[s][row - (self._ends[s - 1] if s else 0)] for s, row in zip(shard_of, rows, strict=True)]
        return torch.from_numpy(np.stack(clips)).to(device).float()

    def blocks(self, rows: np.ndarray, size: int = 64) -> Iterator[Tensor]:
        """The same clips, `size` at a time."""
        for start in range(0, len(rows), size):
            yield self.take(rows[start : start + size])


@dataclass(frozen=True)
class Source:
    """Where audio came from. The digest identifies its content, whatever the folder is called on a disk."""

    name: str
    digest: str
    train_clips: int  # unique
    heldout_clips: int


@dataclass(frozen=True, eq=False)
class Corpus:
    """Clips to train on and clips held out; `rows` point into the store, and may repeat scarce real clips.

    others: what else rank is measured on, `RunConfig.rank_on`, by entry: corpora with nothing to train on.
    """

    store: ClipStore
    train_rows: np.ndarray
    heldout_rows: np.ndarray
    sources: tuple[Source, ...]
    others: Mapping[str, Corpus] = field(default_factory=dict)

    def batch(
        self, step: int, size: int, seed: int, part: slice = slice(None), device: torch.device | str = "cpu"
    ) -> Tensor:
        """The batch of a step: (size, band, frame). A pure function of its arguments, so that runs can resume.

        Every epoch visits every row once, in an order of its own. part: only these clips of the batch are read.
        """
        position = np.arange(step * size, (step + 1) * size)[part]
        epoch, place = np.divmod(position, len(self.train_rows))
        rows = [_order(len(self.train_rows), seed, int(e))[p] for e, p in zip(epoch, place, strict=True)]
        return self.store.take(self.train_rows[rows], device)

    def input_stats(self) -> MelStats:
        """Mean and standard deviation of each Mel band, over 1000 training clips; the same for every seed."""
        rows = np.random.default_rng(0).permutation(self.train_rows)[:STATS_CLIPS]
        return mel_stats(self.store.blocks(rows))

    def unique_train_rows(self, n: int) -> np.ndarray:
        """At most n different training clips, drawn from all sources alike."""
        return np.random.default_rng(1).permutation(np.unique(self.train_rows))[:n]

    def reader(self, on_gpu: bool) -> Batches:
        """What training takes its batches from: the same batches as `batch` gives."""
        return ReadAhead(self) if on_gpu else self

    def remarks(self) -> str:
        """What was wrong with clips that were read so far; empty if nothing was."""
        return ""


class ReadAhead:
    """A corpus whose next batch is read by a thread while the GPU is at this one. On a CPU both want the same core."""

    def __init__(self, corpus: Corpus):
        self._corpus, self._reader = corpus, ThreadPoolExecutor(1)
        self._next: tuple[tuple, Future] | None = None

    def batch(self, step: int, *rest: object) -> Tensor:
        """What `Corpus.batch` gives."""
        ready = self._next[1] if self._next and self._next[0] == (step, *rest) else None
        following = (step + 1, *rest)
        self._next = following, self._reader.submit(self._corpus.batch, *following)
        return ready.result() if ready else self._corpus.batch(step, *rest)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


# --- streamed from tar shards -----------------------------------------------------------------------------


class ShardStore(ClipStore):
    """Clips of tar shards, decoded as they are asked for: first those to train on, then those held out.

    report: receives what was passed over, see `shards.Shards.clip`.
    """

    def __init__(self, train: shards.Shards, heldout: shards.Shards, frames: int):
        self.train, self.heldout, self.frames = train, heldout, frames
        self.report = files.Report()
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.train) + len(self.heldout)

    def take(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """As of any store, through float16 too, so that a corpus is the same whether prepared or streamed."""
        mels, left_out = self.read(rows)
        self.note(left_out)
        return torch.from_numpy(mels).to(device).float()

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, list[files.Rejected]]:
        """Log-Mel (n, band, frame) float16, and what was passed over."""
        n = len(self.train)
        found = [self.train.clip(row) if row < n else self.heldout.clip(row - n) for row in map(int, rows)]
        left_out = [each for _, passed_over in found for each in passed_over]
        return log_mels(torch.stack([clip for clip, _ in found]), self.frames), left_out

    def note(self, left_out: Sequence[files.Rejected]) -> None:
        """Count what was passed over, and name each recording when it is the first time."""
        for path, reason in left_out:
            if path not in self._named:
                self._named.add(path)
                logging.getLogger(__name__).warning("%s: %s; the next clip of its shard is used instead", path, reason)
            self.report.add(path, reason)


@dataclass(frozen=True, eq=False)
class ShardCorpus(Corpus):
    """Tar shards as a corpus: batches are a pure function of step and seed here too, and nothing is prepared.

    workers: processes that decode ahead of training.
    """

    store: ShardStore
    resampled: bool = False
    workers: int = 1

    def rows(self, step: int, size: int, seed: int, part: slice = slice(None)) -> np.ndarray:
        positions = np.arange(step * size, (step + 1) * size)[part]
        return shards.draw(self.store.train, positions, seed, self.resampled)

    def batch(
        self, step: int, size: int, seed: int, part: slice = slice(None), device: torch.device | str = "cpu"
    ) -> Tensor:
        return self.store.take(self.rows(step, size, seed, part), device)

    def input_stats(self) -> MelStats:
        return mel_stats(self.store.blocks(_some(len(self.store.train), STATS_CLIPS, 0)))

    def unique_train_rows(self, n: int) -> np.ndarray:
        return _some(len(self.store.train), n, 1)

    def reader(self, on_gpu: bool) -> Batches:
        return ShardReader(self) if self.workers > 1 or on_gpu else self

    def remarks(self) -> str:
        return self.store.report.summary() if self.store.report.counts else ""


def _some(population: int, n: int, seed: int) -> np.ndarray:
    """At most n of the first numbers, sorted, so that shards are read one after the other; in constant memory."""
    return np.array(sorted(random.Random(seed).sample(range(population), min(n, population))), np.int64)


class ShardReader:
    """The batches of a streamed corpus, decoded ahead by processes: any number of them gives the same batches."""

    def __init__(self, corpus: ShardCorpus):
        self._corpus = replace(corpus, others={})  # the processes that decode get a copy
        self._next, self._batches = None, iter(())

    def batch(
        self, step: int, size: int, seed: int, part: slice = slice(None), device: torch.device | str = "cpu"
    ) -> Tensor:
        """What `ShardCorpus.batch` gives. A step that does not follow the last one starts the processes anew."""
        if self._next != (step, size, seed, part):
            steps = _Steps(self._corpus, size, seed, part)
            loader = DataLoader(
                steps, batch_size=None, sampler=range(step, 2**62), num_workers=self._corpus.workers,
                prefetch_factor=2, worker_init_fn=_one_thread, multiprocessing_context="spawn",
            )  # fmt: skip
            self._batches = iter(loader)
        self._next = (step + 1, size, seed, part)
        mels, left_out = next(self._batches)
        self._corpus.store.note([files.Rejected(*each) for each in left_out])
        return mels.to(device).float()


@dataclass(frozen=True, eq=False)
class _Steps(Dataset):
    """Batches by step, as a DataLoader wants them."""

    corpus: ShardCorpus
    size: int
    seed: int
    part: slice

    def __getitem__(self, step: int) -> tuple[np.ndarray, list[files.Rejected]]:
        return self.corpus.store.read(self.corpus.rows(step, self.size, self.seed, self.part))


Batches = Corpus | ReadAhead | ShardReader  # whatever has `batch`


def _stream_corpus(config: RunConfig, cache: Path, workers: int, progress: bool) -> ShardCorpus:
    train, heldout = shards.open_shards(config.corpus, config.clip_s, config.clips, cache, progress)
    rows = len(train) + _some(len(heldout), config.rank_clips, 2)
    name = " and ".join(config.portable().corpus)
    source = Source(name, shards.digest([train, heldout])[:16], len(train), len(rows))
    resampled = stream_of(config.corpus[0]) == "resampled:"
    none = np.zeros(0, np.int64)  # the numbers of all clips to train on would grow with the corpus
    store = ShardStore(train, heldout, config.frames)
    return ShardCorpus(
        train_rows=none, heldout_rows=rows, sources=(source,), store=store, resampled=resampled, workers=workers
    )


# --- prepared ---------------------------------------------------------------------------------------------


def build_corpus(
    config: RunConfig, cache: Path = CACHE, workers: int = 1, progress: bool = True, device: str = "cpu"
) -> Corpus:
    """Prepare (or find prepared) the log-Mel clips of a configuration.

    `config.corpus` names "synth" (or a family of it) and folders; of the synthetic and real clips together
    `config.clips` are trained on, a share `real_share` of them real, repeated where there are fewer. Test folds of
    HEAR task folders are left out. What rank is measured on besides (`rank_on`) is prepared too.
    Tar shards are not prepared but streamed, decoded by `workers` processes.
    device: that synthesises what is missing; the corpus itself stays on disk.
    Raises ValueError where a folder gives no clip.
    """
    prepare = partial(_prepare_synth, config=config, cache=cache, workers=workers, progress=progress, device=device)
    if stream_of(config.corpus[0]):
        corpus = _stream_corpus(config, cache, workers, progress)
    else:
        corpus = _prepare_corpus(config, cache, prepare, progress)
    others = [_other_corpus(entry, config, cache, prepare, progress) for entry in config.rank_on]
    return replace(corpus, others=dict(zip(config.portable().rank_on, others, strict=True)))


def _prepare_corpus(
    config: RunConfig, cache: Path, prepare: Callable[[str, int, int], list[Path]], progress: bool
) -> Corpus:
    synthetic = next(filter(is_synthetic, config.corpus), None)
    n_folder_slots = round(config.real_share * config.clips) if synthetic else config.clips
    folders = [name for name in config.corpus if name != synthetic]
    prepared: list[Path] = []
    train, heldout, sources = [], [], []

    def add(paths: list[Path], rows: int) -> np.ndarray:
        first = sum(_count(path) for path in prepared)
        prepared.extend(paths)
        return np.arange(first, first + rows)

    for folder in folders:
        part = _prepare_folder(Path(folder), config, cache, progress)
        train.append(add(part.train_shards, part.source.train_clips))
        heldout.append(add(part.heldout_shards, part.source.heldout_clips))
        sources.append(part.source)
    train_rows = _resize(np.concatenate(train), n_folder_slots, repeat=synthetic is not None) if train else []
    heldout_rows = np.concatenate(heldout)[: config.rank_clips] if heldout else np.array([], dtype=np.int64)

    if synthetic:
        n_heldout = config.rank_clips - min(len(heldout_rows), round(config.real_share * config.rank_clips))
        n_train = config.clips - len(train_rows)
        train_rows = np.concatenate([train_rows, add(prepare(synthetic, 0, n_train), n_train)]).astype(np.int64)
        kept = heldout_rows[: config.rank_clips - n_heldout]
        heldout_rows = np.concatenate([kept, add(prepare(synthetic, HELDOUT_START, n_heldout), n_heldout)])
        sources.append(Source(synthetic, SYNTH_DIGEST, n_train, n_heldout))
    return Corpus(ClipStore(prepared), np.asarray(train_rows), heldout_rows, tuple(sources))


def _other_corpus(
    entry: str, config: RunConfig, cache: Path, prepare: Callable[[str, int, int], list[Path]], progress: bool
) -> Corpus:
    """At most `rank_clips` clips of an entry of `rank_on` that this run does not train on, and nothing to train on.

    Of a folder these are the files held out; all that may be trained on, where this run trains on no files.
    """
    none = np.zeros(0, np.int64)
    if is_synthetic(entry):
        n = config.rank_clips
        source = Source(entry, SYNTH_DIGEST, 0, n)
        return Corpus(ClipStore(prepare(entry, HELDOUT_START, n)), none, np.arange(n), (source,))
    part = _prepare_folder(Path(entry), config, cache, progress)
    unheard = all(map(is_synthetic, config.corpus))
    store = ClipStore(part.heldout_shards + (part.train_shards if unheard else []))
    rows = np.sort(np.random.default_rng(2).permutation(len(store))[: config.rank_clips])
    return Corpus(store, none, rows, (replace(part.source, train_clips=0, heldout_clips=len(rows)),))


def _resize(rows: np.ndarray, n: int, repeat: bool) -> np.ndarray:
    """n of the rows in a fixed random order; where there are fewer, each again as often as needed, or just once."""
    rows = np.random.default_rng(2).permutation(rows)
    return np.resize(rows, n) if repeat else rows[:n]


def _count(shard: Path) -> int:
    return len(np.load(shard, mmap_mode="r"))


def _prepare_synth(
    entry: str, first: int, n: int, config: RunConfig, cache: Path, workers: int, progress: bool, device: str
) -> list[Path]:
    """Shards with synthetic clips first .. first + n (the last one may hold more) of "synth" or "synth:FAMILY"."""
    folder = synth_folder(entry, config, cache)
    starts = range(first, first + n, SHARD)
    paths = [folder / f"{start}.npy" for start in starts]
    missing = [(path, start) for path, start in zip(paths, starts, strict=True) if not path.exists()]
    kind = {"seed": config.corpus_seed, "clip_s": config.clip_s, "frames": config.frames, "family": family_of(entry)}
    make = partial(_write_synth_shard, device=device, **kind)
    for_each(make, missing, workers, "synthetic clips" if progress else None)
    return paths


def synth_folder(entry: str, config: RunConfig, cache: Path = CACHE) -> Path:
    """Where the clips of "synth" or "synth:FAMILY" are kept, in shards: the same for any number of clips."""
    return cache / f"{entry.replace(':', '-')}-{SYNTH_DIGEST}-{config.corpus_seed}-{config.frames}"


def _write_synth_shard(
    job: tuple[Path, int], seed: int, clip_s: float, frames: int, family: str | None, device: str
) -> None:
    path, start = job
    write_atomically(path, partial(_save, array=synth_mels(start, SHARD, seed, clip_s, frames, device, family)))


def synth_mels(
    start: int, n: int, seed: int, clip_s: float, frames: int, device: str = "cpu", family: str | None = None
) -> np.ndarray:
    """Log-Mel (n, band, frame) float16 of synthetic clips from number `start` on; family: as in `synthesize`."""
    batch = synth.synthesize(range(start, start + n), seed=seed, clip_s=clip_s, device=device, family=family)
    return log_mels(batch.waveform, frames)


def for_each(work: Callable, jobs: Sequence, workers: int, label: str | None) -> None:
    """`work` on every job, in so many processes of one thread each; with a label, a progress bar."""
    bar = partial(tqdm, total=len(jobs), desc=label, unit="file", disable=label is None or not jobs)
    if workers == 1 or len(jobs) < 2:
        for job in bar(jobs):
            work(job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        try:
            for _ in bar(pool.map(work, jobs)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it ends only when all jobs are done
            raise


def _one_thread(_worker: int = 0) -> None:
    torch.set_num_threads(1)


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def log_mels(waveform: Tensor, frames: int | None = None) -> np.ndarray:
    """Log-Mel of a stack of waveforms (n, sample) -> (n, band, frame) float16, computed where the waveforms are."""
    front_end = LogMel().to(waveform.device)
    block = SHARD if waveform.is_cuda else 16  # on a CPU small blocks stay in the cache
    with torch.inference_mode():
        mels = [front_end(part)[..., :frames].half() for part in waveform.split(block)]
    return torch.cat(mels).cpu().numpy()


@dataclass(frozen=True)
class _FolderPart:
    train_shards: list[Path]
    heldout_shards: list[Path]
    source: Source


def _prepare_folder(folder: Path, config: RunConfig, cache: Path, progress: bool) -> _FolderPart:
    """Shards of a folder's clips; of HEAR task folders only the files that may be trained on."""
    scored = [entry for entry in config.tasks if not is_synthetic(entry)]
    allowed = tasks.training_files(folder, scored) if tasks.find_tasks(folder) else None
    manifest = files.scan(folder, files=allowed, cache_dir=cache, progress=progress)
    if not manifest.files:
        raise ValueError(f"{folder}: no usable audio file. {manifest.summary()}")
    base = cache / f"folder-{manifest.digest[:12]}-{FOLDER_DIGEST}-{config.frames}"
    held_out = _hold_out([file.path for file in manifest.files])
    parts = {}
    for part in ("train", "heldout"):
        chosen = tuple(file for file in manifest.files if (file.path in held_out) == (part == "heldout"))
        parts[part] = _prepare_clips(replace(manifest, files=chosen), base / part, config, progress)
    counts = {part: sum(map(_count, shards)) for part, shards in parts.items()}
    if not counts["train"] or not counts["heldout"]:
        raise ValueError(f"{folder}: too few clips to train on and hold out ({counts}). {manifest.summary()}")
    source = Source(folder.name, manifest.digest[:16], counts["train"], counts["heldout"])
    return _FolderPart(parts["train"], parts["heldout"], source)


def _hold_out(names: list[str]) -> set[str]:
    """One file in ten, by a hash of its name, so that the choice stays when files are added; always at least one."""
    hashes = {name: int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest(), 16) for name in names}
    return {name for name in names if hashes[name] % HELDOUT_ONE_IN == 0} or {min(names, key=hashes.__getitem__)}


def _prepare_clips(manifest: files.Manifest, folder: Path, config: RunConfig, progress: bool) -> list[Path]:
    """Stream a manifest's clips into shards; a list of the shards is written last, and says that they are complete."""
    index = folder / "shards.json"
    if not index.exists():
        label = f"log-Mel of {manifest.root.name}"
        # One iterator for all shards: each new iter() of a tqdm ends the stream that the last one was reading.
        clips = iter(tqdm(files.iter_clips(manifest, config.clip_s), label, unit="clip", disable=not progress))
        names = []
        while block := list(itertools.islice(clips, SHARD)):
            names.append(f"{len(names)}.npy")
            mels = log_mels(torch.stack([clip.waveform for clip in block]), config.frames)
            write_atomically(folder / names[-1], partial(_save, array=mels))
        write_atomically(index, lambda path: path.write_text(json.dumps(names)))
    return [folder / name for name in json.loads(index.read_text())]


class MelBlocks:
    """Log-Mel clips of one task split, in label order, as blocks (<= 64, band, frame) of one length each.

    Can be read again and again. With a cache folder the blocks of a synthetic task are kept on disk; the clips of
    task folders are kept in memory, since nothing tells us when their files change.
    """

    def __init__(self, task: tasks.Task, split: str, cache: Path | None = None):
        path = task_file(task, split, cache) if cache else None
        if path and path.exists():
            self._blocks = list(_split(np.load(path, mmap_mode="r")))
            return
        self._blocks = [log_mels(waveform) for waveform in task.waveforms(split)]
        if path and task.clip_s is not None:
            write_atomically(path, lambda temporary: _save(temporary, np.concatenate(self._blocks)))

    def __iter__(self) -> Iterator[Tensor]:
        for block in self._blocks:
            yield torch.from_numpy(block.astype(np.float32))


def task_file(task: tasks.Task, split: str, cache: Path) -> Path:
    """Where the clips of a synthetic task's split are kept."""
    return cache / f"task-{TASKS_DIGEST}-{task.name}-{split}-{len(task.splits[split])}.npy"


def _split(mels: np.ndarray, size: int = 64) -> Iterator[np.ndarray]:
    for start in range(0, len(mels), size):
        yield mels[start : start + size]
