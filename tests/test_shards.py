"""Tar shards: the same clips as the folder, in an order that the seed and the step decide, in constant memory."""

import io
import json
import logging
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from click.testing import CliRunner

from rankscale import experiment
from rankscale.cli import main
from rankscale.config import RunConfig, profile
from rankscale.corpus import ShardCorpus, ShardReader, build_corpus, log_mels
from rankscale.experiment import Places
from rankscale.pretrain import pretrain
from rankscale.records import read_record, record_path
from rankscale.sound import files, shards
from rankscale.sound.files import iter_clips, scan

RATE = 16_000
CLIP_S = 0.5


def noise(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels)).clip(-5, 5)


def make_folder(folder: Path, n: int = 24) -> Path:
    """16-bit FLAC at 16 kHz, so that what is written into shards is the same to the last bit."""
    for k in range(n):
        path = folder / f"part{k % 3}" / f"sound.{k}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, noise(0.3 + 0.4 * (k % 6), k), RATE, subtype="PCM_16")
    return folder


def make_shards(root: Path, n: int = 24, shard_mb: float = 0.15, **options) -> Path:
    manifest = scan(make_folder(root / "in", n), cache_dir=root / "cache", progress=False)
    shards.write_shards(manifest, root / "out", shard_mb, progress=False, **{"piece_s": 1.0} | options)
    return root / "out"


def config(pattern: str, **changes) -> RunConfig:
    settings = {"clips": 10_000, "rank_clips": 1000, "clip_s": CLIP_S, "corpus": pattern}
    return profile("smoke", **settings | changes)


