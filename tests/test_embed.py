"""Matrices in files, models behind the HEAR interface, and folders of audio, good and bad."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from rankscale.config import RunConfig
from rankscale.embed import embed_folder, encoder_embedding, load_embedder, load_embeddings, pool_tokens
from rankscale.mae import Encoder, save_encoder
from rankscale.sound.files import iter_clips, scan

Z = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
TENSOR = torch.from_numpy(Z)


def write_lists(path, **columns):
    pd.DataFrame({name: list(rows) for name, rows in columns.items()}).to_parquet(path)


def test_a_layer_is_the_output_of_its_block_and_the_last_one_is_normalised():
    torch.manual_seed(0)
    encoder = Encoder.from_config(RunConfig(encoder="en32-3"))
    mel = torch.randn(2, 64, 128)
    with torch.inference_mode():
        outputs = encoder.eval().forward_mel(mel, layers=True)
    for layer in (1, 2):
        torch.testing.assert_close(encoder_embedding(encoder, layer=layer)(mel), outputs[layer - 1].mean(1))
    torch.testing.assert_close(encoder_embedding(encoder, layer=3)(mel), encoder_embedding(encoder)(mel))
    assert encoder_embedding(encoder, "meanstd", 1)(mel).shape == (2, 64)


# --- matrices in files ------------------------------------------------------------------------------------

WRITERS = {
    "npy": lambda p: np.save(p, Z),
    "pt": lambda p: torch.save(TENSOR, p),
    "pt parameter": lambda p: torch.save(torch.nn.Parameter(TENSOR), p),
    "pt nested": lambda p: torch.save({"labels": torch.arange(6), "out": {"z": TENSOR}, "note": "x"}, p),
    "safetensors": lambda p: save_file({"z": TENSOR, "labels": torch.arange(6)}, p),
    "parquet lists": lambda p: write_lists(p, z=Z, label=range(6)),
    "parquet columns": lambda p: pd.DataFrame(Z, columns=list("abcd")).to_parquet(p),
    "parquet pandas index": lambda p: pd.DataFrame(Z, columns=list("abcd"), index=range(3, 9)).to_parquet(p),
    "parquet named index": lambda p: pd.DataFrame(Z, columns=list("abcd"), index=list("uvwxyz")).to_parquet(p),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_back_what_was_written(kind, tmp_path):
    path = tmp_path / f"z.{kind.split()[0]}"
    WRITERS[kind](path)
    z = load_embeddings(path)
    assert z.shape == Z.shape and not getattr(z, "requires_grad", False)
    np.testing.assert_array_equal(np.asarray(z), Z)


def test_fixed_size_lists_and_half_precision_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeListArray.from_arrays(pa.array(Z.ravel()), 4)
    pq.write_table(pa.table({"z": column}), tmp_path / "z.parquet", row_group_size=2)
    np.testing.assert_array_equal(load_embeddings(tmp_path / "z.parquet"), Z)
    save_file({"z": TENSOR.bfloat16()}, tmp_path / "z.safetensors")
    assert load_embeddings(tmp_path / "z.safetensors").dtype == torch.bfloat16


def test_an_array_is_mapped_not_read(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    assert isinstance(load_embeddings(tmp_path / "z.npy"), np.memmap)


SEVERAL = {
    ".pt": lambda p: torch.save({"z": TENSOR, "y": 2 * TENSOR}, p),
    ".safetensors": lambda p: save_file({"z": TENSOR, "y": 2 * TENSOR}, p),
    ".parquet": lambda p: write_lists(p, z=Z, y=2 * Z),
}


@pytest.mark.parametrize("suffix", SEVERAL)
def test_where_several_could_be_meant_the_key_chooses(suffix, tmp_path):
    path = tmp_path / f"both{suffix}"
    SEVERAL[suffix](path)
    np.testing.assert_array_equal(np.asarray(load_embeddings(path, "y")), 2 * Z)
    with pytest.raises(ValueError, match=rf"both\{suffix}: which .*--key.*(z .*y |y .*z )"):
        load_embeddings(path)
    with pytest.raises(ValueError, match=r"both.*'x'.*(z .*y |y .*z )"):
        load_embeddings(path, "x")


BAD = {
    "z.csv": (lambda p: p.write_text("1,2"), r"read from \.npy"),
    "empty.npy": (lambda p: p.write_bytes(b""), "zero bytes"),
    "text.npy": (lambda p: p.write_text("no array"), "not a whole .npy file"),
    "cut.npy": (lambda p: (np.save(p, Z), p.write_bytes(p.read_bytes()[:-8])), "not a whole .npy file"),
    "objects.npy": (lambda p: np.save(p, np.array([{}, {}]), allow_pickle=True), "not a whole .npy file of numbers"),
    "labels.npy": (lambda p: np.save(p, np.arange(8).reshape(4, 2)), "int64 values; .*labels"),
    "flat.npy": (lambda p: np.save(p, Z[0]), r"shape \(4,\)"),
    "frames.npy": (lambda p: np.save(p, Z.reshape(3, 2, 4)), "pool over time"),
    "norows.npy": (lambda p: np.save(p, Z[:0]), r"shape \(0, 4\)"),
    "nan.npy": (lambda p: np.save(p, np.where(np.arange(6)[:, None] == 4, np.nan, Z)), "row 4 .*NaN"),
    "code.pt": (lambda p: torch.save({"z": pd.DataFrame(Z)}, p), "without running code"),
    "text.pt": (lambda p: p.write_text("no tensor"), "damaged"),
    "list.pt": (lambda p: torch.save([1, 2], p), "no tensor with a name"),
    "inf.pt": (lambda p: torch.save(TENSOR / torch.zeros(6, 1), p), "row 0 .*infinity"),
    "labels.pt": (lambda p: torch.save(torch.ones(4, 2, dtype=torch.int64), p), "int64"),
    "text.safetensors": (lambda p: p.write_text("no tensor"), "not a whole safetensors file"),
    "text.parquet": (lambda p: p.write_text("no table"), "not a whole parquet file"),
    "mixed.parquet": (lambda p: pd.DataFrame({"a": Z[:, 0], "file": list("uvwxyz")}).to_parquet(p), "file .*string"),
    "ragged.parquet": (lambda p: write_lists(p, z=[Z[0], Z[1, :2]]), "column z .*one length"),
    "gap.parquet": (lambda p: write_lists(p, z=[Z[0], None]), "column z .*all be there"),
    "hole.parquet": (lambda p: pd.DataFrame({"a": [1.0, None]}).to_parquet(p), "row 1 .*NaN"),
    "words.parquet": (lambda p: write_lists(p, z=[["a"], ["b"]]), "z .*list|values"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_and_explained(name, tmp_path):
    write, words = BAD[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=words) as caught:
        load_embeddings(tmp_path / name)
    assert name in str(caught.value)


def test_a_key_that_cannot_be_used_is_refused(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    with pytest.raises(ValueError, match="leave the key out"):
        load_embeddings(tmp_path / "z.npy", "z")
    torch.save(TENSOR, tmp_path / "z.pt")
    with pytest.raises(ValueError, match="holds no tensor with a name"):
        load_embeddings(tmp_path / "z.pt", "z")
    write_lists(tmp_path / "z.parquet", z=Z, label=range(6))
    with pytest.raises(ValueError, match="column label holds int64"):
        load_embeddings(tmp_path / "z.parquet", "label")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_embeddings(tmp_path / "none.npy")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    write_lists(tmp_path / "z.parquet", z=Z)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'rankscale\[parquet\]'"):
        load_embeddings(tmp_path / "z.parquet")


# --- models -----------------------------------------------------------------------------------------------

HEAR_MODULE = """
import pathlib, torch

