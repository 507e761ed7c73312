"""A masked autoencoder over log-Mel patches, in one file that reads from sound to loss.

    waveform (batch, sample) -> log-Mel (batch, band, frame) -> patches (batch, token, band * frame_in_patch)
    -> a random quarter of them -> encoder -> all places, with mask tokens -> decoder -> the missing patches

The encoder is Dasheng's (arXiv 2406.06992): the same computation and the same names in its state dict, so
that checkpoints can be exchanged. It differs where a measurement needs it: the dB floor is per clip, and
the input statistics are set from data before training (`Encoder.set_input_stats`) and then stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from rankscale.config import BANDS, HEAD_WIDTH, HOP, SAMPLE_RATE, RunConfig
from rankscale.mel import TOP_DB, WINDOW, LogMel, MelStats
from rankscale.storage import write_atomically

# --- patches ------------------------------------------------------------------------------------------


def patchify(mel: Tensor, patch_frames: int) -> Tensor:
    """mel (batch, band, frame) -> patches (batch, token, band * patch_frames); a last partial patch is cut."""
    return mel.unfold(2, patch_frames, patch_frames).transpose(1, 2).flatten(2)


def unpatchify(patches: Tensor, patch_frames: int) -> Tensor:
    """patches (batch, token, band * patch_frames) -> mel (batch, band, frame): undoes `patchify`."""
    return patches.unflatten(2, (-1, patch_frames)).transpose(1, 2).flatten(2)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows (batch, token, value), index (batch, n) -> (batch, n, value): row index[b, i] of clip b."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


def count_groups(tokens: int, group: int) -> int:
    """Groups of `group` neighbouring tokens in a clip; the last one may be short."""
    return -(-tokens // group)


def count_kept(tokens: int, group: int, ratio: float) -> int:
    """Tokens of a clip that the encoder sees: round((1 - ratio) * groups) whole groups, never none nor all."""
    groups = count_groups(tokens, group)
    if groups < 2:
        raise ValueError(f"{tokens} tokens in groups of {group}: at least two groups are needed, use longer clips")
    return min(max(round((1 - ratio) * groups), 1), groups - 1) * group


def split_tokens(noise: Tensor, tokens: int, group: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Which tokens are kept and which are masked, by groups of `group` neighbours, decided by the noise alone.

    noise: (batch, group), one number each; the groups with the smallest numbers are kept,
    `count_kept` tokens in all.
    Returns indices kept (batch, n_kept) and masked (batch, tokens - n_kept), each clip with as many. Where
    tokens is no multiple of group the last group is short, and to keep counts equal one group may be cut.
    """
    n_kept, groups = count_kept(tokens, group, ratio), count_groups(tokens, group)
    if noise.ndim != 2 or noise.shape[1] != groups:
        raise ValueError(f"noise of shape {tuple(noise.shape)}: give (batch, {groups}), one number a group")
    order = noise.repeat_interleave(group, dim=1)[:, :tokens].argsort(dim=1, stable=True)
    return order[:, :n_kept], order[:, n_kept:]


