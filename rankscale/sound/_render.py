"""What the three families of sources share: a time grid, oscillators, filters, struck objects.

Curves live on control points 5 ms apart and are interpolated linearly. Frequencies stay float64 up to the phase
at each control point (a float32 phase would be wrong by whole radians after a few seconds); samples are float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from rankscale.config import SAMPLE_RATE
from rankscale.sound._draw import Table, hash_noise, hash_uniform

CONTROL = 80  # samples between control points
BLOCK = 160  # samples between the filter's frames: two control points
N_FFT = 512  # of the filter: frames of 320 samples, room for impulse responses of 192 more
TOP_HZ = 7800.0  # no oscillator above this

EVENTS_PER_S, EVENT_COLUMNS = 20, 6  # uniform numbers that a source may spend on its events
N_FACTORS = 24  # and on its factors


def count_events(clip_s: float) -> int:
    """Rows of a source's event table: enough for EVENTS_PER_S from half a second before the clip to its end."""
    return math.ceil((clip_s + 0.5) * EVENTS_PER_S) + 4


@dataclass(frozen=True)
class Rows:
    """Sources that are rendered together, one per row: factors, events, noise keys and the time grid.

    table: factors, each (row,). event: uniform numbers (row, event, EVENT_COLUMNS) in (0, 1).
    key: int32 noise keys (row, 2) on the device. sample: samples of a clip.
    """

    table: Table
    event: np.ndarray
    key: Tensor
    sample: int

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, name: str) -> Tensor:
        """A factor as a float32 column (row, 1)."""
        return self.put(self.table[name])[:, None]

    def pick(self, rows: np.ndarray) -> Rows:
        """Some of the rows, in a new order."""
        table = {name: values[rows] for name, values in self.table.items()}
        return Rows(table, self.event[rows], self.key[torch.from_numpy(rows).to(self.device)], self.sample)

    @property
    def device(self) -> torch.device:
        return self.key.device

    @property
    def clip_s(self) -> float:
        return self.sample / SAMPLE_RATE

    @property
    def frames(self) -> int:
        return 2 * math.ceil(self.sample / BLOCK) + 1

    @cached_property
    def t(self) -> Tensor:
        """Times of the control points in seconds, float64 (frame,)."""
        return torch.arange(self.frames, dtype=torch.float64, device=self.device) * (CONTROL / SAMPLE_RATE)

    def put(self, values: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        """A NumPy array on the rows' device."""
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=self.device)

    def put64(self, name: str) -> Tensor:
        """A factor as a float64 column (row, 1): for frequencies and times."""
        return self.put(self.table[name], torch.float64)[:, None]

    def salted(self, salt: int) -> Tensor:
        """Noise keys for an independent noise of the same rows."""
        shift = (0x3C6EF35F * salt + (1 << 31)) % (1 << 32) - (1 << 31)  # wrapped to a signed 32-bit number
        return self.key + shift

    def noise(self, salt: int = 0, count: int | None = None) -> Tensor:
        """White noise of variance 1 (row, sample), or `count` values a row."""
        return hash_noise(self.salted(salt), count or self.sample)

    def wander(self, rate_hz: Tensor | float, salt: int = 0) -> Tensor:
        """A smooth random curve in [-1, 1] around `rate_hz`: three sines at unrelated rates, float64 (row, frame)."""
        u = hash_uniform(self.salted(100 + salt), 6).double()
        curve = torch.zeros(len(self), self.frames, dtype=torch.float64, device=self.device)
        for i, ratio in enumerate((0.43, 1.0, 1.9)):
            cycle = rate_hz * ratio * (0.8 + 0.4 * u[:, i : i + 1]) * self.t + u[:, i + 3 : i + 4]
            curve += torch.sin(2 * math.pi * cycle) / 3
        return curve


# --- curves -------------------------------------------------------------------------------------------------


def upsample(curve: Tensor, sample: int) -> Tensor:
    """Linear interpolation of control points: (..., frame) -> float32 (..., sample)."""
    curve = curve.float()
    ramp = torch.arange(CONTROL, device=curve.device) / CONTROL
    return torch.addcmul(curve[..., :-1, None], curve.diff()[..., None], ramp).flatten(-2)[..., :sample]


