"""The log-Mel front end: shapes, a floor for each clip by itself, statistics, and a rough inverse."""

import math

import pytest
import torch
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from rankscale.mel import LogMel, invert, mel_stats

torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def log_mel() -> LogMel:
    return LogMel()


@pytest.mark.parametrize("samples", [1, 100, 256, 257, 479, 480, 20_480, 161_279])
def test_frames_are_one_more_than_whole_hops(log_mel, samples):
    mel = log_mel(0.1 * noise(2, samples))
    assert mel.shape == (2, 64, samples // 160 + 1)
    assert mel.dtype == torch.float32 and mel.isfinite().all()


def test_one_clip_is_what_torchaudio_gives(log_mel):
    waveform = 0.1 * noise(1, 20_480)
    mel = MelSpectrogram(16_000, n_fft=512, win_length=512, hop_length=160, f_min=0, f_max=8000, n_mels=64)
    expected = AmplitudeToDB("power", top_db=120)(mel(waveform))
    torch.testing.assert_close(log_mel(waveform), expected, atol=1e-5, rtol=0)


def test_a_tone_lights_the_band_of_its_frequency(log_mel):
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)
    loudest = log_mel(tone[None])[0].mean(1).argmax().item()
    top = 2595 * math.log10(1 + 8000 / 700)  # HTK Mel scale, 66 edges for 64 bands
    assert abs(loudest + 1 - 2595 * math.log10(1 + 1000 / 700) / top * 65) <= 1


def loud_and_quiet() -> torch.Tensor:
    """A loud clip and one that fades far below it: the first's maximum lifts the floor of the second."""
    loud = torch.sin(2 * math.pi * 440 * torch.arange(20_480) / 16_000)
    quiet = 1e-6 * noise(20_480)
    return torch.stack([loud, quiet])


def test_a_clip_does_not_depend_on_its_neighbours(log_mel):
    clips = loud_and_quiet()
    torch.testing.assert_close(log_mel(clips)[1], log_mel(clips[1:])[0], atol=1e-5, rtol=0)


def test_dasheng_clip_does_depend_on_its_neighbours():
    models = pytest.importorskip("dasheng.train.models")
    front_end = models.AudioTransformerMAE_Encoder(embed_dim=32, depth=1, num_heads=1).front_end
    clips = loud_and_quiet()
    moved = (front_end(clips)[1] - front_end(clips[1:])[0]).abs().max()
    assert moved > 10  # dB: the loud neighbour hides the quiet clip


def test_floor_is_120_db_below_the_clips_own_maximum(log_mel):
    tone = torch.sin(2 * math.pi * 440 * torch.arange(16_000) / 16_000)
    waveform = torch.cat([tone, torch.zeros(16_000)])[None]
    mel = log_mel(waveform)
    assert mel.max() > 25  # so that -100 dB, what silence is, lies under the floor
    torch.testing.assert_close(mel.min(), mel.max() - 120)


def test_silence_is_minus_100_db(log_mel):
    torch.testing.assert_close(log_mel(torch.zeros(1, 1600)), torch.full((1, 64, 11), -100.0))


def test_autocast_does_not_lower_precision(log_mel):
    waveform = 0.1 * noise(2, 20_480)
    with torch.autocast("cpu", torch.bfloat16):
        mel = log_mel(waveform)
    torch.testing.assert_close(mel, log_mel(waveform), atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(100,), (0, 100), (2, 0), (1, 2, 100)])
def test_bad_waveform_shapes_are_named(log_mel, shape):
    with pytest.raises(ValueError, match="batch, sample"):
        log_mel(torch.zeros(shape))


def test_statistics_of_a_stream_are_those_of_all_frames():
    blocks = [noise(3, 64, 20) * 10 - 40, noise(64, 7, seed=1) * 3 - 60, noise(1, 64, 1, seed=2)]
    stats = mel_stats(iter(blocks))
    frames = torch.cat([block.transpose(-2, -1).reshape(-1, 64) for block in blocks])
    torch.testing.assert_close(stats.mean, frames.mean(0))
    torch.testing.assert_close(stats.std, frames.std(0, correction=0))


def test_statistics_keep_small_deviations_on_large_means():
    mel = noise(200, 64, 50) * 1e-3 - 1000
    torch.testing.assert_close(mel_stats([mel]).std, mel.double().std((0, 2)).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("blocks", "match"),
    [
        ([], "empty"),
        ([torch.zeros(1, 63, 5)], "block 0"),
        ([torch.zeros(1, 64, 5), torch.full((1, 64, 5), math.nan)], "block 1"),
    ],
)
def test_bad_streams_are_named(blocks, match):
    with pytest.raises(ValueError, match=match):
        mel_stats(blocks)


def chord() -> torch.Tensor:
    t = torch.arange(20_480) / 16_000
    tones = sum(torch.sin(2 * math.pi * f * t) for f in (330, 950, 2700))
    return (0.2 * tones * torch.exp(-2 * t) + 0.003 * noise(20_480))[None]


def test_inverse_sounds_like_its_mel(log_mel):
    mel = log_mel(chord())[0]
    waveform = invert(mel)
    assert waveform.shape == (20_480,) and waveform.dtype == torch.float32 and waveform.abs().max() <= 1
    again = log_mel(waveform[None])[0]
    silent = (mel - log_mel(torch.zeros(1, 20_480))[0]).abs().mean()
    assert (mel - again).abs().mean() < 0.1 * silent
    assert torch.corrcoef(torch.stack([mel.flatten(), again.flatten()]))[0, 1] > 0.9


def test_inverse_repeats_and_leaves_the_global_generator_alone(log_mel):
    mel = log_mel(chord())[0]
    torch.manual_seed(3)
    first = invert(mel, iterations=4, seed=1)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first, invert(mel, iterations=4, seed=1))
    assert not torch.equal(first, invert(mel, iterations=4, seed=2))


def test_inverse_of_loud_mel_stays_in_range(log_mel):
    waveform = invert(log_mel(chord())[0] + 40, iterations=4)
    torch.testing.assert_close(waveform.abs().max(), torch.tensor(1.0))


def test_inverse_refuses_other_shapes():
    with pytest.raises(ValueError, match="64, frame"):
        invert(torch.zeros(1, 64, 10))
