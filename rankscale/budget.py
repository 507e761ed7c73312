"""What a run costs, before it is run: parameters, floating-point operations, hours of audio, tokens.

The counting rule. A multiply-add is 2 FLOP. Counted are the matrix products that are really done: linear
layers and the two products of attention, on kept tokens in the encoder, on all tokens in the decoder, and
on masked tokens in its head and in what its last block computes from keys and values on. Not counted: the
Mel spectrogram, norms, softmax, GELU, the optimiser. The backward pass is twice the forward pass. Every
parameter counts, positions and normalisation included.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankscale.config import BANDS, RunConfig
from rankscale.mae import EncoderSpec, count_kept

COUNTING_RULE = (
    "multiply-add = 2 FLOP; linear layers and attention products on the tokens really processed; "
    "backward = 2 x forward; Mel spectrogram, norms, activations and optimiser not counted"
)
TRAIN_FACTOR = 3  # one forward pass, and a backward pass of twice its cost


@dataclass(frozen=True)
class Budget:
    """Cost of a run; see the module's counting rule.

    encoder_flop, decoder_flop: forward and backward over the whole pre-training; train_flop is their sum.
    embed_flop: one training-length clip through the encoder, all tokens kept, forward only.
    unique_audio_h: hours of different clips that were seen; seen_audio_h counts repeats.
    seen_tokens: tokens of the clips seen, masked ones included.
    """

    encoder_params: int
    decoder_params: int
    encoder_flop: int
    decoder_flop: int
    train_flop: int
    embed_flop: int
    unique_audio_h: float
    seen_audio_h: float
    seen_tokens: int


def budget(config: RunConfig) -> Budget:
    """The cost of a run, from its configuration alone."""
    spec = EncoderSpec.from_config(config)
    seen = config.steps * config.batch
    encoder_flop = TRAIN_FACTOR * seen * encoder_forward_flop(spec, _kept(config))
    decoder_flop = TRAIN_FACTOR * seen * decoder_forward_flop(config)
    return Budget(
        encoder_params=encoder_params(spec),
        decoder_params=decoder_params(config),
        encoder_flop=encoder_flop,
        decoder_flop=decoder_flop,
        train_flop=encoder_flop + decoder_flop,
        embed_flop=encoder_forward_flop(spec, spec.tokens),
        unique_audio_h=min(config.clips, seen) * config.clip_s / 3600,
        seen_audio_h=seen * config.clip_s / 3600,
        seen_tokens=seen * config.tokens,
    )


def encoder_params(spec: EncoderSpec) -> int:
    """Trainable numbers in an encoder."""
    patch = BANDS * spec.patch_frames
    embedding = 2 * BANDS + patch * spec.width + spec.width + (spec.tokens + 1) * spec.width
    return embedding + spec.depth * _block_params(spec.width, spec.mlp_ratio) + 2 * spec.width


def decoder_params(config: RunConfig) -> int:
    """Trainable numbers in a run's decoder."""
    width, patch = config.decoder_width, BANDS * config.patch_frames
    ends = config.width * width + width + patch * width + patch
    return ends + (config.tokens + 1) * width + config.decoder_depth * _block_params(width) + 2 * width


def encoder_forward_flop(spec: EncoderSpec, tokens: int) -> int:
    """FLOP of `tokens` patches of one clip through the encoder, at most a training clip's."""
    patches = 2 * tokens * BANDS * spec.patch_frames * spec.width
    return patches + spec.depth * _block_flop(tokens, spec.width, spec.mlp_ratio)


def decoder_forward_flop(config: RunConfig) -> int:
    """FLOP of one clip through the decoder in pre-training."""
    width, kept, tokens = config.decoder_width, _kept(config), config.tokens
    ends = 2 * kept * config.width * width + 2 * (tokens - kept) * width * BANDS * config.patch_frames
    last = _block_flop(tokens, width, outputs=tokens - kept)
    return ends + (config.decoder_depth - 1) * _block_flop(tokens, width) + last


def _kept(config: RunConfig) -> int:
    return count_kept(config.tokens, config.mask_group, config.mask_ratio)


def _block_params(width: int, mlp_ratio: float = 4.0) -> int:
    hidden = int(width * mlp_ratio)
    attention = 4 * width * width + 4 * width
    return attention + 2 * width * hidden + hidden + width + 4 * width


def _block_flop(tokens: int, width: int, mlp_ratio: float = 4.0, outputs: int | None = None) -> int:
    """outputs: tokens that the block computes, all if left out; keys, values and queries are of all tokens."""
    outputs, hidden = tokens if outputs is None else outputs, int(width * mlp_ratio)
    qkv = 2 * tokens * width * 3 * width
    return qkv + 4 * tokens * outputs * width + 2 * outputs * width * (width + 2 * hidden)
