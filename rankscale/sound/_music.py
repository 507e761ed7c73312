"""Music-like sources: instruments (partials, FM, plucked and struck, drums) that play scales, arpeggios and chords."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankscale.config import SAMPLE_RATE
from rankscale.sound._draw import Quantile, Table, lognormal, normal, sometimes, uniform, zipf
from rankscale.sound._render import (
    TOP_HZ,
    Rows,
    band,
    burst,
    each,
    line_up,
    locate,
    modes,
    noise_hz,
    pulses,
    shape,
    strike,
    tilt,
    tone,
    upsample,
)

PARTIALS = 28
CHORD = 3  # notes at once
RINGING = 2  # notes of a melody that sound on under the next one

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
SCALES = {
    "major": MAJOR,
    "minor": MINOR,
    "pentatonic": (0, 2, 4, 7, 9),
    "blues": (0, 3, 5, 6, 7, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "whole tone": (0, 2, 4, 6, 8, 10),
    "pelog": (0, 1.2, 2.7, 5.4, 6.7, 7.9, 9.5),
    "chromatic": tuple(range(12)),
}
# Note lengths in beats, repeated for as long as the clip lasts.
RHYTHMS = {
    "quarters": (1.0,),
    "eighths": (0.5,),
    "dotted": (0.75, 0.25),
    "gallop": (0.5, 0.25, 0.25),
    "waltz": (1.0, 0.5, 0.5, 1.0),
    "tresillo": (0.75, 0.75, 0.5),
    "sixteenths": (0.25,),
    "triplets": (1 / 3, 1 / 3, 1 / 3),
    "halves": (2.0,),
    "syncopated": (0.25, 0.5, 0.25, 0.5, 0.5),
    "swing": (2 / 3, 1 / 3),
    "drone": (8.0,),
}
ARRANGEMENTS = ("melody", "arpeggio", "chords", "repeated", "trill", "leaps")
PROGRESSIONS = np.array([(0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 1, 4), (0, 0, 3, 4), (5, 3, 0, 4), (0, 6, 5, 4)])


class Instrument(NamedTuple):
    """One timbre. Times in seconds; the drawn factors scale them."""

    engine: str  # partials, pulses, fm or drums
    slope: float = 1.0  # k-th partial falls as k ** -slope
    even: float = 1.0  # gain of the even partials
    body_hz: float = 1000.0  # a broad resonance
    attack_s: float = 0.02
    decay_s: float = 20.0  # of the first partial, to 1/1000, while the note is held
    damping: float = 0.0  # how much faster the upper ones decay, per partial
    release_s: float = 0.08
    rings: bool = False  # notes sound on while others start
    pluck: float = 0.0  # where the string is plucked: its share from the bridge; 0 for none
    stiff: float = 0.0  # inharmonicity B of stiff strings
    ratios: tuple[float, ...] = ()  # of inharmonic partials
    fm: tuple[float, float, float] = (1.0, 0.0, 1.0)  # modulator ratio, index, seconds the index decays in


INSTRUMENTS = {
    "guitar": Instrument("partials", 0.9, 1, 400, 0.004, 2.5, 0.25, rings=True, pluck=0.2),
    "piano": Instrument("partials", 1.2, 1, 600, 0.004, 3.5, 0.2, rings=True, pluck=0.12, stiff=4e-4),
    "organ": Instrument("partials", 0.8, 0.9, 1000, 0.03, release_s=0.06),
    "bowed": Instrument("pulses", 1.0, 1, 1800, 0.09, release_s=0.12),
    "flute": Instrument("partials", 2.4, 0.6, 800, 0.06),
    "electric piano": Instrument("fm", attack_s=0.004, decay_s=2.0, rings=True, fm=(1.0, 1.6, 0.5)),
    "brass": Instrument("pulses", 0.7, 1, 1300, 0.05, release_s=0.06),
    "clarinet": Instrument("pulses", 1.0, 0.08, 1500, 0.04),
    "marimba": Instrument("partials", 1.4, 1, 1000, 0.004, 0.7, 0.9, rings=True, ratios=(1, 3.93, 9.24, 15.2)),
    "drums": Instrument("drums"),
    "bell": Instrument("partials", 0.5, 1, 1000, 0.004, 4.0, 0.15, rings=True,
                       ratios=(1, 2.0, 2.4, 3.0, 4.0, 5.33, 6.66, 8.01, 10.2)),
    "synth bass": Instrument("fm", attack_s=0.006, decay_s=1.2, fm=(1.0, 3.5, 0.25)),
    "harpsichord": Instrument("partials", 0.4, 1, 2500, 0.004, 1.6, 0.1, rings=True, pluck=0.07),
    "reed": Instrument("pulses", 0.6, 1, 900, 0.03, release_s=0.05),
    "metal bars": Instrument("partials", 0.8, 1, 1000, 0.004, 3.0, 0.3, rings=True, ratios=(1, 2.76, 5.4, 8.93)),
    "FM bell": Instrument("fm", attack_s=0.004, decay_s=4.0, rings=True, fm=(1.414, 4.0, 1.5)),
    "FM brass": Instrument("fm", attack_s=0.06, decay_s=12.0, fm=(1.0, 3.5, 6.0)),
    "plucked bass": Instrument("partials", 1.3, 1, 150, 0.006, 1.8, 0.35, pluck=0.3),
    "clang": Instrument("fm", attack_s=0.004, decay_s=1.5, rings=True, fm=(2.73, 6.0, 0.6)),
}  # fmt: skip

MUSIC: dict[str, Quantile] = {
    "kind": zipf(list(INSTRUMENTS), 0.6),
    "tempo_bpm": lognormal(105.0, 0.35, 35, 260),
    "rhythm": zipf(list(RHYTHMS), 0.6),
    "arrangement": zipf(ARRANGEMENTS, 0.6),
    "scale": zipf(list(SCALES), 0.9),
    "tonic_midi": normal(59.0, 9.0, 36, 86),
    "detune_cents": normal(0.0, 15.0),
    "leap": lognormal(1.5, 0.5, 0.4, 7.0),  # mean step of a melody in degrees of the scale
    "legato": lognormal(0.8, 0.35, 0.15, 1.5),  # length of a note over the time to the next
    "brightness": normal(1.0, 0.3, 0.3, 2.0),  # factor on the slope of the partials (below 1: brighter) and FM index
    "sustain": lognormal(1.0, 0.5, 0.2, 4.0),  # factor on decays
    "attack": lognormal(1.0, 0.5, 0.3, 5.0),  # factor on attacks
    "body": lognormal(1.0, 0.4, 0.3, 3.0),  # factor on the resonance
    "vibrato_hz": lognormal(5.5, 0.15, 3.5, 8.0),
    "vibrato": sometimes(0.4, lognormal(0.25, 0.6, 0.03, 1.5), 0.0),  # semitones
    "tremolo": sometimes(0.2, uniform(0.1, 0.8), 0.0),
    "glide_s": sometimes(0.15, lognormal(0.06, 0.5, 0.01, 0.3), 0.0),
    "progression": zipf(range(len(PROGRESSIONS)), 0.5),
    "swing": sometimes(0.2, uniform(0.02, 0.12), 0.0),  # random timing, in beats
    "accent": uniform(0.0, 0.8),  # spread of the notes' loudness
    "breath": lognormal(0.01, 1.0, 0.0005, 0.3),  # of noise
    "phase": uniform(0.0, 1.0),  # where in the rhythm the clip begins
}


Player = Callable[[Rows, "Held", Tensor, Tensor], Tensor]  # what is held, its frequency and loudness -> sound


class Notes(NamedTuple):
    """A part: onset and length in seconds, velocity, and pitch of each voice in MIDI numbers (row, note[, voice])."""

    onset_s: np.ndarray
    length_s: np.ndarray
    velocity: np.ndarray
    midi: np.ndarray


def time_notes(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Onset of each note in seconds, and the beat it falls on; (row, note)."""
    f, count = rows.table, rows.event.shape[1]
    beat_s = 60 / f["tempo_bpm"][:, None]
    length = np.stack([np.resize(RHYTHMS[name], count) for name in f["rhythm"]])
    # No more notes than the event table holds, and a first one that begins early in the clip or just before it.
    length = np.maximum(length, 1 / (beat_s * 16))
    beat = line_up(length)
    start = np.maximum(-f["phase"][:, None] * length[:, :1] * 0.9, -0.4 / beat_s)
    late = f["swing"][:, None] * rows.event[..., 3]
    return (beat + start + late) * beat_s, beat


