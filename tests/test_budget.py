"""Costs from the configuration against the modules themselves and PyTorch's own FLOP counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rankscale.budget import budget, encoder_forward_flop, encoder_params
from rankscale.config import RunConfig
from rankscale.mae import MAE, EncoderSpec

torch.set_num_threads(1)

CONFIGS = [
    RunConfig(steps=3, batch=2),
    RunConfig(
        encoder="en96-3", heads=2, mlp_ratio=2.5, patch_frames=8, decoder_width=48, decoder_depth=3,
        mask_ratio=0.6, mask_group=3, clip_s=2.56, steps=2, batch=3,
    ),
    RunConfig(encoder="en32-1", mask_group=3, mask_ratio=0.9, steps=1, batch=1),  # 32 tokens: a short group
]  # fmt: skip


def count_flop(run) -> int:
    """Explicit attention, because the counter knows nothing of the CPU's fused one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_the_modules(config):
    model, cost = MAE.from_config(config), budget(config)
    assert cost.encoder_params == sum(p.numel() for p in model.encoder.parameters())
    assert cost.decoder_params == sum(p.numel() for p in model.decoder.parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_flop_of_training_are_those_counted(config):
    model = MAE.from_config(config)
    mel = torch.randn(config.batch, 64, config.frames)
    counted = count_flop(lambda: model(mel, torch.Generator()).loss.backward())
    cost = budget(config)
    assert cost.train_flop == config.steps * counted
    assert cost.encoder_flop + cost.decoder_flop == cost.train_flop


@pytest.mark.parametrize("config", CONFIGS)
def test_flop_of_the_encoder_and_of_an_embedding_are_those_counted(config):
    model = MAE.from_config(config)
    mel = torch.randn(1, 64, config.frames)
    with torch.no_grad():
        assert budget(config).embed_flop == count_flop(lambda: model.encoder.forward_mel(mel))

    kept = config.tokens - int(model(mel, torch.Generator()).mask.sum())
    patches, places = torch.randn(1, kept, 64 * config.patch_frames), torch.arange(kept)[None]
    with torch.no_grad():
        counted = count_flop(lambda: model.encoder.encode(model.encoder.embed(patches, places)))
    assert budget(config).encoder_flop == 3 * config.steps * config.batch * counted


def test_dasheng_base_has_86_million_parameters():
    spec = EncoderSpec(768, 12, 12, target_frames=1008)
    assert encoder_params(spec) == pytest.approx(86e6, rel=0.01)
    assert encoder_forward_flop(spec, 252) == pytest.approx(2 * 252 * 85e6, rel=0.1)  # 2 FLOP a weight and token


def test_audio_hours_and_tokens():
    config = RunConfig(clips=1000, clip_s=3.6, steps=100, batch=20)
    cost = budget(config)
    assert cost.unique_audio_h == pytest.approx(1.0)
    assert cost.seen_audio_h == pytest.approx(2.0)
    assert cost.seen_tokens == 2000 * 90


def test_clips_that_were_never_drawn_are_not_unique_audio():
    cost = budget(RunConfig(clips=10_000, clip_s=3.6, steps=10, batch=10))
    assert cost.unique_audio_h == cost.seen_audio_h == pytest.approx(0.1)


def test_an_untrained_encoder_costs_nothing_to_train():
    cost = budget(RunConfig(steps=0))
    assert cost.train_flop == cost.seen_tokens == cost.unique_audio_h == 0
    assert cost.embed_flop > 0