class Model(torch.nn.Module):
    sample_rate = RATE
    scene_embedding_size = 3

def load_model(path=""):
    model = Model()
    model.scale = float(pathlib.Path(path).read_text()) if path else 1.0
    return model

def get_scene_embeddings(audio, model):
    assert not model.training
    print("models like to print")
    parts = audio.split(audio.shape[1] // 3, dim=1)[:3]
    return model.scale * torch.stack([part.square().mean(dim=1).sqrt() for part in parts], dim=1)
"""


@pytest.fixture
def hear_module(tmp_path, monkeypatch):
    """A function that writes a HEAR module and gives its path; what importing it leaves behind is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(text=HEAR_MODULE, rate=16_000, name="toy_hear"):
        path = tmp_path / f"{name}.py"
        path.write_text(text.replace("RATE", str(rate)))
        return path

    yield write
    for name in set(sys.modules) - before:
        if "toy" in name or name.startswith("hear_"):
            del sys.modules[name]


def test_a_hear_module_is_found_by_file_and_by_name(hear_module, tmp_path, monkeypatch):
    path = hear_module(rate=22_050)
    audio = torch.rand(5, 9000)
    by_file = load_embedder(path)
    assert (by_file.name, by_file.rate) == ("toy_hear.py", 22_050)
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(load_embedder("toy_hear").embed(audio), by_file.embed(audio))
    assert by_file.embed(audio).shape == (5, 3)


def test_weights_reach_load_model(hear_module, tmp_path):
    (tmp_path / "weights.txt").write_text("4.0")
    path, audio = hear_module(), torch.rand(2, 900)
    loud = load_embedder(path, weights=str(tmp_path / "weights.txt")).embed(audio)
    torch.testing.assert_close(loud, 4 * load_embedder(path).embed(audio))


def test_what_lies_beside_a_module_can_be_imported(hear_module, tmp_path):
    (tmp_path / "toy_parts.py").write_text("GAIN = 1")
    assert load_embedder(hear_module("import toy_parts\n" + HEAR_MODULE)).rate == 16_000


def numpy_model(body, size=3):
    return f"""
import numpy as np
class Model: sample_rate = 16000; scene_embedding_size = {size}
def load_model(path=""): return Model()
def get_scene_embeddings(audio, model): return {body}
"""


def test_a_model_need_not_be_pytorch(hear_module):
    z = load_embedder(hear_module(numpy_model("np.ones((len(audio), 3))"))).embed(torch.rand(2, 900))
    assert z.dtype == torch.float32 and z.shape == (2, 3)


MODULES = {
    "x = 1": r"lacks load_model\(path\) and get_scene_embeddings\(audio, model\)",
    "def load_model(path): pass": r"lacks get_scene_embeddings",
    "import no_such_module_here": "ModuleNotFoundError: .*\\(toy_hear.py, line 1\\)",
    "def load_model(path=''): raise OSError('no weights')\ndef get_scene_embeddings(a, m): pass": "OSError: no weight",
    "def load_model(path=''): return 1\ndef get_scene_embeddings(a, m): pass": "sample_rate is None.*positive integer",
    numpy_model("1", size=0): "scene_embedding_size is 0",
}


@pytest.mark.parametrize("text", MODULES)
def test_modules_that_lack_something_are_told_what(text, hear_module):
    with pytest.raises(ValueError, match=MODULES[text]) as caught:
        load_embedder(hear_module(text))
    assert "toy_hear.py" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("np.ones((len(audio), 4))", r"shape \(2, 4\) for 2 clips; .*\(2, 3\)"),
        ("np.ones((len(audio), 3), int)", "int64"),
        ("1 / 0", r"get_scene_embeddings failed: ZeroDivisionError: .*line 5"),
    ],
)
def test_embeddings_of_another_kind_are_refused(body, words, hear_module):
    embedder = load_embedder(hear_module(numpy_model(body)))
    with pytest.raises(ValueError, match=words):
        embedder.embed(torch.rand(2, 900))