def smooth(curve: Tensor, points: int) -> Tensor:
    """Weighted mean over `points` (odd) neighbouring control points, Hann window; edges are repeated."""
    window = np.hanning(points + 2)[1:-1]
    half = points // 2
    first, last = curve[..., :1], curve[..., -1:]
    padded = torch.cat([*[first] * half, curve, *[last] * half], -1)
    total = torch.zeros_like(curve)
    for i, weight in enumerate((window / window.sum()).tolist()):
        total.add_(padded[..., i : i + curve.shape[-1]], alpha=weight)
    return total


def line_up(length: np.ndarray) -> np.ndarray:
    """Onsets of things that follow each other from 0: (row, event) lengths of 0 or more -> never descending."""
    return np.cumsum(np.pad(length, ((0, 0), (1, 0))), 1)[:, :-1]


def locate(rows: Rows, onset: np.ndarray) -> tuple[Tensor, Tensor]:
    """Which event is on at each control point: its number (row, frame) and the seconds since its onset.

    onset: seconds, ascending, (row, event). Before the first onset the number is 0 and the time is negative.
    """
    start = rows.put(onset, torch.float64).contiguous()
    number = torch.searchsorted(start, rows.t.expand(len(rows), -1).contiguous(), right=True) - 1
    number = number.clamp_(min=0)
    return number, rows.t - start.gather(1, number)


def each(rows: Rows, values: np.ndarray, number: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A value per event (row, event) -> the value of the event that is on at each control point (row, frame)."""
    return rows.put(values, dtype).gather(1, number)


# --- oscillators --------------------------------------------------------------------------------------------


def advance(hz: Tensor, sample: int, turn: float = 1.0) -> Tensor:
    """Phase, up to whole cycles, of a frequency curve: float64 (row, frame) -> float32 (row, sample).

    turn: what a cycle counts, 1 or 2 pi.
    """
    step = hz.double() / SAMPLE_RATE
    left, slope = step[..., :-1], step.diff()
    gain = (left + slope / 2) * CONTROL
    start = gain.cumsum(-1) - gain
    start, left, slope = (((start - start.floor()) * turn).float(), (left * turn).float(), (slope * turn).float())
    m = torch.arange(CONTROL, dtype=torch.float32, device=hz.device)
    phase = torch.addcmul(start[..., None], left[..., None], m)
    return phase.addcmul_(slope[..., None], m * m / (2 * CONTROL)).flatten(-2)[..., :sample]


def tone(hz: Tensor, amp: Tensor, sample: int, modulation: Tensor | None = None) -> Tensor:
    """A sine of frequency and amplitude curves (row, frame) -> (row, sample), silent above TOP_HZ.

    modulation: radians added to the phase, (row, sample).
    """
    phase = advance(hz, sample, 2 * math.pi)
    if modulation is not None:
        phase = phase + modulation
    amp = amp.float() * ((TOP_HZ - hz) / 300).clamp(0, 1).float()
    return phase.sin_().mul_(upsample(amp, sample))


def pulses(hz: Tensor, rolloff_hz: Tensor, sample: int) -> Tensor:
    """A train of sharp pulses, one a period: sum over h of r**h sin(h x), r = exp(-hz / rolloff_hz), in closed form.

    The h-th harmonic falls by 8.7 dB per rolloff_hz, so that hardly anything is left to alias.
    """
    half = advance(hz, sample, 2 * math.pi)  # x / 2 is taken modulo pi, which leaves s * c and s * s as they are
    half.mul_(0.5)
    r = upsample(torch.exp(-hz / rolloff_hz), sample)
    s, c = half.sin(), half.cos_()
    # 1 - 2 r cos x + r**2 = (1 - r)**2 + 4 r s**2, without cancellation near x = 0
    c.mul_(s).mul_(r).mul_(2)
    s.square_().mul_(r).mul_(4).add_(r.neg_().add_(1).square_())
    return c.div_(s)


# --- filters ------------------------------------------------------------------------------------------------


def bin_hz(n_fft: int, device: torch.device) -> Tensor:
    """Frequencies of rfft's bins in Hz, never below 20 (so that logarithms and tilts are finite)."""
    return torch.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE, device=device).clamp_(min=20.0)


