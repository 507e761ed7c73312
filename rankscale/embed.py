"""Clips to embeddings: any encoder, or plain log-Mel statistics, as one (n_clip, dim) matrix.

Also for what comes from elsewhere: matrices in files, and models behind the HEAR interface.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import numbers
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchaudio.functional import resample
from tqdm import tqdm

from rankscale.config import SAMPLE_RATE
from rankscale.corpus import HELDOUT_START, SHARD
from rankscale.dasheng import WEIGHTS
from rankscale.hear import get_timestamp_embeddings, load_model
from rankscale.mae import Encoder
from rankscale.sound import files, synth

Embed = Callable[[Tensor], Tensor]  # log-Mel (batch, band, frame) in dB -> (batch, dim)

BLOCK = 64  # clips embedded at once: larger blocks leave the cache and are slower on a CPU


def pool_tokens(tokens: Tensor, pool: str = "mean") -> Tensor:
    """Summarise over time: (batch, time, feature) -> (batch, feature), or (batch, 2 * feature) for "meanstd".

    The standard deviation is the population one, so that a single token gives 0 and not NaN.
    """
    if pool not in ("mean", "meanstd"):
        raise ValueError(f"pool {pool!r}: choose mean or meanstd")
    mean = tokens.mean(dim=1)
    return mean if pool == "mean" else torch.cat([mean, tokens.std(dim=1, correction=0)], dim=1)


def encoder_embedding(encoder: Encoder, pool: str = "mean", layer: int | None = None) -> Embed:
    """The encoder's last layer, pooled over time; evaluation mode, no gradients.

    layer: the output of this block instead, from 1, as it is in the residual stream; that of the last is normalised.
    """
    encoder.eval()
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def embed(mel: Tensor) -> Tensor:
        mel = mel.to(device)
        tokens = encoder.forward_mel(mel) if layer is None else encoder.forward_mel(mel, layers=True)[layer - 1]
        return pool_tokens(tokens, pool).float().cpu()

    return embed


def logmel_embedding(pool: str = "mean") -> Embed:
    """The floor without a model: the log-Mel spectrogram itself, pooled over time."""
    return lambda mel: pool_tokens(mel.transpose(1, 2), pool)


def embed_all(embed: Embed, mels: Iterable[Tensor]) -> np.ndarray:
    """Embed blocks of log-Mel clips, each (<= block, band, frame), into one float32 matrix (n_clip, dim)."""
    blocks = [embed(mel).numpy() for mel in mels]
    if not blocks:
        raise ValueError("no clips to embed")
    return np.concatenate(blocks)


# --- matrices in files ------------------------------------------------------------------------------------

FORMATS = (".npy", ".pt", ".safetensors", ".parquet")
ROWS = 65_536  # rows that are checked at once: a memory-mapped file may be larger than memory
LISTED = 5  # tensors, columns or files named in a message


def load_embeddings(path: str | Path, key: str | None = None) -> Tensor | np.ndarray:
    """Embeddings that somebody else has written: a finite floating-point matrix (n_clip, dim). No code in it is run.

    path: .npy (memory-mapped, so that it may be larger than memory), .pt (a tensor, or a dict of tensors),
    .safetensors, or .parquet (a column with a list a clip, or nothing but floating-point columns; needs pyarrow).
    key: which tensor or column; not needed where only one can be meant.
    Raises FileNotFoundError, or ValueError that names the file and says what to do: another format, an empty or damaged
    file, several tensors to choose from, another shape or type, NaN or infinity.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: embeddings are read from {', '.join(FORMATS)} files")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (zero bytes)")
    read = {".npy": _read_npy, ".pt": _read_pt, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
    z = read[path.suffix](path, key)
    _check_matrix(z, path)
    return z


def _check_matrix(z: Tensor | np.ndarray, path: Path) -> None:
    shape = tuple(z.shape)
    if len(shape) != 2 or 0 in shape:
        hint = "; pool over time first" if len(shape) == 3 else ""
        raise ValueError(f"{path}: shape {shape}, embeddings have (n_clip, dim), neither of them 0{hint}")
    if not (z.is_floating_point() if isinstance(z, Tensor) else np.issubdtype(z.dtype, np.floating)):
        raise ValueError(f"{path}: {z.dtype} values; embeddings are floating point (are these labels?)")
    for start in range(0, len(z), ROWS):
        part = z[start : start + ROWS]
        finite = (part.isfinite() if isinstance(z, Tensor) else np.isfinite(part)).all(1)
        if not finite.all():
            bad = start + int((~finite).nonzero()[0][0])
            raise ValueError(f"{path}: row {bad} (counted from 0) holds NaN or infinity; remove it or mend the model")


def _read_npy(path: Path, key: str | None) -> np.ndarray:
    if key is not None:
        raise ValueError(f"{path}: a .npy file holds one array without a name; leave the key out")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a whole .npy file of numbers ({error})") from error


def _read_pt(path: Path, key: str | None) -> Tensor:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling a foreign file comes upon
        raise ValueError(
            f"{path}: cannot be read without running code in it, or is damaged; write it with torch.save(z, path), "
            "where z is a tensor or a dict of tensors"
        ) from error
    if isinstance(content, Tensor) and key is None:
        return content.detach()
    tensors = dict(_named_tensors(content))
    if not tensors:
        raise ValueError(
            f"{path}: holds no tensor with a name; write a tensor or a dict of tensors, or leave the key out"
        )
    facts = {name: _Choice(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
    return tensors[_choose(path, facts, key)].detach()


def _named_tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts, by its dotted name."""
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _named_tensors(value, f"{prefix}{name}.")


def _read_safetensors(path: Path, key: str | None) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            facts = {name: _Choice(tuple(s.get_shape()), s.get_dtype().lower()) for name, s in slices.items()}
            return file.get_tensor(_choose(path, facts, key))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


@dataclass(frozen=True)
class _Choice:
    """A tensor that may be the embeddings."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def fits(self) -> bool:
        return len(self.shape) == 2 and "f" in self.dtype  # float32, bfloat16; f32, bf16

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def _choose(path: Path, choices: dict[str, _Choice], key: str | None) -> str:
    """The named choice, the only one, or the only one that can be embeddings."""
    if key in choices:
        return key
    if key is None:
        fitting = [name for name, choice in choices.items() if choice.fits]
        if len(choices) == 1 or len(fitting) == 1:
            return (fitting or list(choices))[0]
    listed = _listed([f"{name} ({choice})" for name, choice in choices.items()])
    if key is not None:
        raise ValueError(f"{path}: nothing in it is named {key!r}; it holds {listed or 'nothing'}")
    raise ValueError(
        f"{path}: which one holds the embeddings? Choose with the key (--key): {listed or 'it holds none'}"
    )


def _listed(entries: list[str], comma: str = ", ") -> str:
    more = [f"and {len(entries) - LISTED} more"] if len(entries) > LISTED else []
    return comma.join(entries[:LISTED] + more)


def _read_parquet(path: Path, key: str | None) -> np.ndarray:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading .parquet needs pyarrow: pip install 'rankscale[parquet]'") from error
    try:
        schema = pq.read_schema(path)
        types = {f.name: f.type for f in schema if not f.name.startswith("__index_level_")}  # pandas' row names
        columns = _choose_columns(path, {name: str(kind) for name, kind in types.items()}, key)
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({error})") from error
    if not _is_list(str(types[columns[0]])):
        return np.stack([table[name].to_numpy() for name in columns], axis=1)  # an empty cell becomes NaN
    try:
        return np.stack(table[columns[0]].to_pandas())
    except ValueError as error:
        raise ValueError(f"{path}: the lists in column {columns[0]} must all be there, and of one length") from error


def _is_list(kind: str) -> bool:
    return kind.removeprefix("large_").startswith(("list<", "fixed_size_list<"))


def _choose_columns(path: Path, types: dict[str, str], key: str | None) -> list[str]:
    """The one column of lists that is meant, or else all columns, if they are floating point."""
    lists = [name for name, kind in types.items() if _is_list(kind)]
    if key in types and key not in lists:
        raise ValueError(f"{path}: column {key} holds {types[key]}, not a list of numbers a clip")
    if key is not None or len(lists) > 1:
        if key in lists:
            return [key]
        listed = _listed([f"{name} ({types[name]})" for name in lists or types])
        asked = "which column holds the embeddings?" if key is None else f"there is no column {key!r};"
        raise ValueError(f"{path}: {asked} Choose with the key (--key): {listed}")
    if lists:
        return lists
    if other := [f"{name} ({kind})" for name, kind in types.items() if kind not in ("halffloat", "float", "double")]:
        raise ValueError(
            f"{path}: {_listed(other)} is not floating point; write the embeddings alone, or as one column of lists"
        )
    return list(types)


# --- models -----------------------------------------------------------------------------------------------

HEAR = {"load_model": "load_model(path)", "get_scene_embeddings": "get_scene_embeddings(audio, model)"}


@dataclass(frozen=True)
class Embedder:
    """Something that turns sound into embeddings.

    embed: waveforms (n_clip, sample) at `rate` Hz in [-1, 1] -> (n_clip, dim) float32 on the CPU. name: for reports.
    pool: in words, how a clip's embedding comes from its frames. embed_mel: the same from our log-Mel, for encoders
    that hear it. frames: waveforms as for embed -> embeddings over time (n_clip, t, dim) and the frames' times
    (n_clip, t) in ms, ascending; None for encoders that do not tell times.
    """

    name: str
    rate: int
    pool: str
    embed: Callable[[Tensor], Tensor]
    embed_mel: Embed | None = None
    frames: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def hear(self, waveform: Tensor) -> Tensor:
        """`embed` of waveforms (n_clip, sample) at 16 kHz, resampled if need be."""
        return self.embed(self._resample(waveform))

    def hear_frames(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """`frames` of waveforms (n_clip, sample) at 16 kHz, resampled if need be."""
        return self.frames(self._resample(waveform))

    def _resample(self, waveform: Tensor) -> Tensor:
        if self.rate == SAMPLE_RATE:
            return waveform
        return resample(waveform, SAMPLE_RATE, self.rate, lowpass_filter_width=64)


def load_embedder(
    spec: str | Path, weights: str | None = None, pool: str | None = None, device: str = "cpu"
) -> Embedder:
    """An encoder checkpoint, any model behind the HEAR interface, or any torch module.

    spec is one of
    - a checkpoint, as `dasheng.read_encoder` opens it: a file, or a folder of the Hugging Face form;
    - a Python module, by its dotted name or as a .py file, which runs, with `load_model(path) -> model`
      (model.sample_rate in Hz, model.scene_embedding_size) and
      `get_scene_embeddings(audio (n_clip, sample), model) -> (n_clip, dim)` (hearbenchmark.com), and for frames
      `get_timestamp_embeddings(audio, model) -> (n_clip, t, dim), (n_clip, t)` in ms;
    - module:name, where the name is an nn.Module, its class, or a function that makes one: its forward takes waveforms
      (n_clip, sample) in [-1, 1] at its sample_rate (or sampling_rate, as X-ARES has it) and gives (n_clip, t, dim),
      or (n_clip, dim).
    weights: path that load_model, the class or the function is called with. pool: "mean" (default) or "meanstd" over
    time; for models that give one embedding a clip by themselves, None.
    Modules are looked for in the working folder too. Raises FileNotFoundError, or ValueError that names the checkpoint
    or module and says what it lacks.
    """
    path, text = Path(spec), str(spec)
    module, colon, name = text.rpartition(":")
    if colon and name.isidentifier() and is_module(module):
        return _torch_embedder(module, name, weights, pool, device)
    if is_module(text):
        return _hear_embedder(text, weights, pool, device)
    if not path.exists():
        raise FileNotFoundError(f"{spec}: no such checkpoint or Python module")
    if weights is not None:
        raise ValueError(f"{spec}: a checkpoint brings its own weights; a model path is for Python modules")
    model, pool = load_model(path).to(device).eval(), pool or "mean"
    encoder = model.net

    @torch.inference_mode()
    def embed(waveform: Tensor) -> Tensor:
        return pool_tokens(encoder(waveform.to(device)), pool).float().cpu()

    def frames(waveform: Tensor) -> tuple[Tensor, Tensor]:
        z, at_ms = get_timestamp_embeddings(waveform.to(device), model)
        return z.cpu(), at_ms.cpu()

    mel_embed = encoder_embedding(encoder, pool)
    return Embedder(path.name, SAMPLE_RATE, f"{pool} over time", embed, mel_embed, frames)


def is_module(spec: str) -> bool:
    """Whether such a name means a Python module, and not a checkpoint."""
    path = Path(spec)
    is_name = all(part.isidentifier() for part in spec.split("."))
    return path.suffix == ".py" or (is_name and not path.is_file() and not (path / WEIGHTS).is_file())


def _torch_embedder(spec: str, name: str, weights: str | None, pool: str | None, device: str) -> Embedder:
    found, spec = getattr(_import_module(spec), name, None), f"{spec}:{name}"
    if not callable(found):
        raise ValueError(f"{spec}: there is no such module, class or function")
    with _foreign(spec, "making the model"):
        model = found if isinstance(found, nn.Module) else found(*[] if weights is None else [weights])
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec}: is or makes a {type(model).__name__}, not a torch.nn.Module")
    model.to(device).eval()
    rate = _positive(spec, model, "sample_rate" if hasattr(model, "sample_rate") else "sampling_rate")

    @torch.no_grad()
    def forward(waveform: Tensor) -> Tensor:
        with _foreign(spec, "its forward"):
            z = model(waveform.to(device))
        if not isinstance(z, Tensor) or z.ndim not in (2, 3) or len(z) != len(waveform) or not z.is_floating_point():
            what = f"{z.dtype} of shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"{spec}: its forward gave {what} for {len(waveform)} clips; give floating point (clip, time, dim), "
                "or (clip, dim)"
            )
        return z.float().cpu()

    if forward(torch.zeros(1, rate)).ndim == 3:
        pool = pool or "mean"
        return Embedder(name, rate, f"{pool} over time", lambda waveform: pool_tokens(forward(waveform), pool))
    if pool is not None:
        raise ValueError(f"{spec}: gives one embedding a clip by itself; leave pool out")
    return Embedder(name, rate, "the model's own", forward)


def _hear_embedder(spec: str, weights: str | None, pool: str | None, device: str) -> Embedder:
    if pool is not None:
        raise ValueError(f"{spec}: a HEAR model pools over time by itself; leave pool out")
    module = _import_module(spec)
    if missing := [call for name, call in HEAR.items() if not callable(getattr(module, name, None))]:
        raise ValueError(f"{spec}: lacks {' and '.join(missing)} of the HEAR interface (hearbenchmark.com)")
    with _foreign(spec, "load_model"):
        model = module.load_model(*([] if weights is None else [weights]))
    rate, dim = (_positive(spec, model, name) for name in ("sample_rate", "scene_embedding_size"))
    if isinstance(model, nn.Module):
        model.to(device).eval()

    @torch.no_grad()
    def embed(waveform: Tensor) -> Tensor:
        with _foreign(spec, "get_scene_embeddings"):
            z = module.get_scene_embeddings(waveform.to(device), model)
            z = z.detach().cpu() if isinstance(z, Tensor) else torch.from_numpy(np.array(z))  # not only PyTorch's
        if z.shape != (len(waveform), dim) or not z.is_floating_point():
            raise ValueError(
                f"{spec}: get_scene_embeddings gave {z.dtype} of shape {tuple(z.shape)} for {len(waveform)} clips; "
                f"its scene_embedding_size asks for floating point ({len(waveform)}, {dim})"
            )
        return z.float()

    @torch.no_grad()
    def frames(waveform: Tensor) -> tuple[Tensor, Tensor]:
        with _foreign(spec, "get_timestamp_embeddings"):
            found = module.get_timestamp_embeddings(waveform.to(device), model)
            z, at_ms = (
                each.detach().cpu() if isinstance(each, Tensor) else torch.from_numpy(np.array(each)) for each in found
            )
        fits = z.ndim == 3 and z.is_floating_point() and z.shape[0] == len(waveform) and z.shape[:2] == at_ms.shape
        if not fits or not at_ms.numel() or not (at_ms.diff(dim=1) > 0).all():
            raise ValueError(
                f"{spec}: get_timestamp_embeddings gave {z.dtype} of shape {tuple(z.shape)} and timestamps of shape "
                f"{tuple(at_ms.shape)} for {len(waveform)} clips; give (clip, t, dim) and (clip, t), in ms, ascending"
            )
        return z.float(), at_ms.double()

    has_frames = callable(getattr(module, "get_timestamp_embeddings", None))
    return Embedder(Path(spec).name, rate, "the model's own", embed, frames=frames if has_frames else None)


def _import_module(spec: str) -> ModuleType:
    """A module by its dotted name or its file. What lies beside it can be imported too."""
    path = Path(spec)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FileNotFoundError(f"{spec}: no such file")
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    if not is_file and importlib.util.find_spec(spec.partition(".")[0]) is None:
        raise FileNotFoundError(f"{spec}: no such checkpoint or Python module")
    with _foreign(spec, "importing it"):
        if not is_file:
            return importlib.import_module(spec)
        name = f"hear_{path.stem}"  # a file may be called as a library is
        found = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses and pickles look their module up there
        found.loader.exec_module(module)
        return module


@contextmanager
def _foreign(spec: str, doing: str) -> Iterator[None]:
    """Errors of somebody else's code, in one line that says where."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if not frame.filename.startswith("<frozen")][-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise ValueError(f"{spec}: {doing} failed: {type(error).__name__}: {error} ({where})") from error


def _positive(spec: str, model: Any, name: str) -> int:
    value = getattr(model, name, None)
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{spec}: the model's {name} is {value!r}; it must be a positive integer")
    return int(value)


# --- a folder of audio ------------------------------------------------------------------------------------

CLIP_S = 10.0  # AudioSet's clips and Dasheng's training chunks are this long


@dataclass(frozen=True, eq=False)
class FolderEmbeddings:
    """z: (n_clip, dim) float32. files: (n_clip,) the file of each clip. remarks: what went wrong, in words."""

    z: np.ndarray
    files: np.ndarray
    remarks: tuple[str, ...]


def embed_folder(
    embedder: Embedder,
    folder: str | Path,
    clip_s: float = CLIP_S,
    batch: int = 16,
    cache_dir: str | Path = "runs/cache",
    progress: bool = True,
) -> FolderEmbeddings:
    """Embed every clip of a folder of audio files, `batch` at a time, by the rules of `rankscale.sound.files`.

    clip_s: files are cut into clips of this many seconds. Bad files and silent clips are left out and end in `remarks`.
    Raises FileNotFoundError without the folder, ValueError if it has no clip, or if a clip gives NaN or infinity.
    """
    manifest = files.scan(folder, cache_dir=cache_dir, progress=progress)
    left_out = files.Report()
    clips = files.iter_clips(manifest, clip_s, left_out, rate=embedder.rate)
    blocks, names = [], []
    with tqdm(
        total=len(files.clip_table(manifest, clip_s)), desc="embedding", unit="clip", disable=not progress
    ) as bar:
        while some := list(itertools.islice(clips, batch)):
            blocks.append(_embed_clips(embedder, some))
            names += [clip.file for clip in some]
            bar.update(len(some))
    remarks = _remarks(manifest, left_out, clip_s, embedder.rate)
    if not blocks:
        raise ValueError("\n".join([f"{folder}: no clip to embed", *remarks]))
    return FolderEmbeddings(np.concatenate(blocks), np.array(names), remarks)


def embed_synth(embedder: Embedder, clips: int, clip_s: float = 1.28, progress: bool = True) -> FolderEmbeddings:
    """Embed the synthetic clips that the book's records measure RankMe on: held out, of the corpus with seed 0."""
    starts, blocks = range(0, clips, SHARD), []
    for start in tqdm(starts, "embedding synthetic clips", unit="shard", disable=not progress):
        index = range(HELDOUT_START + start, HELDOUT_START + min(start + SHARD, clips))
        waveform = synth.synthesize(index, clip_s=clip_s).waveform
        blocks += [embedder.hear(part).numpy() for part in waveform.split(BLOCK)]
    z = np.concatenate(blocks)
    if not np.isfinite(z).all():
        raise ValueError(f"{embedder.name}: gives NaN or infinity for a synthetic clip")
    upper = (
        f"synthetic clips have no frequencies above {SAMPLE_RATE // 2} Hz; the encoder listens at {embedder.rate} Hz"
    )
    return FolderEmbeddings(z, np.arange(clips), (upper,) if embedder.rate > SAMPLE_RATE else ())


def _embed_clips(embedder: Embedder, clips: list[files.Clip]) -> np.ndarray:
    z = embedder.embed(torch.stack([clip.waveform for clip in clips])).numpy()
    if not (finite := np.isfinite(z).all(axis=1)).all():
        bad = clips[int(np.flatnonzero(~finite)[0])]
        raise ValueError(f"{embedder.name}: gives NaN or infinity for {bad.file}, clip at {bad.offset_s:.2f} s")
    return z


def _remarks(manifest: files.Manifest, left_out: files.Report, clip_s: float, rate: int) -> tuple[str, ...]:
    """What a listener should know about the audio: each remark with how often, and a few files."""
    usable = manifest.files
    groups = {
        "gave no clips": [f"{path}: {reason}" for path, reason in manifest.rejected],
        "fell short of their header": [f"{file.path}: {file.remark}" for file in usable if file.remark],
        "lost clips": [f"{path}: {reason} ({n} times)" for (path, reason), n in left_out.counts.most_common()],
        f"are shorter than a clip of {clip_s:g} s and were extended with silence": [
            file.path for file in usable if file.seconds < clip_s
        ],
        f"have a lower sample rate than the encoder's {rate} Hz: their upper frequencies are empty": [
            file.path for file in usable if file.rate < rate
        ],
    }
    count = len(usable) + len(manifest.rejected)
    return tuple(
        f"{len(names)} of {count} files {what}: {_listed(names, '; ')}" for what, names in groups.items() if names
    )
