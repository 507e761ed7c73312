"""Environmental sources: shaped noise, struck and crackling things, machines, alarms and animals.

Every kind is a function of the same few factors; `KINDS` gives the ranges that they take for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankscale.config import SAMPLE_RATE
from rankscale.sound._draw import Quantile, Table, lognormal, normal, uniform, zipf
from rankscale.sound._render import (
    N_FFT,
    Rows,
    band,
    bin_hz,
    burst,
    colour_noise,
    decay,
    each,
    filter_noise,
    from_frames,
    line_up,
    locate,
    modes,
    noise_hz,
    normalise,
    pulses,
    resonance,
    shower,
    smooth,
    strike,
    tilt,
    to_frames,
    tone,
    upsample,
)

# --- what the kinds are made of -----------------------------------------------------------------------------


def time_events(rows: Rows) -> np.ndarray:
    """Onsets in seconds (row, event), `rate_hz` a second: from a clock (irregular 0) to a Poisson process (1)."""
    rate, irregular = rows.table["rate_hz"][:, None], rows.table["irregular"][:, None]
    gap = ((1 - irregular) - irregular * np.log(rows.event[..., 0])) / rate
    gap = np.maximum(gap, 1 / 19)  # the event table lasts for the clip
    first = rows.event[:, :1, 1] * np.minimum(gap[:, :1], 0.6 * rows.clip_s)
    return first + line_up(gap)


def loudness(rows: Rows) -> np.ndarray:
    """Heavy-tailed amplitude of each event (row, event): `contrast` 0 makes all alike."""
    return rows.event[..., 2] ** -(0.5 * rows.table["contrast"][:, None]) / 3


def gate(rows: Rows, since: Tensor, length_s: Tensor, attack_s: float = 0.01) -> Tensor:
    """On from an event's onset for length_s, with short linear ramps; (row, frame)."""
    return (since.float() / attack_s).clamp(0, 1) * ((length_s - since.float()) / attack_s).clamp(0, 1)


def swell(rows: Rows, salt: int = 0) -> Tensor:
    """A positive random curve around `rate_hz`, `depth` strong; (row, frame)."""
    return torch.exp(2.5 * rows["depth"] * rows.wander(rows.put64("rate_hz"), salt).float())


def bins(rows: Rows) -> Tensor:
    return bin_hz(N_FFT, rows.device)


def column(rows: Rows, name: str) -> Tensor:
    """A factor as (row, 1, 1), to be spread over blocks and bins."""
    return rows[name][..., None]


def coloured(rows: Rows, salt: int = 0) -> Tensor:
    """Steady noise of the row's slope, rolled off under 60 Hz."""
    f = noise_hz(rows.sample, rows.device)
    return colour_noise(rows.salted(salt), tilt(f, rows["slope_db"]) * (f / (f + 60)), rows.sample)


def spread_modes(rows: Rows, count: int, salt: int) -> tuple[Tensor, Tensor, Tensor]:
    """Modes of a struck object: frequencies from `pitch_hz` up, decays that shorten with frequency, loudness."""
    u = rows.noise(salt, 2 * count).abs()
    step = torch.arange(count, device=rows.device)
    ratio = (1 + step * rows["texture"]) * (1 + 0.25 * u[:, :count] * (step > 0))
    decay_s = rows["decay_s"] / ratio**0.7
    return rows["pitch_hz"] * ratio, decay_s, (0.3 + u[:, count:]) * ratio**-0.5


def object_ir(rows: Rows, count: int = 8, salt: int = 20, longest_s: float = 0.7) -> Tensor:
    """Impulse response of a struck object with a click of noise; (row, length)."""
    length = min(rows.sample, round(longest_s * SAMPLE_RATE))
    click = burst(rows.salted(salt + 1), length, rows["pitch_hz"] * 2, 1.0, 0.02 + 0 * rows["pitch_hz"])
    return modes(*spread_modes(rows, count, salt), length) + 0.5 * click