def stream(out: Path, cache: Path, workers: int = 1, way: str = "shards", **changes) -> ShardCorpus:
    return build_corpus(config(f"{way}:{out}/*.tar", **changes), cache, workers, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `in` (sound files), `out` (their shards) and `cache`. Read only."""
    root = tmp_path_factory.mktemp("shards")
    make_shards(root)
    return root


@pytest.fixture(scope="module")
def corpus(made) -> ShardCorpus:
    return stream(made / "out", made / "cache")


# --- writing ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves that to the garbage collector
def test_webdataset_reads_what_is_written_and_it_is_the_sound_of_the_folder(made):
    webdataset = pytest.importorskip("webdataset")
    paths = sorted(map(str, (made / "out").glob("*.tar")))
    assert len(paths) > 4
    sounds: dict[str, dict[float, np.ndarray]] = {}
    where: dict[str, set[str]] = {}
    for sample in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False):
        about = json.loads(sample["json"])
        piece, rate = sf.read(io.BytesIO(sample["flac"]), dtype="float32")
        assert rate == RATE and len(piece) == about["samples"] and sf.info(io.BytesIO(sample["flac"])).channels == 1
        sounds.setdefault(about["file"], {})[about["offset_s"]] = piece
        where.setdefault(about["file"], set()).add(sample["__url__"])
    folder = made / "in"
    assert set(sounds) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.flac")}
    assert all(len(shard) == 1 for shard in where.values())
    for name, pieces in sounds.items():
        whole = sf.read(folder / name, dtype="float32")[0]
        joined = np.concatenate([pieces[offset] for offset in sorted(pieces)])
        assert np.array_equal(joined, whole)
        assert max(map(len, pieces.values())) < 2 * RATE and len(pieces) == max(1, int(len(whole) / RATE))


def test_shards_that_are_there_are_kept_and_missing_ones_come_out_the_same(tmp_path):
    out = make_shards(tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.tar")}
    (out / "000001.tar").unlink()
    make_shards(tmp_path)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.tar")}
    assert {name: content for name, (content, _) in after.items()} == {n: content for n, (content, _) in before.items()}
    assert [name for name in before if after[name][1] != before[name][1]] == ["000001.tar"]


def test_a_killed_shard_is_not_there(tmp_path, monkeypatch):
    add, added = shards._add_file, []

    def die(*arguments):
        added.append(arguments)
        if len(added) == 10:
            raise KeyboardInterrupt
        add(*arguments)

    monkeypatch.setattr(shards, "_add_file", die)
    with pytest.raises(KeyboardInterrupt):
        make_shards(tmp_path)
    complete = list((tmp_path / "out").glob("*.tar"))
    assert complete and not list((tmp_path / "out").glob("*.tmp"))
    monkeypatch.undo()
    assert len(list(make_shards(tmp_path).glob("*.tar"))) > len(complete)


def test_other_sound_or_settings_are_not_mixed_in(tmp_path):
    make_shards(tmp_path)
    with pytest.raises(ValueError, match=r"other sound or settings \(piece_s\)"):
        make_shards(tmp_path, piece_s=2.0)
    with pytest.raises(ValueError, match=r"other sound or settings \(digest.*another folder"):
        make_shards(tmp_path, n=25)


def test_what_would_be_one_shard_is_refused_with_its_size(tmp_path):
    with pytest.raises(ValueError, match=r"24 usable files, 1.0 MB of 16-bit sound.*smaller --shard-mb"):
        make_shards(tmp_path, shard_mb=100)


def test_the_command_lists_bad_files_and_stops_for_none(tmp_path):
    folder = make_folder(tmp_path / "in", 12)
    (folder / "broken.wav").write_text("no sound")
    sf.write(folder / "silent.wav", np.zeros(RATE), RATE)
    command = ["data", "shard", str(folder), str(tmp_path / "out"), "--shard-mb", "0.1", "--workers", "1", "--quiet"]
    result = CliRunner().invoke(main, [*command, "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 0, result.output
    assert "left out: broken.wav: not an audio file" in result.output
    assert "left out: silent.wav: silent" in result.output
    assert f"--corpus 'shards:{tmp_path / 'out'}/*.tar'" in result.output
    assert len(shards.find_shards([f"shards:{tmp_path / 'out'}/*.tar"])) > 2


def test_a_file_that_broke_after_the_scan_is_listed(tmp_path):
    manifest = scan(make_folder(tmp_path / "in"), cache_dir=tmp_path / "cache", progress=False)
    (tmp_path / "in" / "part1" / "sound.4.flac").write_bytes(b"")
    left_out = shards.write_shards(manifest, tmp_path / "out", 0.15, progress=False)
    assert [(path, reason[:17]) for path, reason in left_out] == [("part1/sound.4.flac", "the file is empty")]
    assert stream(tmp_path / "out", tmp_path / "cache").batch(0, 4, 0).isfinite().all()


@pytest.mark.real_audio
def test_of_hear_tasks_only_what_may_be_trained_on_goes_into_shards(tmp_path, real_audio):
    folder = next(path for path in real_audio.iterdir() if path.name.startswith("fsdd_digit"))
    command = ["data", "shard", str(folder), str(tmp_path / "out"), "--shard-mb", "0.5", "--workers", "1", "--quiet"]
    result = CliRunner().invoke(main, [*command, "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 0, result.output
    names = set()
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            names |= {json.load(tar.extractfile(m))["file"] for m in tar if m.name.endswith(".json")}
    assert names and all(name.startswith("16000/train/") for name in names)


# --- reading ----------------------------------------------------------------------------------------------


def as_set(mels: torch.Tensor | np.ndarray) -> set[bytes]:
    return {np.asarray(mel, np.float16).tobytes() for mel in mels}


def test_a_streamed_corpus_has_the_clips_that_the_folder_has(made, corpus):
    manifest = scan(made / "in", cache_dir=made / "cache", progress=False)
    clips = torch.stack([clip.waveform for clip in iter_clips(manifest, CLIP_S)])
    streamed = corpus.store.take(np.arange(len(corpus.store)))
    assert len(streamed) == len(clips)  # pieces are two clips long
    assert as_set(streamed) == as_set(log_mels(clips, config("synth").frames))
    assert streamed.shape[1:] == (64, config("synth").frames) and streamed.dtype == torch.float32


def test_held_out_shards_are_never_trained_on(corpus):
    train, heldout = corpus.store.train, corpus.store.heldout
    assert not set(train.paths) & set(heldout.paths) and len(heldout.paths) == 1
    assert min(corpus.heldout_rows) == len(train) and max(corpus.heldout_rows) < len(corpus.store)
    (source,) = corpus.sources
    assert (source.train_clips, source.heldout_clips) == (len(train), len(heldout))
    assert corpus.unique_train_rows(10).max() < len(train)


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one(made, corpus):
    small = stream(made / "out", made / "cache", clips=20)
    assert len(small.store.train) == 20 and small.sources[0].train_clips == 20
    assert torch.equal(small.store.take(np.arange(20)), corpus.store.take(np.arange(20)))
    assert np.array_equal(
        small.store.take(small.heldout_rows), corpus.store.take(corpus.heldout_rows)
    )  # what is measured stays the same


def test_shards_of_others_are_read_at_any_rate_and_format(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    sounds = {}
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for k, (kind, rate) in enumerate([("wav", 44_100), ("ogg", 48_000), ("flac", 8_000)]):
                content = io.BytesIO()
                sf.write(content, noise(1.2, 10 * shard + k, rate, 2), rate, format=kind)
                tar.write({"__key__": f"a/{shard}.{k}", kind: content.getvalue(), "txt": "a sound"})
                sounds[shard, kind] = content.getvalue()
    built = stream(tmp_path, tmp_path / "cache")
    assert len(built.store) == 3 * 3 * 2  # 1.2 s are two clips
    wanted = set()
    for (shard, kind), content in sounds.items():
        (tmp_path / f"{shard}.{kind}").write_bytes(content)
        whole = files.read_audio(tmp_path / f"{shard}.{kind}")
        wanted |= {tuple(clip[::100].round(decimals=3).tolist()) for clip in whole[: 2 * 8000].split(8000)}
    read = [part.clip(k)[0] for part in (built.store.train, built.store.heldout) for k in range(len(part))]
    assert {tuple(clip[::100].round(decimals=3).tolist()) for clip in read} == wanted


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("nothing/*.tar", "no file .*nothing"),
        ("out/{000000..000099}.tar", "no file .*0000"),
        ("one/*.tar", "one shard"),
    ],
)
def test_patterns_that_name_too_little_are_refused(made, tmp_path, pattern, fault):
    (tmp_path / "out").symlink_to(made / "out")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.tar").symlink_to(made / "out" / "000000.tar")
    with pytest.raises(ValueError, match=fault):
        build_corpus(config(f"shards:{tmp_path}/{pattern}"), tmp_path / "cache", progress=False)


def test_braces_and_stars_name_the_same_shards(made):
    last = len(list((made / "out").glob("*.tar"))) - 1
    braces = shards.find_shards([f"shards:{made}/out/{{000000..{last:06d}}}.tar"])
    assert braces == shards.find_shards([f"shards:{made}/out/*.tar"]) and len(braces) == last + 1


def test_what_is_no_tar_file_is_named(made, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"\w.tar: no tar file"):
        stream(tmp_path, tmp_path / "cache")


# --- bad members ------------------------------------------------------------------------------------------


def copy_of(made: Path, folder: Path) -> dict[str, bytearray]:
    folder.mkdir()
    return {path.name: bytearray(path.read_bytes()) for path in (made / "out").glob("*.tar")}


def write_all(contents: dict[str, bytearray], folder: Path) -> Path:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return [member for member in tar.getmembers() if member.name.endswith(".flac")]


def test_a_member_that_does_not_decode_is_replaced_by_the_next_and_counted(made, corpus, tmp_path, caplog):
    name = Path(corpus.store.train.paths[0]).name
    contents = copy_of(made, tmp_path / "out")
    member = members(made / "out" / name)[0]
    contents[name][member.offset_data + 100 : member.offset_data + member.size] = bytes(member.size - 100)
    damaged = stream(write_all(contents, tmp_path / "out"), tmp_path / "cache")
    rows = np.arange(len(damaged.store))
    with caplog.at_level(logging.WARNING):
        first, again = damaged.store.take(rows), damaged.store.take(rows)
    whole = corpus.store.take(rows)
    changed = [row for row in rows if not torch.equal(first[row], whole[row])]
    n = max(1, round(damaged_samples(corpus, 0)) // round(CLIP_S * RATE))
    assert changed == list(range(n))  # the clips of that member
    assert torch.equal(first, again)
    assert all(torch.equal(first[row], whole[n]) for row in changed)
    assert damaged.store.report.counts.total() == 2 * sum(range(1, n + 1))  # passed over, twice
    assert f"{2 * sum(range(1, n + 1))} clips or files left out" in damaged.remarks() and not corpus.remarks()
    assert [name in message and "the next clip" in message for message in caplog.messages] == [True]


def damaged_samples(corpus: ShardCorpus, row: int) -> float:
    return shards.read_table(Path(corpus.store.train.paths[0]), corpus.store.train.cache).rows[row, 2]


def test_a_member_without_a_readable_head_is_left_out_and_named(made, corpus, tmp_path, caplog):
    name = Path(corpus.store.train.paths[0]).name
    contents = copy_of(made, tmp_path / "out")
    member = members(made / "out" / name)[0]
    contents[name][member.offset_data : member.offset_data + 20] = b"?" * 20
    with caplog.at_level(logging.WARNING):
        damaged = stream(write_all(contents, tmp_path / "out"), tmp_path / "cache")
    assert len(damaged.store) < len(corpus.store)
    assert any(member.name in message and "libsndfile" in message for message in caplog.messages)


def test_a_shard_that_ends_early_gives_what_is_there(made, corpus, tmp_path):
    name = Path(corpus.store.train.paths[0]).name
    contents = copy_of(made, tmp_path / "out")
    cut = members(made / "out" / name)[1]
    del contents[name][cut.offset_data + cut.size // 2 :]
    damaged = stream(write_all(contents, tmp_path / "out"), tmp_path / "cache")
    assert damaged.store.train.counts[0] < corpus.store.train.counts[0]
    assert damaged.store.take(np.arange(len(damaged.store))).isfinite().all()


def test_silent_clips_are_passed_over_and_a_shard_without_sound_is_an_error(tmp_path):
    quiet = np.concatenate([np.zeros(RATE // 2), noise(0.5, 0)[:, 0], np.zeros(RATE // 2)])
    for shard, wave in {"a": quiet, "b": quiet, "c": np.zeros(RATE)}.items():
        content = io.BytesIO()
        sf.write(content, wave, RATE, format="WAV", subtype="PCM_16")
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            shards._add_member(tar, "x.wav", content.getvalue())
    built = stream(tmp_path, tmp_path / "cache")
    clips = {Path(p).name: (part, part.starts[k]) for part in (built.store.train, built.store.heldout)
             for k, p in enumerate(part.paths)}  # fmt: skip
    part, start = clips["a.tar"]
    found = [part.clip(int(start) + k) for k in range(3)]
    assert all(torch.equal(clip, found[1][0]) for clip, _ in found)
    assert [len(left_out) for _, left_out in found] == [1, 0, 2]
    part, start = clips["c.tar"]
    with pytest.raises(ValueError, match=r"c.tar: none of its 2 clips can be used.*silent"):
        part.clip(int(start))


# --- the order --------------------------------------------------------------------------------------------


def toy(counts: list[int]) -> shards.Shards:
    return shards.Shards(tuple(map(str, range(len(counts)))), np.array(counts), 8000, Path("unused"))


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own():
    some = toy([5, 1, 9, 4, 7, 3, 3, 8, 2, 6, 4])
    n = len(some)
    epochs = [shards.draw(some, np.arange(e * n, (e + 1) * n), seed=0) for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    orders = {tuple(epoch) for epoch in epochs} | {tuple(shards.draw(some, np.arange(n), seed=1))}
    assert len(orders) == 4


def test_a_position_has_the_same_clip_whatever_was_asked_before():
    counts = [5, 1, 9, 4, 7, 3, 3, 8, 2, 6, 4]
    for resampled in (False, True):
        whole = shards.draw(toy(counts), np.arange(200), 3, resampled)
        for start in (199, 60, 61, 3):
            assert shards.draw(toy(counts), np.arange(start, 200), 3, resampled).tolist() == whole[start:].tolist()


def test_clips_of_a_window_of_shards_are_shuffled_together(monkeypatch):
    monkeypatch.setattr(shards, "WINDOW", 3)
    some = toy([20] * 9)
    drawn = shards.draw(some, np.arange(180), seed=5) // 20
    windows = [set(part.tolist()) for part in drawn.reshape(3, 60)]
    assert all(len(window) == 3 for window in windows) and set.union(*windows) == set(range(9))
    assert all(len(set(part[:12].tolist())) == 3 for part in drawn.reshape(3, 60))


def test_resampled_clips_are_drawn_alike_and_with_replacement():
    some = toy([30, 10, 20, 40] * 4)
    n = len(some)
    drawn = shards.draw(some, np.arange(200 * n), seed=2, resampled=True)
    by_shard = np.bincount(np.searchsorted(np.cumsum(some.counts), drawn, side="right"), minlength=16)
    np.testing.assert_allclose(by_shard / by_shard.sum(), some.counts / n, atol=0.01)
    assert len(set(drawn[:n].tolist())) < n
    assert set(drawn.tolist()) == set(range(n))


def test_a_resampled_corpus_draws_with_replacement(made):
    built = stream(made / "out", made / "cache", way="resampled")
    n = len(built.store.train)
    assert len(set(np.concatenate([built.rows(step, 8, 0) for step in range(n // 8)]).tolist())) < n // 8 * 8
    assert built.sources[0].name == "resampled:out/*.tar"


def test_parts_of_a_batch_are_the_batch(corpus):
    whole = corpus.batch(3, 9, 1)
    parts = [corpus.batch(3, 9, 1, slice(9 * k // 2, 9 * (k + 1) // 2)) for k in range(2)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_batches(made, corpus):
    streamed = stream(made / "out", made / "cache", workers=2)
    reader = streamed.reader(on_gpu=False)
    assert isinstance(reader, ShardReader) and corpus.reader(on_gpu=False) is corpus
    for step in (4, 5, 6):
        assert torch.equal(reader.batch(step, 8, 1, slice(2, 5), "cpu"), corpus.batch(step, 8, 1)[2:5])


# --- training ---------------------------------------------------------------------------------------------


def tiny(out: Path, **changes) -> RunConfig:
    small = {"steps": 12, "batch": 8, "rank_clips": 8, "task_clips": 20, "tasks": "synth:tempo"}
    return config(f"shards:{out}/*.tar", **small | changes)


def test_a_killed_run_goes_on_with_the_clips_that_it_would_have_had(made, corpus, tmp_path, monkeypatch):
    plan = tiny(made / "out")
    whole = pretrain(plan, corpus, tmp_path / "whole", "cpu", progress=False)
    batch, asked = ShardCorpus.batch, []

    def die(self, step, *rest):
        asked.append(step)
        if step == 7 and asked.count(7) == 1:
            raise KeyboardInterrupt
        return batch(self, step, *rest)

    monkeypatch.setattr(ShardCorpus, "batch", die)
    with pytest.raises(KeyboardInterrupt):
        pretrain(plan, corpus, tmp_path / "killed", "cpu", save_every_s=0, progress=False)
    resumed = pretrain(plan, stream(made / "out", made / "cache"), tmp_path / "killed", "cpu", progress=False)
    assert asked == [*range(8), *range(7, 12)]
    assert resumed.history == whole.history
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.slow
def test_a_run_on_shards_leaves_a_record_like_any_other(made, tmp_path):
    plan = tiny(made / "out", steps=2, seed=1)
    record = experiment.run(plan, Places(tmp_path), "cpu", progress=False)
    assert record.config.corpus == ("shards:out/*.tar",) and record.sources[0].name == "shards:out/*.tar"
    assert read_record(record_path(Places(tmp_path).records, plan)) == record
    assert plan.replace(corpus=("shards:/elsewhere/out/*.tar",)).hash == plan.hash


@pytest.mark.parametrize("other", ["synth", "some/folder", "resampled:out/*.tar"])
def test_shards_are_not_mixed_with_what_is_drawn_otherwise(other):
    assert RunConfig(corpus=("shards:a/*.tar", "shards:b/*.tar")).portable().corpus[1] == "shards:b/*.tar"
    with pytest.raises(ValueError, match="tar shards are streamed and not mixed"):
        RunConfig(corpus=("shards:out/*.tar", other))


# --- memory -----------------------------------------------------------------------------------------------


def peak_bytes(folder: Path, cache: Path) -> int:
    """The most memory that Python and NumPy held while a corpus was opened and read from all over."""
    shards.read_table.cache_clear()
    tracemalloc.start()
    try:
        built = stream(folder, cache, clips=10**9, rank_clips=64)
        for step in (0, 10, 10_000, 10_001):
            built.batch(step, 4, 0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_the_names_of_the_shards_only(made, tmp_path):
    real = [made / "out" / f"{k:06d}.tar" for k in range(3)]
    sizes = {}
    for n in (200, 3200):
        (tmp_path / str(n)).mkdir()
        for k in range(n):
            (tmp_path / str(n) / f"{k:06d}.tar").symlink_to(real[k % 3])
        sizes[n] = peak_bytes(tmp_path / str(n), made / "cache")
    assert (sizes[3200] - sizes[200]) / 3000 < 1000  # bytes a shard: nothing of what it holds
