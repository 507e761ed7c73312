"""An encoder behind the interfaces that others test encoders with: HEAR's functions and X-ARES's class.

* HEAR (Turian et al. 2022): `hear-validator rankscale.hear -m encoder.pt -d cpu`, of PyPI hearvalidator.
* X-ARES (Zhang et al. 2025): `xares.audio_encoder_checker.check_audio_encoder(Encoder("encoder.pt"))`, of PyPI xares.

Either opens what `dasheng.read_encoder` opens. Where the caller cannot name a file, as X-ARES cannot, the environment
variable RANKSCALE_ENCODER names it; without one an untrained encoder answers, with a warning.
Long clips are heard in pieces, so that ten minutes need hardly more memory than their own log-Mel picture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from rankscale import mae  # not its Encoder: X-ARES wants one name here that ends so
from rankscale.config import BANDS, HOP, SAMPLE_RATE, RunConfig
from rankscale.dasheng import read_encoder
from rankscale.mel import mel_stats
from rankscale.sound.synth import synthesize

CHECKPOINT = "RANKSCALE_ENCODER"  # environment variable
LONGEST_HOP_MS = 50.0  # HEAR's bound: onsets are scored within 50 ms
LONG = 30 * SAMPLE_RATE  # samples: longer clips are heard in pieces
MARGIN = 2  # frames of 10 ms beside a piece that reach into it
BLOCK_TOKENS = 4096  # at most, in the encoder at once
LOUDEST = 100.0  # no waveform in [-1, 1] reaches it; 16-bit counts do


class Encoder(nn.Module):
    """A frozen encoder as HEAR's model and X-ARES's encoder in one: attributes of both, tokens as frames.

    path: a checkpoint of rankscale or Dasheng; None: see the head of this room. A patch longer than 50 ms is repeated,
    so that frames follow each other by `hop_size_in_ms` <= 50, evenly.
    """

    sample_rate = sampling_rate = SAMPLE_RATE  # HEAR's name, X-ARES's name

    def __init__(self, path: str | Path | None = None):
        super().__init__()
        path = path or os.environ.get(CHECKPOINT)
        self.net = read_encoder(path) if path else _untrained()
        self.output_dim = self.scene_embedding_size = self.timestamp_embedding_size = self.net.spec.width

        patch_ms = self.net.spec.patch_frames * 1000 * HOP / SAMPLE_RATE
        self.repeats = 1
        while patch_ms / self.repeats > LONGEST_HOP_MS:
            self.repeats *= 2  # a power of two, so that float32 holds the timestamps of ten minutes exactly
        self.hop_size_in_ms = patch_ms / self.repeats

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """audio (n, sample), 16 kHz, in [-1, 1] -> (n, t, output_dim) float32. Errors as `get_scene_embeddings`."""
        frames = [torch.cat(list(self._tokens(clips)), dim=1) for clips in self._groups(audio)]
        return torch.cat(frames).repeat_interleave(self.repeats, dim=1)

    @torch.no_grad()
    def mean(self, audio: Tensor) -> Tensor:
        """The mean over time of what `forward` gives: (n, output_dim)."""
        means = []
        for clips in self._groups(audio):
            total, count = 0, 0
            for tokens in self._tokens(clips):
                total, count = total + tokens.sum(dim=1), count + tokens.shape[1]
            means.append(total / count)
        return torch.cat(means)

    def _groups(self, audio: Tensor) -> tuple[Tensor, ...]:
        """Checked clips, as many at once as the encoder may hold."""
        _check(audio)
        tokens = audio.shape[1] // (HOP * self.net.spec.patch_frames) + 1
        audio = audio.to(self.net.norm.weight.device, torch.float32)
        return audio.split(max(1, BLOCK_TOKENS // tokens))

    def _tokens(self, clips: Tensor) -> Iterator[Tensor]:
        """What the encoder gives for (n, sample), in the order of time: (n, <= BLOCK_TOKENS, width) each."""
        if clips.shape[1] <= LONG:
            yield self.net(clips)
            return
        mel, spec = self._long_mel(clips), self.net.spec
        piece = spec.tokens * spec.patch_frames  # the encoder cuts there itself
        whole = mel.shape[2] // spec.patch_frames * spec.patch_frames
        for part in mel[..., :whole].split(piece * max(1, BLOCK_TOKENS // spec.tokens), dim=2):
            yield self.net.forward_mel(part)

    def _long_mel(self, clips: Tensor) -> Tensor:
        """The encoder's own log-Mel, made piece by piece: only the decibel floor hangs on all of a clip."""
        front_end, frames = self.net.front_end, clips.shape[1] // HOP + 1
        mel = clips.new_empty(len(clips), BANDS, frames)
        for start in range(0, frames, LONG // HOP):
            stop, first = min(start + LONG // HOP, frames), max(0, start - MARGIN)
            part = front_end(clips[:, first * HOP : (stop + MARGIN) * HOP])
            mel[..., start:stop] = part[..., start - first : stop - first]
        return mel.clamp_(min=mel.amax(dim=(1, 2), keepdim=True) - front_end[1].top_db)


def load_model(model_file_path: str | Path = "") -> Encoder:
    """HEAR's model: `sample_rate`, `scene_embedding_size`, `timestamp_embedding_size`. "": see the head of this room.

    Raises FileNotFoundError, or ValueError that names a file that is no encoder checkpoint.
    """
    return Encoder(model_file_path)


def get_scene_embeddings(audio: Tensor, model: Encoder, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """One embedding a clip, the mean of its frames: audio (n, sample) in [-1, 1] -> (n, dim) float32.

    sample_rate: of the audio, for callers who want it checked; HEAR's own do not say. A clip's embedding does not
    depend on its neighbours. Raises ValueError on another shape, type or rate, NaN, infinity, or 16-bit counts.
    """
    _check_rate(sample_rate)
    return model.mean(audio)


def get_timestamp_embeddings(audio: Tensor, model: Encoder, sample_rate: int = SAMPLE_RATE) -> tuple[Tensor, Tensor]:
    """Embeddings over time (n, t, dim) float32, and the middle of each frame in ms from the clip's start (n, t).

    As in the encoder, a last patch that is not full is left out. Errors as `get_scene_embeddings`.
    """
    _check_rate(sample_rate)
    frames = model(audio)
    count = torch.arange(frames.shape[1], dtype=torch.float32, device=frames.device)
    half_frame_ms = 500 * HOP / SAMPLE_RATE  # spectra are centred: the first one lies around time 0, not behind it
    timestamps = (count + 0.5) * model.hop_size_in_ms - half_frame_ms
    return frames, timestamps.expand(len(frames), -1)


def _check_rate(sample_rate: int) -> None:
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"audio at {sample_rate} Hz: the encoder hears {SAMPLE_RATE} Hz, resample it first")


def _check(audio: Tensor) -> None:
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
        raise ValueError(f"audio is {kind}: give a floating-point tensor in [-1, 1]")
    if audio.ndim != 2 or 0 in audio.shape:
        raise ValueError(f"audio of shape {tuple(audio.shape)}: give (n_clip, n_sample), neither of them 0")
    low, high = audio.aminmax(dim=1)
    peaks = torch.maximum(-low, high)  # NaN if one sample is
    if len(bad := (~peaks.isfinite()).nonzero()):
        raise ValueError(f"audio: clip {bad[0].item()} (counted from 0) holds NaN or infinity")
    if peaks.max() > LOUDEST:
        raise ValueError(f"audio: peak {peaks.max():.0f}; waveforms lie in [-1, 1]: divide 16-bit counts by 32768")


def _untrained() -> mae.Encoder:
    """The floor: the default encoder of seed 0, its input statistics from 64 synthetic clips."""
    warnings.warn(
        f"no checkpoint was named, nor does {CHECKPOINT} name one: this encoder is untrained", UserWarning, stacklevel=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mae.Encoder.from_config(RunConfig())
    net.set_input_stats(mel_stats([net.front_end(synthesize(range(64)).waveform)]))
    return net.eval()
