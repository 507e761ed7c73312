"""Log-Mel front end: waveform in, decibels out, and no clip sees its batch neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import griffinlim
from torchaudio.transforms import MelSpectrogram

from rankscale.config import BANDS, HOP, SAMPLE_RATE

WINDOW = 512  # samples of a frame, and of its Fourier transform
LOWEST_POWER = 1e-10  # -100 dB: what digital silence becomes
TOP_DB = 120.0  # dynamic range kept below a clip's own maximum
BLOCK_SAMPLES = 160_000  # on a CPU, transforms of larger blocks fall out of the cache and run slower


class PerClipDecibel(nn.Module):
    """Power to decibels, with a floor `top_db` below the maximum of *each clip*.

    torchaudio's AmplitudeToDB takes one maximum over a whole (batch, band, frame) tensor, so that a loud
    neighbour changes a quiet clip. Dasheng uses it; a single clip gives the same values here and there.
    """

    def __init__(self, top_db: float = TOP_DB):
        super().__init__()
        self.top_db = top_db

    def forward(self, power: Tensor) -> Tensor:
        mel = 10 * power.clamp(min=LOWEST_POWER).log10()
        return mel.maximum(mel.amax(dim=(-2, -1), keepdim=True) - self.top_db)


class LogMel(nn.Sequential):
    """Dasheng's front end: 64 HTK Mel bands up to 8 kHz of a 512-sample window every 10 ms, in dB.

    forward: waveform (batch, sample), 16 kHz, in [-1, 1] -> mel (batch, 64, sample // 160 + 1), float32.
    Frames are centred; the ends are mirrored. Clips under 257 samples are extended with silence first.
    Raises ValueError on another shape or an empty waveform.
    """

    def __init__(self):
        mel = MelSpectrogram(
            sample_rate=SAMPLE_RATE, n_fft=WINDOW, win_length=WINDOW, hop_length=HOP,
            f_min=0, f_max=SAMPLE_RATE / 2, n_mels=BANDS, power=2,
        )  # fmt: skip
        super().__init__(mel, PerClipDecibel())

    def forward(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 2 or not waveform.numel():
            raise ValueError(f"waveform of shape {tuple(waveform.shape)}: give (batch, sample), neither empty")
        frames = waveform.shape[1] // HOP + 1
        waveform = F.pad(waveform.float(), (0, max(0, WINDOW // 2 + 1 - waveform.shape[1])))

        # Half precision would overflow in the power spectrum, whatever the training precision.
        with torch.autocast(waveform.device.type, enabled=False):
            mels = [super(LogMel, self).forward(block) for block in waveform.split(self._block(waveform))]
        return torch.cat(mels)[..., :frames]

    def _block(self, waveform: Tensor) -> int:
        batch, samples = waveform.shape
        return batch if waveform.is_cuda else max(1, BLOCK_SAMPLES // samples)


@dataclass(frozen=True)
class MelStats:
    """Mean and standard deviation of each Mel band over frames and clips, in dB; float32 (64,) each."""

    mean: Tensor
    std: Tensor


def mel_stats(mels: Iterable[Tensor]) -> MelStats:
    """Per-band mean and standard deviation of a stream of log-Mel blocks, summed in float64.

    mels: blocks (batch, 64, frame) or (64, frame), of any lengths; read once.
    Raises ValueError on an empty stream, another number of bands, NaN or infinity.
    """
    count = 0
    total, square = torch.zeros(2, BANDS, dtype=torch.float64)
    for i, mel in enumerate(mels):
        if mel.ndim not in (2, 3) or mel.shape[-2] != BANDS or not mel.isfinite().all():
            raise ValueError(f"mel block {i} of shape {tuple(mel.shape)}: need finite (batch, {BANDS}, frame)")
        values = mel.transpose(-2, -1).reshape(-1, BANDS).double().cpu()
        count += len(values)
        total = total + values.sum(0)
        square = square + values.square().sum(0)

    if not count:
        raise ValueError("no log-Mel frames to take statistics of: the stream is empty")
    mean = total / count
    variance = (square / count - mean.square()).clamp(min=0)
    return MelStats(mean.float(), variance.sqrt().float())


def invert(mel: Tensor, iterations: int = 32, seed: int = 0) -> Tensor:
    """A waveform whose log-Mel is near `mel`, for listening: phases are guessed, fine pitch is lost.

    mel: (64, frame) in dB, at least 4 frames -> waveform ((frame - 1) * 160,), float32, in [-1, 1] (scaled
    down if it would be louder). The same seed gives the same sound and leaves torch's generators alone.
    Non-negative least squares by multiplicative updates (Lee & Seung 2001), then fast Griffin-Lim
    (Perraudin et al. 2013) with `iterations` rounds.
    """
    if mel.ndim != 2 or mel.shape[0] != BANDS or mel.shape[1] < 4:
        raise ValueError(f"mel of shape {tuple(mel.shape)}: give ({BANDS}, frame), at least 4 frames")
    front_end = LogMel()[0]
    power = _unmix_bands(10 ** (mel.float().cpu() / 10), front_end.mel_scale.fb)

    with torch.random.fork_rng(devices=[]):  # griffinlim draws its first phases from the global generator
        torch.manual_seed(seed)
        waveform = griffinlim(
            power, front_end.spectrogram.window, n_fft=WINDOW, hop_length=HOP, win_length=WINDOW, power=2.0,
            n_iter=iterations, momentum=0.99, length=None, rand_init=True,
        )  # fmt: skip
    return waveform / waveform.abs().max().clamp(min=1)


def _unmix_bands(bands: Tensor, filters: Tensor, rounds: int = 100) -> Tensor:
    """Power spectrum (bin, frame) >= 0 whose Mel bands are near `bands` (64, frame); filters (bin, 64)."""
    wanted = filters @ bands
    power = wanted / filters.sum(1, keepdim=True).clamp(min=1e-8)  # every bin: the mean of its bands
    for _ in range(rounds):
        power = power * wanted / (filters @ (filters.T @ power)).clamp(min=1e-20)
    return power