def choose_degrees(rows: Rows, beat: np.ndarray) -> np.ndarray:
    """Degree of the scale, above the tonic, of each note; (row, note)."""
    f, u = rows.table, rows.event
    note = np.arange(u.shape[1])
    size = np.ceil(-f["leap"][:, None] * np.log(u[..., 0]) - 0.3).clip(0, 12)  # heavier than Gaussian
    walk = np.cumsum(np.where(u[..., 1] < 0.5, -size, size), 1)
    walk = np.abs((walk + 7) % 28 - 14) - 7  # reflected to stay within an octave either side
    chord = np.take_along_axis(PROGRESSIONS[f["progression"]], (beat // 4 % 4).astype(int), 1)
    turn = np.array([(0, 2, 4, 7), (7, 4, 2, 0), (0, 4, 2, 4), (0, 2, 4, 2)])[(u[:, 0, 2] * 4).astype(int)]
    choices = {
        "melody": walk,
        "arpeggio": chord + turn[:, note % 4],
        "chords": chord,
        "repeated": np.zeros_like(walk) + np.floor(u[:, :1, 0] * 7),
        "trill": np.floor(u[:, :1, 0] * 7) + note % 2,
        "leaps": np.floor(u[..., 0] * 15) - 7,
    }
    return np.select([f["arrangement"][:, None] == name for name in choices], list(choices.values())).astype(int)


def compose_notes(rows: Rows) -> Notes:
    """What is played."""
    f, u = rows.table, rows.event
    onset, beat = time_notes(rows)
    degree = choose_degrees(rows, beat)[..., None] + np.array([0, 2, 4])  # thirds above, used by chords
    midi = np.empty(degree.shape)
    for name in np.unique(f["scale"]):
        steps, same = np.array(SCALES[name]), f["scale"] == name
        octave, within = np.divmod(degree[same], len(steps))
        midi[same] = 12 * octave + steps[within]
    midi += f["tonic_midi"].round()[:, None, None] + f["detune_cents"][:, None, None] / 100
    gap = np.diff(onset, axis=1, append=onset[:, -1:] + 1)
    velocity = np.exp(-f["accent"][:, None] * 2 * u[..., 4])
    return Notes(onset, gap * f["legato"][:, None], velocity, midi.clip(24, 103))


class Held(NamedTuple):
    """The note that a voice plays at each control point; (voice row, frame)."""

    since_s: Tensor  # since its onset, below 0 before the first note
    after_s: Tensor  # since its end, below 0 while it is held
    velocity: Tensor
    midi: Tensor  # float64
    lowest_hz: np.ndarray  # of the whole part, with room for vibrato; (voice row,)


def hold_notes(rows: Rows, notes: Notes, voice: np.ndarray, ringing: np.ndarray) -> Held:
    """Give each row's voice its notes: a ringing melody passes them round the voices, a chord gives one to each."""
    number, _ = locate(rows, notes.onset_s)
    turn = rows.put(voice, torch.int64)[:, None]
    mine = number - (number - turn) % RINGING
    number = torch.where(rows.put(ringing, torch.bool)[:, None], mine, number)
    known, number = number >= 0, number.clamp(min=0)
    onset, length, velocity = (each(rows, x, number, torch.float64) for x in notes[:3])
    since = torch.where(known, rows.t - onset, -1.0)
    chord = np.where(rows.table["arrangement"] == "chords", voice, 0)
    midi = np.take_along_axis(notes.midi, chord[:, None, None], 2)[..., 0]
    lowest_hz = 440 * 2 ** ((midi.min(1) - 72) / 12)
    midi = each(rows, midi, number, torch.float64)
    return Held(since.float(), (since - length).float(), velocity.float(), midi, lowest_hz)


def envelope(rows: Rows, held: Held, attack_s: np.ndarray, release_s: np.ndarray) -> Tensor:
    """Loudness of a voice: linear attack, exponential release, velocity; (row, frame)."""
    rise = (held.since_s / rows.put(attack_s)[:, None]).clamp(0, 1)
    fall = torch.exp(-held.after_s.clamp(min=0) / rows.put(release_s)[:, None])
    shake = 1 + rows["tremolo"] * torch.sin(2 * torch.pi * 1.1 * rows.put64("vibrato_hz") * rows.t).float()
    return rise * fall * held.velocity * shake


def bend_notes(rows: Rows, held: Held) -> Tensor:
    """Frequency of a voice with vibrato and glides; float64 (row, frame)."""
    swell = (held.since_s.double() / 0.25).clamp(0, 1)
    vibrato = rows.put64("vibrato") * swell * torch.sin(2 * torch.pi * rows.put64("vibrato_hz") * rows.t)
    glide_s = rows.put64("glide_s")
    scoop = torch.where(
        glide_s > 0, -1.5 * torch.exp(-held.since_s.double().clamp(min=0) / glide_s.clamp(min=1e-3)), 0.0
    )
    return 440 * torch.exp2((held.midi - 69 + vibrato + scoop) / 12)


def describe_partials(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequency ratio, gain, and decay rate (1/s) of each partial; (row, partial)."""
    played = [INSTRUMENTS[kind] for kind in table["kind"]]
    slope, even, body_hz, decay_s, damping, pluck, stiff = (
        np.array([getattr(i, name) for i in played])[:, None]
        for name in ("slope", "even", "body_hz", "decay_s", "damping", "pluck", "stiff")
    )
    k = np.arange(1, PARTIALS + 1)
    ratio = k * np.sqrt(1 + stiff * k**2)
    gain = k ** -(slope * table["brightness"][:, None]) * np.where(k % 2 == 0, even, 1)
    gain = gain * np.where(pluck > 0, np.abs(np.sin(np.pi * k * pluck)) + 0.02, 1)
    for row, instrument in enumerate(played):
        if count := len(instrument.ratios):
            ratio[row, :count], gain[row, count:] = instrument.ratios, 0
    hz = ratio * 440 * 2 ** ((table["tonic_midi"][:, None] - 69) / 12)
    gain = gain * (0.3 + np.exp(-0.5 * np.log2(hz / (body_hz * table["body"][:, None])) ** 2))
    rate = 6.91 / (decay_s * table["sustain"][:, None]) * (1 + damping * (k - 1))
    gain = gain * (1 - (k / (PARTIALS + 1)) ** 4)  # no edge after the last
    return ratio, gain / gain.max(1, keepdims=True), rate


def play_partials(rows: Rows, held: Held, hz: Tensor, loudness: Tensor) -> Tensor:
    """A sum of partials, each with its own decay; rows whose partial is inaudible are left out of its sum."""
    ratio, gain, rate = describe_partials(rows.table)
    since = held.since_s.clamp(min=0)
    wave = torch.zeros(len(rows), rows.sample, device=rows.device)
    for k in range(PARTIALS):
        heard = np.flatnonzero((gain[:, k] > 2e-3) & (ratio[:, k] * held.lowest_hz < TOP_HZ))
        if not len(heard):
            continue
        at = torch.from_numpy(heard).to(rows.device)
        amp = (
            loudness[at] * torch.exp(-since[at] * rows.put(rate[heard, k])[:, None]) * rows.put(gain[heard, k])[:, None]
        )
        wave.index_add_(0, at, tone(hz[at] * rows.put(ratio[heard, k], torch.float64)[:, None], amp, rows.sample))
    return wave


def play_pulses(rows: Rows, held: Held, hz: Tensor, loudness: Tensor) -> Tensor:
    """Bows, reeds and lips: a train of pulses, brighter when louder, through the resonance of the body."""
    played = [INSTRUMENTS[kind] for kind in rows.table["kind"]]
    slope, even, body_hz = (rows.put(np.array(x))[:, None] for x in zip(*[i[1:4] for i in played], strict=True))
    rolloff_hz = 800 + 1400 * loudness.clamp(0, 1)
    # pulses at twice the frequency are the even partials
    train = pulses(hz, rolloff_hz, rows.sample) - (1 - even) * pulses(2 * hz, rolloff_hz, rows.sample)
    f = noise_hz(rows.sample, rows.device)
    body = tilt(f, -6 * slope * rows["brightness"]) * (0.3 + band(f, body_hz * rows["body"], 1.0))
    # nothing but a trace of aliasing lies below the lowest note
    body = body / (1 + (0.7 * rows.put(held.lowest_hz)[:, None] / f) ** 4)
    return shape(train * upsample(loudness, rows.sample), body)


def play_fm(rows: Rows, held: Held, hz: Tensor, loudness: Tensor) -> Tensor:
    """Chowning's frequency modulation: one modulator, whose index decays with the note."""
    played = [INSTRUMENTS[kind] for kind in rows.table["kind"]]
    ratio, index, index_s = (
        rows.put(np.array(x), torch.float64)[:, None] for x in zip(*[i.fm for i in played], strict=True)
    )
    decay_s = rows.put(np.array([i.decay_s for i in played]))[:, None] * rows["sustain"]
    since = held.since_s.clamp(min=0)
    depth = index.float() / rows["brightness"] * held.velocity.sqrt() * torch.exp(-since / index_s.float())
    modulation = tone(hz * ratio, depth, rows.sample)
    return tone(hz, loudness * torch.exp(-6.91 * since / decay_s), rows.sample, modulation)


def play_drums(rows: Rows) -> Tensor:
    """Kick, snare and hat on a grid of half beats; hats fill in, kicks and snares follow the bar."""
    f, u = rows.table, rows.event
    step_s = np.maximum(30 / f["tempo_bpm"], 1 / 16)[:, None]
    step = np.arange(u.shape[1])
    onset = (step - f["phase"][:, None]) * step_s + 0.02 * f["swing"][:, None] * u[..., 3]
    kick = (step % 8 == 0) | ((step % 8 == 3) & (u[:, :1, 0] < 0.5)) | ((step % 4 == 0) & (u[:, :1, 1] < 0.4))
    snare = (step % 8 == 4) | (u[..., 0] < 0.06)
    hat = (u[..., 1] < 0.3 + 0.7 * u[:, :1, 2]) | (step % 2 == 0)
    velocity = np.exp(-f["accent"][:, None] * u[..., 4])
    amp = np.stack([kick, 0.6 * snare, 0.25 * hat], 1) * velocity[:, None]

    length = min(rows.sample, SAMPLE_RATE // 4)
    body, long = rows["body"], rows["sustain"]
    drum = modes(
        body * torch.tensor([52.0, 60, 85], device=rows.device),
        long * torch.tensor([0.3, 0.12, 0.05], device=rows.device),
        torch.ones(len(rows), 3, device=rows.device), length,
    )  # fmt: skip
    rattle = burst(rows.salted(1), length, 2500 * body, 1.5, 0.18 * long) + modes(
        190 * body, 0.12 * long, torch.ones_like(body), length
    )
    tick = burst(rows.salted(2), length, (7000 * body).clamp(max=7500), 0.4, 0.06 * long)
    return strike(rows, np.repeat(onset[:, None], 3, 1), amp, torch.stack([drum, rattle, tick], 1))


def music(rows: Rows) -> tuple[Tensor, Table]:
    """Waveforms (row, sample) of music-like sources, and the table with the pitch that sounds first."""
    notes = compose_notes(rows)
    engine = np.array([INSTRUMENTS[kind].engine for kind in rows.table["kind"]])
    wave = torch.zeros(len(rows), rows.sample, device=rows.device)
    for name, play in (("partials", play_partials), ("pulses", play_pulses), ("fm", play_fm)):
        source, voice = assign_voices(rows.table, engine == name)
        if len(source):
            part = Notes(*[x[source] for x in notes])
            wave.index_add_(
                0, torch.from_numpy(source).to(rows.device), play_part(rows.pick(source), part, voice, play)
            )
    if len(drums := np.flatnonzero(engine == "drums")):
        wave[torch.from_numpy(drums).to(rows.device)] = play_drums(rows.pick(drums))
    f0 = 440 * 2 ** ((notes.midi[:, 0, 0] - 69) / 12)
    return wave, {**rows.table, "f0_hz": np.where(engine == "drums", np.nan, f0)}


def assign_voices(table: Table, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are rendered: which source and which of its voices. Chords and ringing melodies need all voices."""
    ringing = np.array([INSTRUMENTS[kind].rings for kind in table["kind"]])
    need = np.where(table["arrangement"] == "chords", CHORD, np.where(ringing, RINGING, 1)) * chosen
    source = np.repeat(np.arange(len(need)), need)
    voice = np.concatenate([np.arange(n) for n in need]).astype(int) if len(source) else source
    return source, voice


def play_part(rows: Rows, notes: Notes, voice: np.ndarray, play: Player) -> Tensor:
    """One voice a row, with its envelope and a trace of breath or bow noise."""
    played = [INSTRUMENTS[kind] for kind in rows.table["kind"]]
    ringing = np.array([i.rings for i in played]) & (rows.table["arrangement"] != "chords")
    held = hold_notes(rows, notes, voice, ringing)
    attack_s = np.array([i.attack_s for i in played]) * rows.table["attack"]
    # what rings is let go, not damped, when its note ends
    release_s = np.array([0.6 if i.rings else i.release_s for i in played])
    loudness = envelope(rows, held, attack_s, release_s)
    air = upsample(loudness * rows["breath"], rows.sample) * rows.noise(5)
    return play(rows, held, bend_notes(rows, held), loudness) + air