TORCH_MODULE = """
import torch

class Frames(torch.nn.Module):
    sampling_rate = 8000

    def __init__(self, path=""):
        super().__init__()
        self.gain = 2.0 if path else 1.0

    def forward(self, audio):
        assert not self.training
        return self.gain * torch.stack(audio.split(100, dim=1)[:4], dim=1)[..., :3]

class Whole(Frames):
    sample_rate = 16_000
    forward = lambda self, audio: audio[:, :5]

ready = Whole().train()
def make(path=""): return Frames(path)
def number(): return 1
class Rateless(torch.nn.Module): pass
class Flat(Frames): forward = lambda self, audio: audio[0]
class Pair(Frames): forward = lambda self, audio: (audio, audio)
"""


@pytest.mark.parametrize("name", ["Frames", "make"])
def test_a_torch_module_is_pooled_as_asked(name, hear_module):
    path, audio = hear_module(TORCH_MODULE), torch.rand(2, 900)
    frames = torch.stack(audio.split(100, dim=1)[:4], dim=1)[..., :3]
    for pool in ("mean", "meanstd"):
        embedder = load_embedder(f"{path}:{name}", pool=pool)
        assert (embedder.name, embedder.rate, embedder.pool) == (name, 8000, f"{pool} over time")
        torch.testing.assert_close(embedder.embed(audio), pool_tokens(frames, pool))
    torch.testing.assert_close(load_embedder(f"{path}:{name}", "w").embed(audio), 2 * frames.mean(1))


