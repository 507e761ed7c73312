"""HEAR's functions and X-ARES's encoder: their contracts, in our words and, where installed, in theirs."""

import sys
import types

import pytest
import torch

from rankscale import hear, mae
from rankscale.embed import load_embedder, pool_tokens
from rankscale.mel import LogMel, mel_stats


def noise(clips, seconds, seed=0):
    return torch.rand(clips, round(16_000 * seconds), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def save(path, **shape):
    torch.manual_seed(0)
    encoder = mae.Encoder(**({"width": 32, "depth": 1} | shape))
    encoder.set_input_stats(mel_stats([LogMel()(0.1 * noise(4, 1.28))]))
    mae.save_encoder(encoder, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hear") / "toy.pt")


@pytest.fixture(scope="module")
def model(checkpoint):
    return hear.load_model(checkpoint)


# --- the contract -----------------------------------------------------------------------------------------


def test_a_model_says_what_hear_and_xares_ask_for(model):
    assert isinstance(model, torch.nn.Module) and type(model).__name__.endswith("Encoder")
    assert (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size) == (16_000, 32, 32)
    assert (model.sampling_rate, model.output_dim, model.hop_size_in_ms) == (16_000, 32, 40)


@pytest.mark.parametrize("seconds", [0.001, 0.1, 0.5, 1.28, 3.74, 29.999, 30.5, 61])
def test_embeddings_of_any_length_are_those_of_the_encoder(seconds, model):
    audio = noise(2, seconds)
    frames, timestamps = hear.get_timestamp_embeddings(audio, model)
    scenes = hear.get_scene_embeddings(audio, model)
    with torch.no_grad():
        expected = model.net(audio)
    assert frames.dtype == scenes.dtype == torch.float32 and timestamps.shape == frames.shape[:2]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scenes, pool_tokens(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(model(audio), frames)
    assert not frames.requires_grad and frames.std() > 0.1


@pytest.mark.parametrize(("patch_frames", "hop_ms"), [(1, 10), (4, 40), (5, 50), (6, 30), (16, 40), (13, 32.5)])
def test_timestamps_are_even_and_at_most_50_ms_apart(patch_frames, hop_ms, tmp_path):
    model = hear.load_model(save(tmp_path / "toy.pt", patch_frames=patch_frames))
    frames, timestamps = hear.get_timestamp_embeddings(noise(2, 2.0), model)
    assert model.hop_size_in_ms == hop_ms
    assert (timestamps.diff(dim=1) == hop_ms).all() and frames.shape[:2] == timestamps.shape
    assert timestamps.min() >= 0 and timestamps.max() <= 2000
    repeats = round(10 * patch_frames / hop_ms)
    assert torch.equal(frames[:, ::repeats], frames[:, repeats - 1 :: repeats])


def test_a_click_lies_under_its_timestamp(model):
    audio = torch.zeros(1, 32_000)
    _, timestamps = hear.get_timestamp_embeddings(audio, model)
    for at_ms in (35, 655, 1975):  # the middles of frames
        clicked = audio.clone()
        clicked[0, 16 * at_ms] = 1.0
        change = (model.net.front_end(clicked) - model.net.front_end(audio)).abs().sum(1)[0, :200].reshape(50, 4).sum(1)
        nearest = (timestamps[0] - at_ms).abs().argmin()
        assert change.argmax() == nearest


def test_neighbours_change_nothing(model):
    audio = noise(5, 1.3)
    audio[0] *= 1e-4
    together = hear.get_scene_embeddings(audio, model)
    frames, _ = hear.get_timestamp_embeddings(audio, model)
    for clip in range(5):
        alone = audio[clip : clip + 1]
        torch.testing.assert_close(hear.get_scene_embeddings(alone, model)[0], together[clip], atol=1e-5, rtol=0)
        torch.testing.assert_close(hear.get_timestamp_embeddings(alone, model)[0][0], frames[clip], atol=1e-5, rtol=0)


def test_ten_minutes_pass_in_pieces(model, monkeypatch):
    """Neither the transform nor the encoder may see more at once than of a short clip."""
    seen = {"samples": 0, "tokens": 0}
    transform, encode = type(model.net.front_end[0]).forward, mae.Encoder.encode

    def watch_transform(self, waveform):
        seen["samples"] = max(seen["samples"], waveform.numel())
        return transform(self, waveform)

    def watch_encode(self, x, layers=False):
        seen["tokens"] = max(seen["tokens"], x.shape[0] * x.shape[1])
        return encode(self, x, layers)

    monkeypatch.setattr(type(model.net.front_end[0]), "forward", watch_transform)
    monkeypatch.setattr(mae.Encoder, "encode", watch_encode)
    frames, timestamps = hear.get_timestamp_embeddings(noise(1, 600), model)
    assert frames.shape == (1, 15_000, 32) and timestamps[0, -1] == 15 + 40 * 14_999
    assert (timestamps.diff() == 40).all()
    assert seen["tokens"] <= hear.BLOCK_TOKENS and seen["samples"] <= 31 * 16_000
    many = hear.get_scene_embeddings(noise(200, 1.28), model)
    assert many.shape == (200, 32) and seen["tokens"] <= hear.BLOCK_TOKENS


def test_a_quiet_start_keeps_the_floor_of_its_whole_clip(model):
    """The decibel floor hangs on the loudest moment, which may come minutes later."""
    audio = 1e-6 * noise(1, 40)
    audio[:, -8000:] = noise(1, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(model(audio), model.net(audio), atol=1e-5, rtol=0)


BAD = {
    "one dimension": (lambda: torch.zeros(100), r"shape \(100,\): give \(n_clip, n_sample\)"),
    "no samples": (lambda: torch.zeros(2, 0), r"shape \(2, 0\)"),
    "no clips": (lambda: torch.zeros(0, 100), r"shape \(0, 100\)"),
    "integers": (lambda: torch.zeros(1, 100, dtype=torch.int16), "int16: give a floating-point tensor"),
    "an array": (lambda: torch.zeros(1, 100).numpy(), "ndarray: give a floating-point tensor"),
    "NaN": (lambda: torch.where(torch.arange(3)[:, None] == 1, torch.nan, noise(3, 0.1)), "clip 1 .*NaN"),
    "infinity": (lambda: torch.full((1, 100), -torch.inf), "clip 0 .*infinity"),
    "counts": (lambda: 20_000 * noise(1, 0.1), "divide 16-bit counts"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_audio_is_refused_in_words(case, model):
    make, words = BAD[case]
    for embed in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(ValueError, match=words):
            embed(make(), model)
    with pytest.raises(ValueError, match=words):
        model(make())


def test_another_rate_is_refused(model):
    for embed in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(ValueError, match="audio at 44100 Hz: the encoder hears 16000 Hz, resample"):
            embed(noise(1, 0.1), model, sample_rate=44_100)


def test_other_types_become_float32(model):
    audio = noise(2, 0.5)
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio.double(), model), hear.get_scene_embeddings(audio, model)
    )


# --- which encoder ----------------------------------------------------------------------------------------


def test_the_environment_names_the_checkpoint(checkpoint, model, monkeypatch):
    monkeypatch.setenv(hear.CHECKPOINT, str(checkpoint))
    torch.testing.assert_close(hear.load_model()(noise(1, 1)), model(noise(1, 1)))
    assert hear.Encoder().output_dim == 32


def test_without_a_checkpoint_the_untrained_floor_answers_and_says_so(monkeypatch):
    monkeypatch.delenv(hear.CHECKPOINT, raising=False)
    with pytest.warns(UserWarning, match="RANKSCALE_ENCODER .*untrained"):
        model = hear.load_model()
    frames = model(noise(2, 1.28))
    assert frames.shape == (2, 32, 64) and 0.5 < frames.std() < 2


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no encoder")
    with pytest.raises(ValueError, match=r"text\.pt: not an encoder checkpoint"):
        hear.load_model(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError):
        hear.load_model(tmp_path / "none.pt")


def test_a_checkpoint_and_its_hear_form_are_the_same_embedder(checkpoint):
    as_module = load_embedder("rankscale.hear", weights=str(checkpoint))
    torch.testing.assert_close(as_module.embed(noise(3, 1)), load_embedder(checkpoint).embed(noise(3, 1)))


# --- the outside validators -------------------------------------------------------------------------------


def test_hear_validator_says_looks_good(checkpoint, monkeypatch, capsys):
    if "tensorflow" not in sys.modules:  # the validator imports it to tell such models from ours
        stub = types.ModuleType("tensorflow")
        stub.Module = type("Module", (), {})
        monkeypatch.setitem(sys.modules, "tensorflow", stub)
    validate = pytest.importorskip("hearvalidator.validate")
    monkeypatch.setattr(sys, "argv", ["hear-validator", "rankscale.hear", "-m", str(checkpoint), "-d", "cpu"])
    validate.main()
    printed = capsys.readouterr().out
    assert "Interval between timestamps is 40.0ms" in printed and "Looks good!" in printed


def test_xares_accepts_the_encoder(checkpoint, monkeypatch):
    checker = pytest.importorskip("xares.audio_encoder_checker")
    utils = pytest.importorskip("xares.utils")
    monkeypatch.setenv(hear.CHECKPOINT, str(checkpoint))
    encoder = utils.attr_from_py_path("rankscale/hear.py", endswith="Encoder")()
    assert isinstance(encoder, hear.Encoder) and checker.check_audio_encoder(encoder)


def test_xares_finds_one_encoder_in_the_module():
    """It takes the only name that ends so, and refuses a module with two."""
    assert [name for name in dir(hear) if name.endswith("Encoder")] == ["Encoder"]
    assert hear.Encoder.__module__ == "rankscale.hear"
