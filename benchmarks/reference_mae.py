"""The public Dasheng formulation of a masked autoencoder's training step, written plainly: the benchmark's peer.

What it does and `rankscale.mae` does not: embed every patch and then drop three quarters of them; attention
as two matrix products with an explicit softmax; put kept and mask tokens back in time order; predict every
patch, kept ones too, and weigh the error by the mask; compute the Mel spectrogram a second time for the
target; take decibel floor and input statistics over the batch. Parameter names are those of PyPI `dasheng`,
so that a test can show that both give the same loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

BANDS, PATCH_FRAMES = 64, 4


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        head = width // self.heads
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, head).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) * head**-0.5, dim=-1)
        weights = torch.nan_to_num(weights)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(1, width, (BANDS, PATCH_FRAMES), stride=(BANDS, PATCH_FRAMES))


class Encoder(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, tokens: int):
        super().__init__()
        mel = MelSpectrogram(16_000, n_fft=512, win_length=512, hop_length=160, f_min=0, f_max=8000, n_mels=BANDS)
        self.front_end = nn.Sequential(mel, AmplitudeToDB(top_db=120))
        self.init_bn = nn.Sequential(nn.Identity(), nn.BatchNorm2d(BANDS, momentum=0.01))
        self.patch_embed = PatchEmbed(width)
        self.time_pos_embed = nn.Parameter(torch.randn(1, width, 1, tokens) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, width, 1, 1) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, waveform: Tensor, mask_ratio: float, group: int) -> tuple[Tensor, Tensor, Tensor]:
        mel = self.front_end(waveform)  # (batch, band, frame)
        mel = self.init_bn(mel[:, :, None]).transpose(1, 2)  # (batch, 1, band, frame)
        x = self.patch_embed.proj(mel) + self.time_pos_embed + self.freq_pos_embed
        x = x.flatten(2).transpose(1, 2)  # (batch, token, width)

        batch, tokens, width = x.shape
        n_kept = int(tokens * (1 - mask_ratio))
        groups = torch.arange(tokens, device=x.device).view(-1, group)
        order = torch.rand(batch, tokens // group, device=x.device).argsort(dim=1)
        order = groups[order].flatten(1)
        restore = order.argsort(dim=1)
        kept = x.gather(1, order[:, :n_kept, None].repeat(1, 1, width))
        mask = torch.ones(batch, tokens, device=x.device)
        mask[:, :n_kept] = 0
        return self.norm(self.blocks(kept)), mask.gather(1, restore), restore


class Decoder(nn.Module):
    def __init__(self, input_width: int, width: int, depth: int, heads: int, tokens: int):
        super().__init__()
        self.input_proj = nn.Linear(input_width, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))  # one more than is used
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.outputlayer = nn.Linear(width, BANDS * PATCH_FRAMES)

    def forward(self, latent: Tensor, restore: Tensor) -> Tensor:
        x = self.input_proj(latent)
        batch, n_kept, width = x.shape
        tokens = restore.shape[1]
        x = torch.cat([x, self.mask_token.repeat(batch, tokens - n_kept, 1)], dim=1)
        x = x.gather(1, restore[:, :, None].repeat(1, 1, width))
        x = self.blocks(x + self.pos_embed[:, :tokens])
        return self.outputlayer(self.norm(x))  # (batch, token, band * patch_frames)


class ReferenceMAE(nn.Module):
    """waveform (batch, sample) -> loss; frames of a clip = tokens * 4."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        tokens: int,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        mask_group: int = 2,
    ):
        super().__init__()
        self.encoder = Encoder(width, depth, heads, tokens)
        self.decoder = Decoder(width, decoder_width, decoder_depth, decoder_heads, tokens)
        self.mask_ratio, self.mask_group = mask_ratio, mask_group

    def forward(self, waveform: Tensor) -> Tensor:
        latent, mask, restore = self.encoder(waveform, self.mask_ratio, self.mask_group)
        prediction = self.decoder(latent, restore)
        mel = self.encoder.front_end(waveform)
        target = nn.functional.unfold(mel[:, None], (BANDS, PATCH_FRAMES), stride=(BANDS, PATCH_FRAMES))
        target = target.transpose(1, 2)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        error = (prediction - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
        return (error * mask).sum() / mask.sum()