@pytest.mark.parametrize("name", ["Whole", "ready"])
def test_a_torch_module_may_pool_by_itself(name, hear_module, tmp_path, monkeypatch):
    hear_module(TORCH_MODULE)
    monkeypatch.chdir(tmp_path)
    embedder, audio = load_embedder(f"toy_hear:{name}"), torch.rand(2, 900)
    assert (embedder.rate, embedder.pool) == (16_000, "the model's own")
    assert torch.equal(embedder.embed(audio), audio[:, :5])
    with pytest.raises(ValueError, match="one embedding a clip by itself; leave pool out"):
        load_embedder(f"toy_hear:{name}", pool="mean")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Missing", "toy_hear.py:Missing: there is no such module, class or function"),
        ("number", "makes a int, not a torch.nn.Module"),
        ("Rateless", "sampling_rate is None; it must be a positive integer"),
        ("Flat", r"gave torch.float32 of shape \(8000,\) for 1 clips; give floating point \(clip, time, dim\)"),
        ("Pair", "gave tuple for 1 clips"),
    ],
)
def test_torch_modules_that_lack_something_are_told_what(name, words, hear_module):
    with pytest.raises(ValueError, match=words):
        load_embedder(f"{hear_module(TORCH_MODULE)}:{name}")


def test_specs_that_are_nothing_are_refused(hear_module, tmp_path):
    torch.save(TENSOR, tmp_path / "z.pt")
    for spec, error, words in (
        (tmp_path / "none.pt", FileNotFoundError, "no such checkpoint or Python module"),
        (tmp_path / "none.py", FileNotFoundError, "no such file"),
        ("no_such_module_here", FileNotFoundError, "no such checkpoint or Python module"),
        (tmp_path / "z.pt", ValueError, "not an encoder checkpoint.*holds a Tensor"),
    ):
        with pytest.raises(error, match=words):
            load_embedder(spec)
    with pytest.raises(ValueError, match="leave pool out"):
        load_embedder(hear_module(), pool="mean")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    save_encoder(Encoder(32, 1), tmp_path / "toy.pt")
    return tmp_path / "toy.pt"


@pytest.mark.parametrize(("pool", "dim"), [(None, 32), ("meanstd", 64)])
def test_a_checkpoint_is_pooled_over_time(checkpoint, pool, dim):
    torch.manual_seed(0)
    encoder, audio = Encoder(32, 1).eval(), torch.rand(3, 16_000) - 0.5
    embedder = load_embedder(checkpoint, pool=pool)
    z = embedder.embed(audio)
    assert z.shape == (3, dim) and embedder.rate == 16_000
    torch.testing.assert_close(z, pool_tokens(encoder(audio), pool or "mean").detach())
    with pytest.raises(ValueError, match="brings its own weights"):
        load_embedder(checkpoint, weights="other.pt")