def band(f: Tensor, centre_hz: Tensor, octaves: Tensor | float) -> Tensor:
    """Gain of a bell in log frequency; `octaves` is its standard deviation."""
    return torch.exp(-0.5 * (torch.log2(f / centre_hz) / octaves) ** 2)


def tilt(f: Tensor, db_per_octave: Tensor | float) -> Tensor:
    """Gain of a spectral slope, 1 at 1 kHz."""
    return torch.exp2(torch.log2(f / 1000) * db_per_octave / 6.02)


def to_frames(x: Tensor) -> Tensor:
    """Spectra (row, block, bin) of half-overlapping Hann frames centred on every second control point."""
    count = math.ceil(x.shape[-1] / BLOCK) + 1
    padded = torch.nn.functional.pad(x, (BLOCK, count * BLOCK - x.shape[-1]))
    window = torch.hann_window(2 * BLOCK, device=x.device)
    return torch.fft.rfft(padded.unfold(-1, 2 * BLOCK, BLOCK) * window, n=N_FFT)


def from_frames(spectra: Tensor, sample: int) -> Tensor:
    """Overlap-add of filtered frames, inverse of `to_frames`: (row, block, bin) -> (row, sample)."""
    segments, count, parts = torch.fft.irfft(spectra, n=N_FFT), spectra.shape[1], math.ceil(N_FFT / BLOCK)
    total = segments.new_zeros(len(segments), count + parts - 1, BLOCK)
    for i in range(parts):
        part = segments[..., i * BLOCK : (i + 1) * BLOCK]
        total[:, i : i + count, : part.shape[-1]] += part
    return total.flatten(1)[:, BLOCK : BLOCK + sample]


def filter_noise(noise: Tensor, gain: Tensor) -> Tensor:
    """Noise through a changing spectrum: gain (row, block, bin) -> (row, sample)."""
    return from_frames(to_frames(noise).mul_(gain), noise.shape[-1])


def colour_noise(key: Tensor, gain: Tensor, sample: int) -> Tensor:
    """Steady noise with a given spectrum: gain (row, bin of `noise_hz`) -> (row, sample).

    Made as random Fourier coefficients, which are what white noise has.
    """
    coefficients = torch.view_as_complex(hash_noise(key, 2 * gain.shape[-1]).unflatten(-1, (-1, 2)))
    return torch.fft.irfft(coefficients.mul_(gain), n=2 * (gain.shape[-1] - 1))[..., :sample]


def shape(x: Tensor, gain: Tensor) -> Tensor:
    """Sound through a smooth fixed spectrum: gain (row, bin of `noise_hz`); what leaves the end enters the start."""
    n_fft = 2 * (gain.shape[-1] - 1)
    return torch.fft.irfft(torch.fft.rfft(x, n=n_fft).mul_(gain), n=n_fft)[..., : x.shape[-1]]


def noise_hz(sample: int, device: torch.device) -> Tensor:
    """Frequencies of `colour_noise`'s bins."""
    return bin_hz(2 * next_fast_len(math.ceil(sample / 2), real=True), device)


def resonance(centre_hz: Tensor, width_hz: Tensor) -> Tensor:
    """Response of a cascade of resonators: (row, block, resonator) in Hz -> complex (row, block, bin).

    Each resonator has gain 1 at 0 Hz and centre / width at its centre: the all-pole model of a vocal tract. Its
    denominator is a polynomial in i x frequency with real coefficients, so one small matrix product evaluates it at
    all bins; use at most five at once, for float32's sake.
    """
    unit = 4000.0  # Hz: keeps the powers near 1
    linear, square = unit * width_hz / centre_hz**2, (unit / centre_hz) ** 2
    power = torch.ones_like(linear[..., :1])
    for k in range(centre_hz.shape[-1]):  # times 1 + linear s + square s**2
        once, twice, power = (torch.nn.functional.pad(power, (i, 2 - i)) for i in (1, 2, 0))
        power = power + linear[..., k : k + 1] * once + square[..., k : k + 1] * twice
    s = (1j * bin_hz(N_FFT, power.device) / unit) ** torch.arange(power.shape[-1], device=power.device)[:, None]
    denominator = (power @ torch.view_as_real(s).flatten(1)).unflatten(-1, (-1, 2))
    return torch.view_as_complex(denominator).reciprocal_()  # far quicker than a complex division