# --- the kinds ----------------------------------------------------------------------------------------------


def wind(rows: Rows) -> Tensor:
    """Gusts: noise whose loudness and resonance wander together."""
    gust = rows.wander(rows.put64("rate_hz")).float()[:, ::2, None]
    centre = column(rows, "pitch_hz") * torch.exp2(1.2 * column(rows, "depth") * gust)
    colour = tilt(bins(rows), column(rows, "slope_db")) * 0.4 + 3 * band(bins(rows), centre, column(rows, "texture"))
    return filter_noise(rows.noise(), colour * torch.exp(2 * column(rows, "depth") * gust))


def rain(rows: Rows) -> Tensor:
    """A hiss with countless small drops and a few big ones."""
    length = min(rows.sample, 800)
    drops = torch.stack([burst(rows.salted(20 + i), length, rows["pitch_hz"] * r, 0.5, rows["decay_s"])
                         for i, r in enumerate((0.7, 1.3))], 1)  # fmt: skip
    fall = shower(rows, rows["rate_hz"], rows["contrast"], drops)
    return normalise(fall) + rows["texture"] * normalise(coloured(rows))


def surf(rows: Rows) -> Tensor:
    """Waves that build up and break: brighter when louder."""
    cycle = rows.put64("rate_hz") * rows.t + rows.put(rows.event[:, :1, 0], torch.float64)
    wave = (0.5 + 0.5 * torch.sin(2 * math.pi * cycle + 0.8 * torch.sin(2 * math.pi * cycle))).float()[:, ::2, None]
    slope = column(rows, "slope_db") + 6 * column(rows, "depth") * (wave - 0.5)
    return filter_noise(rows.noise(), tilt(bins(rows), slope) * (0.05 + wave**2))


def stream(rows: Rows) -> Tensor:
    """Bubbles: damped sines that rise in pitch, over a soft hiss."""
    length = min(rows.sample, 2400)
    t = torch.arange(length, device=rows.device, dtype=torch.float64) / SAMPLE_RATE
    irs = []
    for ratio in (0.55, 0.7, 0.9, 1.15, 1.5, 2.0):
        hz = rows.put64("pitch_hz") * ratio
        phase = hz * t + 3 * rows.put64("depth") * hz * t * t
        irs.append(torch.sin(2 * math.pi * (phase - phase.floor()).float()) * decay(length, rows["decay_s"] / ratio))
    bubbles = shower(rows, rows["rate_hz"], rows["contrast"], torch.stack(irs, 1))
    return normalise(bubbles) + rows["texture"] * normalise(coloured(rows))


def fire(rows: Rows) -> Tensor:
    """Crackle with a heavy tail of snaps over a rumble."""
    length = min(rows.sample, 600)
    snaps = torch.stack([burst(rows.salted(20 + i), length, rows["pitch_hz"] * r, 0.8, rows["decay_s"] * r)
                         for i, r in enumerate((0.6, 1.2))], 1)  # fmt: skip
    rumble = coloured(rows) * upsample(swell(rows), rows.sample)
    return normalise(shower(rows, 6 * rows["rate_hz"], rows["contrast"], snaps)) + rows["texture"] * normalise(rumble)


def applause(rows: Rows) -> Tensor:
    """Many hands: four kinds of clap at random times."""
    length = min(rows.sample, 1200)
    claps = [burst(rows.salted(20 + i), length, rows["pitch_hz"] * r, 0.35, rows["decay_s"])
             for i, r in enumerate((0.6, 0.85, 1.1, 1.5))]  # fmt: skip
    crowd = shower(rows, rows["rate_hz"], rows["contrast"], torch.stack(claps, 1))
    return crowd * upsample(swell(rows, 1) ** 0.2, rows.sample)