# --- transformer --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head self-attention: tokens (batch, token, width) -> the same, or only those from token `first` on."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (batch, head, token, -)
        x = F.scaled_dot_product_attention(q[:, :, first:], k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, each token by itself."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. Tokens before `first` are looked at, but have no output."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        x = x[:, first:] + self.attn(self.norm1(x), first)
        return x + self.mlp(self.norm2(x))


def _initialise(module: nn.Module) -> None:
    """Xavier-uniform linear maps (a patch projection counts as one) and zero biases, as He et al. (2022) have.

    Positions and the mask token are normal with SD 0.02. Dasheng leaves its patch projection as torch has it,
    and draws its decoder with SD 0.02: narrow models learn more slowly from that.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        nn.init.zeros_(module.bias)


# --- encoder ------------------------------------------------------------------------------------------

# What every encoder here has in common, in the names of Dasheng's configuration.
FRONT_END = {
    "n_mels": BANDS, "hop_size": HOP, "win_size": WINDOW, "n_fft": WINDOW, "f_min": 0, "f_max": SAMPLE_RATE // 2,
    "center": True, "top_db": int(TOP_DB),
}  # fmt: skip


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder. Raises ValueError where it cannot be built.

    heads None: width / 32, at least 1. target_frames: frames of a training clip, cut to whole patches.
    """

    width: int
    depth: int
    heads: int | None = None
    mlp_ratio: float = 4.0
    patch_frames: int = 4
    target_frames: int = 128

    def __post_init__(self):
        if self.heads is None:
            object.__setattr__(self, "heads", max(1, self.width // HEAD_WIDTH))
        for name in ("width", "depth", "heads", "patch_frames", "mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be positive")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.target_frames < self.patch_frames:
            raise ValueError(f"target_frames {self.target_frames}: shorter than a patch of {self.patch_frames}")

    @property
    def tokens(self) -> int:
        """Tokens of a training clip."""
        return self.target_frames // self.patch_frames

    @classmethod
    def from_config(cls, config: RunConfig) -> EncoderSpec:
        """The encoder of a run."""
        return cls(config.width, config.depth, config.n_heads, config.mlp_ratio, config.patch_frames, config.frames)

    def to_dasheng(self) -> dict[str, Any]:
        """The configuration under Dasheng's names."""
        patch = [BANDS, self.patch_frames]
        return {
            "embed_dim": self.width, "depth": self.depth, "num_heads": self.heads, "mlp_ratio": self.mlp_ratio,
            "target_length": self.target_frames, "patch_size": patch, "patch_stride": patch, **FRONT_END,
        }  # fmt: skip

    @classmethod
    def from_dasheng(cls, config: dict[str, Any]) -> EncoderSpec:
        """From Dasheng's configuration, with its defaults. Raises ValueError on what this encoder cannot be."""
        patch = list(config.get("patch_size", (BANDS, 4)))
        fixed = FRONT_END | {"qkv_bias": True, "init_values": None, "patch_stride": patch}
        for name, value in fixed.items():
            found = config.get(name, value)
            if (list(found) if name == "patch_stride" else found) != value:
                raise ValueError(f"{name} is {found}: only {value} can be loaded")
        if patch[0] != BANDS or config.get("pooling") == "token":
            raise ValueError(
                f"patches of {patch[0]} bands, pooling {config.get('pooling')}: need {BANDS}, no class token"
            )
        return cls(
            config.get("embed_dim", 768), config.get("depth", 12), config.get("num_heads", 8),
            config.get("mlp_ratio", 4.0), patch[1], config.get("target_length", 1008),
        )  # fmt: skip


class InputNorm(nn.BatchNorm1d):
    """Batch normalisation that never looks at the batch: it uses its stored statistics in training too.

    Dasheng's running average (momentum 0.01) is still moving after hundreds of steps, so that a short run
    measures its input normalisation and an untrained encoder is fed wrong inputs.
    """

    def forward(self, mel: Tensor) -> Tensor:  # (batch, band, frame)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift[:, None], mel, scale[:, None])  # F.batch_norm's backward takes twice as long


class PatchEmbed(nn.Module):
    """A linear map of patches, kept as a convolution's weight so that names and shapes are Dasheng's."""

    def __init__(self, width: int, patch_frames: int):
        super().__init__()
        self.proj = nn.Conv2d(1, width, (BANDS, patch_frames), stride=(BANDS, patch_frames))

    def forward(self, patches: Tensor) -> Tensor:  # (batch, token, band * patch_frames) -> (batch, token, width)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Encoder(nn.Module):
    """Waveform or log-Mel to tokens, one every `patch_frames` * 10 ms.

    Arguments as in EncoderSpec. The initial weights come from torch's default generator: see `_initialise`.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        patch_frames: int = 4,
        target_frames: int = 128,
    ):
        super().__init__()
        self.spec = spec = EncoderSpec(width, depth, heads, mlp_ratio, patch_frames, target_frames)
        with torch.device("cpu"):  # torchaudio looks at its filters, so they must be real where weights are "meta"
            self.front_end = LogMel()
        self.init_bn = nn.Sequential(nn.Identity(), InputNorm(BANDS))  # named init_bn.1, as Dasheng's
        self.patch_embed = PatchEmbed(width, patch_frames)
        self.time_pos_embed = nn.Parameter(torch.randn(1, width, 1, spec.tokens) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, width, 1, 1) * 0.02)
        self.blocks = nn.ModuleList(Block(width, spec.heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(_initialise)

    @classmethod
    def from_config(cls, config: RunConfig) -> Encoder:
        """The untrained encoder of a run."""
        return cls(**vars(EncoderSpec.from_config(config)))

    @torch.no_grad()
    def set_input_stats(self, stats: MelStats) -> None:
        """Fix the input normalisation to the corpus: per-band mean and standard deviation in dB, (64,) each.

        Call it before step 0. Raises ValueError where a deviation is not positive and finite.
        """
        bad = (~(stats.mean.isfinite() & stats.std.isfinite() & (stats.std > 0))).nonzero()
        if len(bad):
            raise ValueError(f"band {bad[0].item()} has no usable mean and deviation: is the corpus all silence?")
        self.init_bn[1].running_mean.copy_(stats.mean)
        self.init_bn[1].running_var.copy_(stats.std.square())

    def forward(self, waveform: Tensor, layers: bool = False) -> Tensor | list[Tensor]:
        """waveform (batch, sample), 16 kHz -> tokens (batch, token, width); see `forward_mel`.

        A clip under one patch is extended with silence to one.
        """
        one_patch = (self.spec.patch_frames - 1) * HOP
        waveform = F.pad(waveform, (0, max(0, one_patch - waveform.shape[-1])))
        return self.forward_mel(self.front_end(waveform), layers)

    def forward_mel(self, mel: Tensor, layers: bool = False) -> Tensor | list[Tensor]:
        """mel (batch, 64, frame) in dB -> tokens (batch, token, width), token = frame // patch_frames.

        What is longer than a training clip is encoded in pieces of that length, each by itself, as Dasheng
        does; a clip under one patch is extended with its own minimum. layers=True: a list with the tokens
        after each block, the last one normalised, so that layers[-1] is what layers=False returns.
        """
        if mel.ndim != 3 or mel.shape[1] != BANDS or not mel.shape[2]:
            raise ValueError(f"mel of shape {tuple(mel.shape)}: give (batch, {BANDS}, frame), not empty")
        if (missing := self.spec.patch_frames - mel.shape[2]) > 0:
            mel = torch.cat([mel, mel.amin(dim=(1, 2), keepdim=True).expand(-1, BANDS, missing)], dim=2)
        patches = patchify(mel, self.spec.patch_frames)
        outputs = self._encode_pieces(patches, layers)
        return outputs if layers else outputs[-1]

    def _encode_pieces(self, patches: Tensor, layers: bool) -> list[Tensor]:
        batch, tokens, size = patches.shape
        length = self.spec.tokens
        whole = tokens // length * length
        pieces = []
        if whole:  # all whole pieces of all clips in one batch
            z = self.encode(self.embed(patches[:, :whole].reshape(-1, length, size)), layers)
            pieces.append([layer.reshape(batch, whole, -1) for layer in z])
        if tokens > whole:
            pieces.append(self.encode(self.embed(patches[:, whole:]), layers))
        return [torch.cat(layer, dim=1) for layer in zip(*pieces, strict=True)]

    def embed(self, patches: Tensor, places: Tensor | None = None) -> Tensor:
        """patches (batch, n, band * patch_frames) at places (batch, n), default 0..n-1 -> (batch, n, width).

        Kept patches are gathered *before* this, so that masked ones cost nothing.
        """
        batch, n, _ = patches.shape
        if places is None:
            places = torch.arange(n, device=patches.device).expand(batch, n)
        positions = (self.time_pos_embed + self.freq_pos_embed)[0, :, 0].T  # (token, width)
        x = patches.float().reshape(batch * n, BANDS, -1)
        x = self.init_bn(x).reshape(batch, n, -1)
        return self.patch_embed(x) + F.embedding(places, positions)

    def encode(self, x: Tensor, layers: bool = False) -> list[Tensor]:
        """Embedded tokens (batch, n, width) -> [output], or with layers=True tokens after each block.

        The last entry is normalised in both.
        """
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs = [*outputs, x] if layers else [x]  # earlier layers are let go where nobody asked
        return [*outputs[:-1], self.norm(x)]


# --- decoder and loss ---------------------------------------------------------------------------------


class Decoder(nn.Module):
    """Encoded kept tokens -> predicted masked patches; used in pre-training only, then thrown away."""

    def __init__(self, encoder: EncoderSpec, width: int, depth: int, heads: int | None):
        super().__init__()
        heads = heads or max(1, width // HEAD_WIDTH)
        if width % heads:
            raise ValueError(f"decoder width {width} is not divisible by {heads} heads")
        self.input_proj = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(encoder.tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, 4.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.outputlayer = nn.Linear(width, BANDS * encoder.patch_frames)
        self.apply(_initialise)

    def forward(self, latent: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        """latent (batch, n_kept, encoder width), kept and masked places -> (batch, n_masked, patch size)."""
        # Attention does not care for order, so kept tokens simply come first and masked ones last.
        x = torch.cat(
            [
                self.input_proj(latent) + F.embedding(kept, self.pos_embed),
                self.mask_token + F.embedding(masked, self.pos_embed),
            ],
            dim=1,
        )
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.outputlayer(self.norm(last(x, kept.shape[1])))  # what becomes of kept tokens, nobody asks


def normalise_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """patches (batch, n, value) -> the same with mean 0 and variance 1 in each patch, and that mean and SD."""
    mean = patches.mean(dim=2, keepdim=True)
    centred = patches - mean
    variance = centred.square().sum(dim=2, keepdim=True) / (patches.shape[2] - 1)
    std = (variance + 1e-6).sqrt()  # a flat patch stays 0
    return centred / std, mean, std


class MAEOutput(NamedTuple):
    """loss: a scalar in float32. mask: (batch, token) bool, True where the patch was hidden.

    pooled: (batch, width) the encoder's output, mean over the tokens it saw.
    """

    loss: Tensor
    mask: Tensor
    pooled: Tensor


def log_det(z: Tensor) -> Tensor:
    """How evenly embeddings fill their dimensions: ln det(C / c + 0.01 I) / dim, a scalar in float32.

    z: (clip, dim). C: its covariance; c: the mean of that one's diagonal, so that the size of z does not count. At most
    ln 1.01, for directions of equal variance; ln 0.01 is the limit for a single one. Its gradient moves the effective
    rank without a change of architecture, data or rate: an intervention on the rank itself.
    """
    centred = z.float() - z.float().mean(dim=0)
    covariance = centred.T @ centred
    dim = covariance.shape[0]
    scaled = covariance * (dim / covariance.diagonal().sum().clamp_min(1e-12))
    return torch.linalg.slogdet(scaled + 0.01 * torch.eye(dim, device=z.device)).logabsdet / dim


class Reconstruction(NamedTuple):
    """mel: (batch, band, frame) in dB. mask: (batch, token) bool, True where the patch is a prediction."""

    mel: Tensor
    mask: Tensor


class MAE(nn.Module):
    """Masked autoencoder: hide most patches of a log-Mel clip, encode the rest, predict the hidden ones.

    The decoder works on clips of the encoder's target_frames only. decoder_heads None: width / 32, at
    least 1. mask_ratio in (0, 1): share of the groups of `mask_group` neighbouring tokens that are hidden.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder_width: int = 64,
        decoder_depth: int = 2,
        decoder_heads: int | None = None,
        mask_ratio: float = 0.75,
        mask_group: int = 2,
    ):
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio {mask_ratio}: must lie between 0 and 1")
        if mask_group < 1 or encoder.spec.tokens <= mask_group:
            raise ValueError(f"mask_group {mask_group}: must be 1 to {encoder.spec.tokens - 1}, below a clip's tokens")
        self.encoder = encoder
        self.decoder = Decoder(encoder.spec, decoder_width, decoder_depth, decoder_heads)
        self.mask_ratio, self.mask_group = mask_ratio, mask_group

    @classmethod
    def from_config(cls, config: RunConfig) -> MAE:
        """The untrained model of a run."""
        return cls(
            Encoder.from_config(config), config.decoder_width, config.decoder_depth,
            mask_ratio=config.mask_ratio, mask_group=config.mask_group,
        )  # fmt: skip

    def mask_noise(self, batch: int, generator: Generator) -> Tensor:
        """(batch, group) uniform numbers, drawn on the CPU so that every device sees the same masks."""
        return torch.rand(batch, count_groups(self.encoder.spec.tokens, self.mask_group), generator=generator)

    def forward(self, mel: Tensor, generator: Generator | None = None, noise: Tensor | None = None) -> MAEOutput:
        """The loss of a batch: mean squared error on masked patches, each normalised by its own mean and SD.

        mel: (batch, band, frame) in dB, frame of a training clip (a last partial patch is cut); any float
        type. The masks depend on nothing but the CPU generator, or the noise (batch, group), that is given.
        """
        patches = self._patches(mel)
        if (generator is None) == (noise is None):
            raise ValueError("give a generator or noise, one of the two: masks must be reproducible")
        noise = self.mask_noise(len(mel), generator) if noise is None else noise
        kept, masked = split_tokens(noise.to(mel.device), patches.shape[1], self.mask_group, self.mask_ratio)

        latent = self._encode(patches, kept)
        prediction = self.decoder(latent, kept, masked)
        target, _, _ = normalise_patches(take(patches, masked).float())
        return MAEOutput(F.mse_loss(prediction.float(), target), _as_mask(kept, masked), latent.mean(dim=1))

    @torch.no_grad()
    def reconstruct(self, mel: Tensor, mask: Tensor) -> Reconstruction:
        """A picture of what the model expects behind a mask.

        mel: (batch, band, frame) in dB; mask: (batch, token) bool, as many True in every clip. Kept patches
        are shown as they were. The model predicts *normalised* patches: they get the true mean and SD of
        the hidden patch, so level and contrast are given away and only the shape is predicted.
        """
        patches = self._patches(mel).float()
        mask = mask.to(mel.device, torch.bool)
        counts = mask.sum(1)
        if mask.shape != patches.shape[:2] or (counts != counts[0]).any() or not 0 < counts[0] < mask.shape[1]:
            raise ValueError(
                f"mask of shape {tuple(mask.shape)}: give {tuple(patches.shape[:2])} with equally many True in "
                "every clip, neither none nor all"
            )
        order = mask.int().argsort(dim=1, stable=True)
        kept, masked = order.tensor_split([mask.shape[1] - int(counts[0])], dim=1)

        _, mean, std = normalise_patches(take(patches, masked))
        predicted = self.decoder(self._encode(patches, kept), kept, masked).float() * std + mean
        filled = patches.scatter(1, masked[:, :, None].expand_as(predicted), predicted)
        return Reconstruction(unpatchify(filled, self.encoder.spec.patch_frames), mask)

    def _patches(self, mel: Tensor) -> Tensor:
        spec = self.encoder.spec
        if mel.ndim != 3 or mel.shape[1] != BANDS or mel.shape[2] // spec.patch_frames != spec.tokens:
            raise ValueError(f"mel of shape {tuple(mel.shape)}: give (batch, {BANDS}, {spec.target_frames})")
        return patchify(mel, spec.patch_frames)

    def _encode(self, patches: Tensor, kept: Tensor) -> Tensor:
        return self.encoder.encode(self.encoder.embed(take(patches, kept), kept))[-1]  # (batch, n_kept, width)


def _as_mask(kept: Tensor, masked: Tensor) -> Tensor:
    mask = torch.ones(len(kept), kept.shape[1] + masked.shape[1], dtype=torch.bool, device=kept.device)
    return mask.scatter(1, kept, False)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay; biases, norms, positions and the mask token do not."""
    plain, decayed = [], []
    for name, weight in model.named_parameters():
        is_matrix = weight.ndim >= 2 and not name.endswith("pos_embed")
        (decayed if is_matrix else plain).append(weight)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


# --- checkpoints --------------------------------------------------------------------------------------


def save_encoder(encoder: Encoder, path: str | Path) -> None:
    """Write {"model": state dict, "config": Dasheng's configuration}, which `dasheng` loads too."""
    state = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    content = {"model": state, "config": encoder.spec.to_dasheng()}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """Read an encoder that `save_encoder` or Dasheng wrote; no code in the file is run.

    Raises FileNotFoundError, or ValueError naming the file where it is damaged or of another shape.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}, not a dict")
        state, spec = content["model"], EncoderSpec.from_dasheng(content["config"])
        encoder = Encoder(**vars(spec))
        encoder.load_state_dict(state, strict=True)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not an encoder checkpoint that can be read here ({error})") from error
    return encoder.eval().to(device)