def convolve(x: Tensor, ir: Tensor, sample: int) -> Tensor:
    """Sum over variants of x * ir: (row, variant, a), (row, variant, b) -> (row, sample)."""
    n_fft = next_fast_len(min(sample, x.shape[-1]) + ir.shape[-1], real=True)
    spectrum = (torch.fft.rfft(x, n=n_fft) * torch.fft.rfft(ir, n=n_fft)).sum(1)
    return torch.fft.irfft(spectrum, n=n_fft)[..., :sample]


# --- struck things ------------------------------------------------------------------------------------------


def strike(rows: Rows, onset: np.ndarray, amp: np.ndarray, ir: Tensor) -> Tensor:
    """Impulse responses set off at given times: onset (s) and amp (row, variant, event), ir (row, variant, length)."""
    at = np.rint(onset * SAMPLE_RATE).astype(np.int64)
    heard = (at >= 0) & (at < rows.sample)
    train = ir.new_zeros(len(rows), ir.shape[1], rows.sample)
    train.scatter_add_(2, rows.put(np.where(heard, at, 0), torch.int64), rows.put(amp * heard))
    return convolve(train, ir, rows.sample)


def shower(rows: Rows, rate_hz: Tensor, exponent: Tensor | float, ir: Tensor) -> Tensor:
    """Impulse responses set off at random, `rate_hz` (row, 1) times a second, with heavy-tailed loudness.

    An impulse's amplitude is u ** -exponent, at most 30: 0 makes all alike, 0.5 a few that stand out.
    ir: (row, variant, length); variants take turns at random.
    """
    trains = []
    for variant in range(ir.shape[1]):
        u = hash_uniform(rows.salted(10 + variant), rows.sample)
        share = rate_hz / (SAMPLE_RATE * ir.shape[1])
        size = (u / share).clamp(1e-6, 1).pow(-exponent).clamp_(max=30)
        trains.append(torch.where(u < share, size, 0.0))
    return convolve(torch.stack(trains, 1), ir, rows.sample)


def decay(length: int, decay_s: Tensor) -> Tensor:
    """Exponential decay to 1/1000 within decay_s: (..., 1) -> (..., length)."""
    t = torch.arange(length, device=decay_s.device) / SAMPLE_RATE
    return torch.exp(-6.91 * t / decay_s)


def modes(hz: Tensor, decay_s: Tensor, amp: Tensor, length: int) -> Tensor:
    """Damped sines, summed: each (row, mode) -> impulse response (row, length)."""
    t = torch.arange(length, dtype=torch.float64, device=hz.device) / SAMPLE_RATE
    phase = hz.double()[..., None] * t
    phase = (phase - phase.floor()).float()
    audible = amp * (hz < TOP_HZ)
    return (torch.sin(2 * math.pi * phase) * decay(length, decay_s[..., None]) * audible[..., None]).sum(1)


def burst(key: Tensor, length: int, centre_hz: Tensor, octaves: Tensor | float, decay_s: Tensor) -> Tensor:
    """A decaying burst of band noise with unit peak spectrum: (row, 1) parameters -> impulse response (row, length)."""
    spectrum = torch.fft.rfft(hash_noise(key, length)) * band(bin_hz(length, key.device), centre_hz, octaves)
    return torch.fft.irfft(spectrum, n=length) * decay(length, decay_s)


def normalise(x: Tensor) -> Tensor:
    """Scale rows to an RMS of 1; a silent row stays silent."""
    return x / x.square().mean(-1, keepdim=True).sqrt().clamp_(min=1e-6)