# --- a folder of audio ------------------------------------------------------------------------------------


def write_tone(path, seconds, rate=16_000, hertz=440.0, gain=0.5):
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, gain * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate), rate, "FLOAT")


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_clips_come_at_the_rate_that_is_asked_for(rate, tmp_path):
    write_tone(tmp_path / "a" / "long.wav", 3.3, 44_100)
    write_tone(tmp_path / "a" / "short.wav", 0.7, 12_000)
    manifest = scan(tmp_path / "a", cache_dir=tmp_path, progress=False)
    clips = list(iter_clips(manifest, 1.0, rate=rate))
    assert [(clip.file, clip.offset_s) for clip in clips] == [
        ("long.wav", 0), ("long.wav", 1), ("long.wav", 2), ("short.wav", 0),
    ]  # fmt: skip
    time = np.arange(rate) / rate
    for clip in clips[:3]:
        np.testing.assert_allclose(clip.waveform[200:-200], 0.5 * np.sin(2 * np.pi * 440 * time)[200:-200], atol=2e-3)
    assert clips[3].waveform.shape == (rate,) and not clips[3].waveform[round(0.71 * rate) :].any()


def test_a_folder_becomes_a_matrix_with_remarks(hear_module, tmp_path):
    write_tone(tmp_path / "a" / "loud.wav", 2.5, gain=0.9)
    write_tone(tmp_path / "a" / "quiet.wav", 1.0, gain=0.1)
    write_tone(tmp_path / "a" / "short.wav", 0.5, 8000)
    write_tone(tmp_path / "a" / "zero.wav", 1.0, gain=0.0)
    (tmp_path / "a" / "text.wav").write_text("no sound")
    found = embed_folder(load_embedder(hear_module()), tmp_path / "a", 1.0, 3, tmp_path, progress=False)
    assert list(found.files) == ["loud.wav", "loud.wav", "quiet.wav", "short.wav"]
    rms = np.array([0.9, 0.9, 0.1]) / np.sqrt(2)
    np.testing.assert_allclose(found.z[:3], np.repeat(rms[:, None], 3, axis=1), rtol=0.02)
    refused, padded, narrow = found.remarks
    assert refused.startswith("2 of 5 files gave no clips: text.wav: not an audio file")
    assert "zero.wav: silent" in refused
    assert padded == "1 of 5 files are shorter than a clip of 1 s and were extended with silence: short.wav"
    assert narrow.startswith("1 of 5 files have a lower sample rate than the encoder's 16000 Hz") and "short" in narrow


def test_folders_without_sound_and_models_that_break_are_told(hear_module, tmp_path):
    embedder = load_embedder(hear_module())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        embed_folder(embedder, tmp_path / "none", cache_dir=tmp_path, progress=False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"no clip to embed\n1 of 1 files gave no clips: text.wav"):
        embed_folder(embedder, tmp_path / "a", cache_dir=tmp_path, progress=False)
    write_tone(tmp_path / "a" / "tone.wav", 2.0)
    broken = load_embedder(hear_module(numpy_model("np.full((len(audio), 3), np.nan)"), name="broken"))
    with pytest.raises(ValueError, match=r"broken.py: gives NaN or infinity for tone.wav, clip at 0.00 s"):
        embed_folder(broken, tmp_path / "a", 1.0, cache_dir=tmp_path, progress=False)


def test_awkward_audio_is_embedded_or_reported(checkpoint, awkward_audio, tmp_path):
    found = embed_folder(load_embedder(checkpoint), awkward_audio, 2.0, cache_dir=tmp_path, progress=False)
    assert np.isfinite(found.z).all() and len(found.z) == len(found.files)
    names = {entry["file"] for entry in json.loads((awkward_audio / "manifest.json").read_text())["files"]}
    assert set(found.files) <= names
    assert any("gave no clips" in remark for remark in found.remarks)