def thunder(rows: Rows) -> Tensor:
    """Claps of low noise that roll away."""
    since = locate(rows, time_events(rows))[1].float()
    rolling = torch.exp(-3 * since.clamp(min=0) / rows["decay_s"]) * (since / 0.02).clamp(0, 1) * swell(rows, 2)
    slope = column(rows, "slope_db") - 4 * (since.clamp(0, 2))[:, ::2, None]
    body = filter_noise(rows.noise(), tilt(bins(rows), slope) * (bins(rows) / (bins(rows) + 40)))
    return body * upsample(0.02 + rolling, rows.sample)


def impacts(rows: Rows) -> Tensor:
    """Something struck now and then: wood, glass or metal by its modes and decay."""
    return strike(rows, time_events(rows)[:, None], loudness(rows)[:, None], object_ir(rows)[:, None])


def footsteps(rows: Rows) -> Tensor:
    """Heel and toe on some ground."""
    heel = time_events(rows)
    toe = heel + (0.08 * rows.table["texture"])[:, None]
    length = min(rows.sample, SAMPLE_RATE // 4)
    thud = modes(rows["pitch_hz"] / 4, rows["decay_s"], torch.ones_like(rows["pitch_hz"]), length)
    ground = [
        burst(rows.salted(20 + i), length, rows["pitch_hz"] * r, 0.9, rows["decay_s"]) for i, r in enumerate((1, 2))
    ]
    amp = loudness(rows)
    return strike(
        rows,
        np.stack([heel, toe], 1),
        np.stack([amp, 0.5 * amp], 1),
        torch.stack([ground[0] + 0.5 * thud, ground[1]], 1),
    )


def ticking(rows: Rows) -> Tensor:
    """A clock or ratchet: tick and tock."""
    onset = time_events(rows)
    odd = np.arange(onset.shape[1]) % 2
    amp = np.stack([loudness(rows) * (odd == 0), loudness(rows) * (odd == 1)], 1)
    sounds = torch.stack([normalise(object_ir(rows, 4, salt, 0.1)) for salt in (20, 30)], 1)
    return strike(rows, np.stack([onset, onset], 1), amp, sounds)


def engine(rows: Rows) -> Tensor:
    """Firing pulses whose speed wanders, a rough exhaust, resonances of a pipe."""
    hz = rows.put64("pitch_hz") * torch.exp2(
        rows.put64("glide") * rows.t.clamp(max=4) / 2 + 0.15 * rows.wander(rows.put64("rate_hz"))
    )
    hz = hz.clamp(12, 600)
    fired = pulses(hz, 900 + 0 * hz, rows.sample) * (
        1 + rows["depth"] * torch.sign(tone(hz / 2, 1 + 0 * hz, rows.sample))
    )
    rough = rows.noise() * (0.3 + fired.abs()) * 0.5
    pipe = column(rows, "texture") * torch.tensor([160.0, 480, 950, 2100], device=rows.device)
    return from_frames(to_frames(fired + rows["noisy"] * rough) * resonance(pipe, 0.25 * pipe), rows.sample)


def mains_hum(rows: Rows) -> Tensor:
    """Transformers and bad cables: exact harmonics of the mains."""
    mains = torch.where(rows.put64("pitch_hz") > 110, 60.0, 50.0).expand(-1, rows.frames)
    buzz = pulses(mains, 300 + 2500 * rows.put64("texture"), rows.sample)
    second = tone(2 * mains, 1 + 0 * mains, rows.sample)
    return buzz + second + 0.1 * rows["noisy"] * normalise(coloured(rows))


def fan(rows: Rows) -> Tensor:
    """Steady broad noise with the tones of blades."""
    hz = rows.put64("pitch_hz") * (1 + 0.01 * rows.wander(0.5))
    blades = sum(tone(k * hz, torch.ones_like(hz) / k, rows.sample) for k in (1, 2, 3))
    return (
        normalise(coloured(rows)) * (1 + 0.3 * rows["depth"] * tone(hz / 8, torch.ones_like(hz), rows.sample))
        + rows["texture"] * blades
    )


def siren(rows: Rows) -> Tensor:
    """A horn whose pitch sweeps: smoothly, as a saw, or between two notes."""
    cycle = (rows.put64("rate_hz") * rows.t + rows.put(rows.event[:, :1, 0], torch.float64)) % 1
    shapes = torch.stack([torch.sin(2 * math.pi * cycle), 2 * cycle - 1, 1.0 - 2 * (cycle > 0.5).double()])
    shape = rows.put(np.floor(rows.event[:, 0, 1] * 3), torch.int64)
    sweep = shapes.gather(0, shape[None, :, None].expand(1, -1, rows.frames))[0]
    hz = rows.put64("pitch_hz") * torch.exp2(rows.put64("depth") * sweep)
    return sum(tone(k * hz, torch.ones_like(hz) * k ** -(0.5 + 2 * rows["texture"]), rows.sample) for k in range(1, 7))


def beeps(rows: Rows) -> Tensor:
    """An alarm: tones switched on and off, alternating between two pitches or staying on one."""
    number, since = locate(rows, time_events(rows))
    hz = rows.put64("pitch_hz") * torch.exp2(rows.put64("glide").round() * (number % 2) / 3)
    on = gate(rows, since, rows["decay_s"])
    return sum(tone(k * hz, on * k ** -(0.5 + 3 * rows["texture"]), rows.sample) for k in (1, 2, 3, 5))


def keypad(rows: Rows) -> Tensor:
    """Two tones at once, picked anew for each press, as telephones dial."""
    number, since = locate(rows, time_events(rows))
    low, high = np.array([697.0, 770, 852, 941]), np.array([1209.0, 1336, 1477, 1633])
    on = gate(rows, since, rows["decay_s"])
    digit = [(4 * rows.event[..., i]).astype(int) for i in (3, 4)]
    hz = [
        each(rows, row[d], number, torch.float64) * rows.put64("pitch_hz") / 1000
        for row, d in zip((low, high), digit, strict=True)
    ]
    return tone(hz[0], on, rows.sample) + tone(hz[1], on, rows.sample)


def birds(rows: Rows) -> Tensor:
    """Whistled syllables, each with its own sweep and warble."""
    number, since = locate(rows, time_events(rows))
    length = rows.put64("decay_s")
    place = (since / length).clamp(0, 1)
    sweep = rows.put64("glide") * (each(rows, rows.event[..., 3], number, torch.float64) + 0.2) * (place - 0.5)
    warble = 0.12 * rows.put64("depth") * torch.sin(2 * math.pi * 28 * since)
    jump = 0.4 * rows.put64("depth") * (each(rows, rows.event[..., 4], number, torch.float64) - 0.5)
    hz = rows.put64("pitch_hz") * torch.exp2(sweep + warble + jump)
    amp = gate(rows, since, rows["decay_s"]) * each(rows, loudness(rows).clip(max=2), number)
    return tone(hz, amp, rows.sample) + rows["texture"] * tone(2 * hz, 0.3 * amp, rows.sample)


def insects(rows: Rows) -> Tensor:
    """A high tone in rapid pulses that come in chirps."""
    chirping = gate(rows, locate(rows, time_events(rows))[1], rows["decay_s"], 0.02)
    pulse_hz = 15 + 45 * rows.put64("texture")
    amp = chirping * (0.5 + 0.5 * torch.sin(2 * math.pi * pulse_hz * rows.t)).float() ** 2
    hz = rows.put64("pitch_hz") * (1 + 0.01 * rows.wander(3.0))
    return tone(hz, amp, rows.sample) + 0.2 * tone(1.07 * hz, amp, rows.sample)


def animal(rows: Rows) -> Tensor:
    """Barks, howls and moos: a pitch arch through a mouth that opens and closes."""
    number, since = locate(rows, time_events(rows))
    place = (since / rows.put64("decay_s")).clamp(0, 1)
    arch = torch.sin(math.pi * place)
    hz = rows.put64("pitch_hz") * torch.exp2(rows.put64("glide") * (arch - 0.5) + 0.02 * rows.wander(25.0, 3))
    mouth = smooth(arch, 9).float()[:, ::2, None]
    size = column(rows, "texture")
    formant = torch.cat([(350 + 600 * mouth) * size, (1100 + 700 * mouth) * size, (2600 + 0 * mouth) * size], -1)
    on = upsample(
        smooth(gate(rows, since, rows["decay_s"], 0.03) * each(rows, loudness(rows).clip(max=2), number), 5),
        rows.sample,
    )
    voice = on * (pulses(hz.clamp(30, 2000), 2200 + 0 * hz, rows.sample) + rows["noisy"] * rows.noise())
    return from_frames(to_frames(voice) * resonance(formant, 0.12 * formant), rows.sample)


def squeak(rows: Rows) -> Tensor:
    """Friction: a rough tone that slides and breaks off."""
    since = locate(rows, time_events(rows))[1]
    hz = rows.put64("pitch_hz") * torch.exp2(
        rows.put64("depth") * rows.wander(rows.put64("rate_hz") * 1.5) + 0.03 * rows.noise(6, rows.frames)
    )
    amp = gate(rows, since, rows["decay_s"], 0.02) * (1 + rows["noisy"] * rows.noise(7, rows.frames)).clamp(min=0)
    return sum(tone(k * hz, amp * k ** -(0.6 + rows["texture"]), rows.sample) for k in (1, 2, 3, 4, 5))


def zaps(rows: Rows) -> Tensor:
    """Sweeps over octaves, as of toys, sonars and lasers."""
    since = locate(rows, time_events(rows))[1]
    place = (since / rows.put64("decay_s")).clamp(0, 1)
    hz = rows.put64("pitch_hz") * torch.exp2(3 * rows.put64("glide") * (place - 0.5))
    amp = gate(rows, since, rows["decay_s"])
    return sum(tone(k * hz, amp * k ** -(0.8 + 2 * rows["texture"]), rows.sample) for k in (1, 2, 3))


def scrape(rows: Rows) -> Tensor:
    """Strokes of brushing, sawing or sweeping: bursts of band noise, bright on one half of the stroke."""
    cycle = (
        rows.put64("rate_hz") * rows.t
        + 0.15 * rows.wander(rows.put64("rate_hz"))
        + rows.put(rows.event[:, :1, 0], torch.float64)
    )
    stroke = torch.sin(2 * math.pi * cycle).float()[:, ::2, None]
    centre = column(rows, "pitch_hz") * torch.exp2(0.7 * column(rows, "depth") * stroke)
    colour = band(bins(rows), centre, 0.3 + column(rows, "texture"))
    return filter_noise(rows.noise() * (1 + rows["noisy"] * rows.noise(8)), colour * stroke.abs() ** 1.5)


class Kind(NamedTuple):
    """How a kind sounds and where its factors lie; a range covers about 95 %, evenly on a log scale."""

    play: Callable[[Rows], Tensor]
    rate_hz: tuple[float, float]
    pitch_hz: tuple[float, float]
    decay_s: tuple[float, float] = (0.1, 1.0)
    slope_db: tuple[float, float] = (-6.0, 0.0)  # evenly: may be negative


KINDS = {
    "wind": Kind(wind, (0.3, 2.5), (150, 1200), slope_db=(-9, -3)),
    "rain": Kind(rain, (60, 500), (1500, 5000), (0.004, 0.03), (-3, 3)),
    "impacts": Kind(impacts, (0.8, 5), (120, 2500), (0.05, 1.2)),
    "engine": Kind(engine, (0.3, 3), (22, 160)),
    "footsteps": Kind(footsteps, (1.3, 3.5), (350, 2000), (0.04, 0.15)),
    "animal": Kind(animal, (1, 4), (90, 800), (0.12, 0.7)),
    "birds": Kind(birds, (2, 11), (1800, 5500), (0.04, 0.25)),
    "fan": Kind(fan, (0.5, 2), (60, 500), slope_db=(-7, 1)),
    "fire": Kind(fire, (3, 40), (1200, 5000), (0.003, 0.02), (-12, -6)),
    "stream": Kind(stream, (15, 120), (400, 1600), (0.03, 0.12), (-4, 1)),
    "beeps": Kind(beeps, (1.2, 8), (600, 3200), (0.05, 0.35)),
    "applause": Kind(applause, (25, 400), (900, 2200), (0.02, 0.06)),
    "ticking": Kind(ticking, (1.5, 14), (900, 4500), (0.01, 0.06)),
    "insects": Kind(insects, (1, 5), (2800, 6500), (0.1, 0.6)),
    "siren": Kind(siren, (0.3, 5), (450, 1400)),
    "surf": Kind(surf, (0.15, 0.9), (500, 1000), slope_db=(-6, -1)),
    "mains hum": Kind(mains_hum, (0.5, 2), (50, 240)),
    "scrape": Kind(scrape, (0.7, 5), (800, 4500)),
    "thunder": Kind(thunder, (0.3, 1.5), (40, 120), (0.5, 3.0), (-10, -5)),
    "squeak": Kind(squeak, (1, 5), (500, 2500), (0.1, 0.5)),
    "keypad": Kind(keypad, (1.5, 8), (850, 1180), (0.05, 0.2)),
    "zaps": Kind(zaps, (1, 8), (400, 2500), (0.06, 0.6)),
}

ENVIRONMENT: dict[str, Quantile] = {
    "kind": zipf(list(KINDS), 0.4),
    "rate_hz": normal(0, 1),  # these four are placed in the range of the kind
    "pitch_hz": normal(0, 1),
    "decay_s": normal(0, 1),
    "slope_db": normal(0, 1),
    "irregular": uniform(0.0, 0.9),  # 0 a clock, 1 a Poisson process
    "contrast": lognormal(0.35, 0.6, 0.02, 1.2),  # exponent of the heavy tail of loudness
    "depth": uniform(0.05, 0.9),  # of modulation
    "glide": normal(0.0, 0.5, -1.5, 1.5),  # octaves
    "texture": lognormal(0.6, 0.45, 0.15, 2.0),
    "noisy": lognormal(0.3, 0.8, 0.02, 2.0),
}
CLOCKLIKE = ("footsteps", "ticking", "beeps", "insects")  # nearly even in time


def complete_environment(table: Table) -> Table:
    """Place the factors in the ranges of each row's kind."""
    kinds = [KINDS[kind] for kind in table["kind"]]
    for name in ("rate_hz", "pitch_hz", "decay_s", "slope_db"):
        low, high = np.array([getattr(kind, name) for kind in kinds]).T
        z = table[name].clip(-3, 3) / 2  # two standard deviations reach the ends
        if name == "slope_db":
            table[name] = (low + high) / 2 + z * (high - low) / 2
        else:
            table[name] = np.sqrt(low * high) * (high / low) ** (z / 2)
    table["irregular"] = table["irregular"] * np.where(np.isin(table["kind"], CLOCKLIKE), 0.1, 1.0)
    return table


def environment(rows: Rows) -> tuple[Tensor, Table]:
    """Waveforms (row, sample) of environmental sources, and their table."""
    wave = torch.zeros(len(rows), rows.sample, device=rows.device)
    for kind in np.unique(rows.table["kind"]):
        same = np.flatnonzero(rows.table["kind"] == kind)
        wave[torch.from_numpy(same).to(rows.device)] = KINDS[str(kind)].play(rows.pick(same)).float()
    return wave, rows.table
