"""The masked autoencoder: against Dasheng, against a plain reference, and piece by piece."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import rankscale.mae as mae_module
from rankscale.config import RunConfig
from rankscale.mae import (
    MAE,
    Encoder,
    EncoderSpec,
    count_groups,
    count_kept,
    decay_groups,
    load_encoder,
    log_det,
    patchify,
    save_encoder,
    split_tokens,
    take,
    unpatchify,
)
from rankscale.mel import LogMel, MelStats, mel_stats

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_mel(batch: int = 4, frames: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 64, frames, generator=seeded(seed)) * 10 - 40


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight and input statistic a random value, so that none is at a telling 0 or 1."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) * 10 - 40)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) * 200 + 50)
            elif value.is_floating_point() and "front_end" not in name:
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(32, 2)
    randomise(encoder)
    return encoder


@pytest.fixture
def model(encoder) -> MAE:
    return MAE(encoder, 32, 1)


# --- against PyPI dasheng -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dasheng():
    return pytest.importorskip("dasheng.pretrained.pretrained").Dasheng


@pytest.fixture(scope="module")
def ours_and_theirs(dasheng):
    torch.manual_seed(0)
    ours = Encoder(96, 3, heads=4, target_frames=1008)
    randomise(ours)
    theirs = dasheng(embed_dim=96, depth=3, num_heads=4).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("seconds", [0.03, 1, 10, 12])
def test_same_weights_give_dasheng_s_output(ours_and_theirs, seconds):
    ours, theirs = ours_and_theirs
    waveform = 0.1 * torch.randn(1, int(16_000 * seconds), generator=seeded(1))
    with torch.no_grad():
        expected = theirs(waveform)
        torch.testing.assert_close(ours(waveform), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1  # there is something to agree on


def test_state_dicts_load_both_ways(ours_and_theirs):
    ours, theirs = ours_and_theirs
    other = Encoder(96, 3, heads=4, target_frames=1008)
    other.load_state_dict(theirs.state_dict(), strict=True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ours.state_dict().items())


def test_our_checkpoint_opens_in_dasheng(dasheng, encoder, tmp_path):
    save_encoder(encoder, tmp_path / "encoder.pt")
    theirs = dasheng.from_pretrained(str(tmp_path / "encoder.pt")).eval()
    waveform = 0.1 * torch.randn(1, 30_000, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(encoder(waveform), theirs(waveform), atol=1e-5, rtol=0)


def test_dasheng_checkpoint_opens_here(dasheng, tmp_path):
    config = {"embed_dim": 48, "depth": 1, "num_heads": 3, "target_length": 200, "patch_size": (64, 4)}
    theirs = dasheng(**config).eval()
    randomise(theirs)
    torch.save({"model": theirs.state_dict(), "config": config}, tmp_path / "theirs.pt")
    ours = load_encoder(tmp_path / "theirs.pt")
    waveform = 0.1 * torch.randn(1, 40_000, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(ours(waveform), theirs(waveform), atol=1e-5, rtol=0)


def test_the_benchmark_s_reference_gives_dasheng_s_loss():
    models = pytest.importorskip("dasheng.train.models")
    path = Path(__file__).parents[1] / "benchmarks" / "reference_mae.py"
    spec = importlib.util.spec_from_file_location("reference_mae", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)

    ours = reference.ReferenceMAE(32, 2, 2, 32, 64, 2, 4)
    theirs = models.AudioTransformerMAE(
        models.AudioTransformerMAE_Encoder(embed_dim=32, depth=2, num_heads=2, target_length=128, group_masking=True),
        models.AudioTransformerMAE_Decoder(
            input_dim=32, outputdim=256, embed_dim=64, depth=2, num_heads=4, num_patches=32
        ),
    )
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    waveform = 0.1 * torch.randn(4, 20_479, generator=seeded())
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        losses.append(model(waveform) if model is ours else model(waveform, return_loss=True))
    torch.testing.assert_close(*losses)


# --- patches and masks ----------------------------------------------------------------------------------


def test_patches_are_time_slices_and_go_back():
    mel = some_mel(2, 20)
    patches = patchify(mel, 4)
    assert patches.shape == (2, 5, 256)
    torch.testing.assert_close(patches[1, 3], mel[1, :, 12:16].flatten())
    assert torch.equal(unpatchify(patches, 4), mel)
    assert torch.equal(patchify(some_mel(2, 23), 4), patchify(some_mel(2, 23)[..., :20], 4))


def test_patch_projection_equals_the_convolution(encoder):
    mel = some_mel(3, 40)
    mine = encoder.patch_embed(patchify(mel, 4))
    theirs = encoder.patch_embed.proj(mel[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-6)


def test_input_norm_equals_batch_norm_in_evaluation(encoder):
    norm, mel = encoder.init_bn[1], some_mel()
    expected = F.batch_norm(mel, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    torch.testing.assert_close(encoder.init_bn(mel), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(2, 70), group=st.integers(1, 6), ratio=st.floats(0.02, 0.98), seed=st.integers(0, 99))
def test_masks_hold_exact_counts_of_whole_groups(tokens, group, ratio, seed):
    groups = count_groups(tokens, group)
    if groups < 2:
        with pytest.raises(ValueError, match="longer clips"):
            count_kept(tokens, group, ratio)
        return
    kept, masked = split_tokens(torch.rand(3, groups, generator=seeded(seed)), tokens, group, ratio)

    n_kept = min(max(round((1 - ratio) * groups), 1), groups - 1) * group
    assert kept.shape == (3, n_kept) and masked.shape == (3, tokens - n_kept) and n_kept < tokens
    for clip in range(3):
        assert sorted([*kept[clip].tolist(), *masked[clip].tolist()]) == list(range(tokens))
        split = set((kept[clip] // group).tolist()) & set((masked[clip] // group).tolist())
        assert len(split) <= (1 if tokens % group else 0)


def test_groups_with_the_smallest_noise_are_kept():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.8], [0.2, 0.3, 0.9, 0.9]])
    kept, masked = split_tokens(noise, 8, 2, 0.75)
    assert kept.tolist() == [[2, 3], [0, 1]]
    assert masked.tolist() == [[4, 5, 6, 7, 0, 1], [2, 3, 4, 5, 6, 7]]


def test_masks_depend_on_the_generator_alone(model):
    torch.manual_seed(1)
    first = model(some_mel(), seeded(5))
    torch.manual_seed(2)
    again = model(some_mel(seed=1), seeded(5))
    assert torch.equal(first.mask, again.mask)
    assert not torch.equal(first.mask, model(some_mel(), seeded(6)).mask)
    assert len({tuple(row.tolist()) for row in first.mask}) > 1  # clips differ
    torch.testing.assert_close(model(some_mel(), noise=model.mask_noise(4, seeded(5))).loss, first.loss)


def test_all_groups_are_masked_equally_often():
    kept, _ = split_tokens(torch.rand(4000, 16, generator=seeded()), 32, 2, 0.75)
    share = torch.bincount(kept.flatten(), minlength=32) / 4000
    assert (share - 0.25).abs().max() < 0.04


@pytest.mark.parametrize(("generator", "noise"), [(None, None), (seeded(), torch.rand(4, 16))])
def test_masks_need_one_source(model, generator, noise):
    with pytest.raises(ValueError, match="generator or noise"):
        model(some_mel(), generator, noise)


# --- encoder --------------------------------------------------------------------------------------------


def test_embedding_kept_patches_equals_embedding_all_and_gathering(encoder):
    patches = patchify(some_mel(), 4)
    kept, _ = split_tokens(torch.rand(4, 16, generator=seeded()), 32, 2, 0.75)
    torch.testing.assert_close(
        encoder.embed(take(patches, kept), kept), take(encoder.embed(patches), kept), atol=1e-6, rtol=1e-5
    )


def test_attention_is_softmax_of_scaled_products(encoder):
    attention, x = encoder.blocks[0].attn, torch.randn(2, 5, 32, generator=seeded())
    q, k, v = attention.qkv(x).chunk(3, dim=-1)  # one head
    expected = attention.proj((q @ k.transpose(1, 2) / 32**0.5).softmax(-1) @ v)
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_long_clips_are_encoded_in_pieces(encoder):
    mel = some_mel(2, 128 * 2 + 41)
    with torch.no_grad():
        pieces = [encoder.forward_mel(piece) for piece in mel.split(128, dim=2)]
        torch.testing.assert_close(encoder.forward_mel(mel), torch.cat(pieces, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 200, 480, 20_000])
def test_batch_size_changes_nothing(encoder, samples):
    waveform = 0.1 * torch.randn(5, samples, generator=seeded())
    waveform[0] *= 1e-5
    with torch.no_grad():
        together = encoder(waveform)
        assert together.shape == (5, max(1, (samples // 160 + 1) // 4), 32) and together.isfinite().all()
        torch.testing.assert_close(together[:1], encoder(waveform[:1]), atol=1e-5, rtol=1e-5)


def test_less_than_a_patch_is_extended_with_its_minimum(encoder):
    mel = some_mel(2, 3)
    floor = mel.amin(dim=(1, 2), keepdim=True).expand(2, 64, 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_mel(mel), encoder.forward_mel(torch.cat([mel, floor], 2)))


def test_layers_end_in_the_output(encoder):
    mel = some_mel(2, 200)
    with torch.no_grad():
        layers, output = encoder.forward_mel(mel, layers=True), encoder.forward_mel(mel)
        first = encoder.blocks[0](encoder.embed(patchify(mel[:, :, :128], 4)))
    assert len(layers) == 2 and all(layer.shape == (2, 50, 32) for layer in layers)
    assert torch.equal(layers[-1], output)
    torch.testing.assert_close(layers[0][:, :32], first)


def test_input_statistics_are_set_and_never_move(model):
    front_end = LogMel()
    mels = [front_end(0.1 * torch.randn(8, 20_480, generator=seeded(i))) for i in range(3)]
    stats = mel_stats(mels)
    fresh = Encoder(32, 1)
    fresh.set_input_stats(stats)
    normal = fresh.init_bn(torch.cat(mels))
    torch.testing.assert_close(normal.mean((0, 2)), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2)), torch.ones(64), atol=1e-2, rtol=0)

    norm = model.encoder.init_bn[1]
    before = norm.running_mean.clone(), norm.running_var.clone()
    model.train()(some_mel(), seeded()).loss.backward()
    assert torch.equal(norm.running_mean, before[0]) and torch.equal(norm.running_var, before[1])


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_unusable_statistics_name_the_band(encoder, bad):
    std = torch.ones(64)
    std[7] = bad
    with pytest.raises(ValueError, match="band 7"):
        encoder.set_input_stats(MelStats(torch.zeros(64), std))


@pytest.mark.parametrize("shape", [(64, 128), (1, 63, 128), (1, 64, 0)])
def test_bad_mel_shapes_are_named(encoder, shape):
    with pytest.raises(ValueError, match="frame"):
        encoder.forward_mel(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"width": 0}, "width 0"),
        ({"depth": 0}, "depth 0"),
        ({"heads": 5}, "5 heads"),
        ({"target_frames": 3}, "target_frames 3"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
    ],
)
def test_impossible_encoders_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        EncoderSpec(**({"width": 32, "depth": 1} | changes))


# --- loss -----------------------------------------------------------------------------------------------


def plain_loss(model: MAE, mel: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Clip by clip and patch by patch: embed all, keep some, put all back in time order, compare."""
    encoder, decoder, errors = model.encoder, model.decoder, []
    for clip, hidden in zip(mel, mask, strict=True):
        normal = encoder.init_bn(clip[None])[:, None]
        x = encoder.patch_embed.proj(normal) + encoder.time_pos_embed + encoder.freq_pos_embed
        x = x[0, :, 0].T[~hidden][None]
        for block in encoder.blocks:
            x = block(x)
        latent = decoder.input_proj(encoder.norm(x))

        full = decoder.mask_token.expand(1, len(hidden), -1).clone()
        full[0, ~hidden] = latent[0]
        full = full + decoder.pos_embed
        for block in decoder.blocks:
            full = block(full)
        predicted = decoder.outputlayer(decoder.norm(full))[0]

        for token in hidden.nonzero().flatten():
            patch = clip[:, 4 * token : 4 * token + 4].flatten()
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((predicted[token] - target).square().mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize(("group", "ratio"), [(1, 0.5), (2, 0.75), (3, 0.8)])
def test_loss_equals_a_plain_reference(encoder, group, ratio):
    model = MAE(encoder, 32, 2, mask_ratio=ratio, mask_group=group)
    mel = some_mel(3)
    output = model(mel, seeded())
    torch.testing.assert_close(output.loss, plain_loss(model, mel, output.mask), atol=1e-5, rtol=1e-5)

    gradients = torch.autograd.grad(output.loss, list(model.parameters()))
    expected = torch.autograd.grad(plain_loss(model, mel, output.mask), list(model.parameters()))
    for name, mine, plain in zip(dict(model.named_parameters()), gradients, expected, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_every_weight_learns_and_kept_positions_alone_reach_the_encoder(model):
    output = model(some_mel(1), seeded())
    output.loss.backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    seen = model.encoder.time_pos_embed.grad[0, :, 0].abs().sum(0) > 0
    assert torch.equal(seen, ~output.mask[0])


def test_hidden_patches_do_not_leak_into_the_prediction(model):
    mel, mask = some_mel(2), torch.zeros(2, 32, dtype=torch.bool)
    mask[0, :8] = mask[1, 20:28] = True
    hidden = mask.repeat_interleave(4, dim=1)[:, None].expand_as(mel)
    kept, masked = mask.int().argsort(dim=1, stable=True).split([24, 8], dim=1)
    other = torch.where(hidden, some_mel(2, seed=9), mel)
    with torch.no_grad():
        predictions = [model.decoder(model._encode(patchify(m, 4), kept), kept, masked) for m in (mel, other)]
        nudged = model.decoder(model._encode(patchify(torch.where(hidden, mel, mel + 3), 4), kept), kept, masked)
    assert torch.equal(*predictions)
    assert not torch.allclose(predictions[0], nudged)


def test_loss_does_not_care_for_level(model):
    """Targets are normalised patch by patch: a louder clip has the same target."""
    target = mae_module.normalise_patches(patchify(some_mel(), 4))[0]
    louder = mae_module.normalise_patches(patchify(some_mel() * 2 + 20, 4))[0]
    torch.testing.assert_close(target, louder, atol=1e-4, rtol=1e-4)


def test_silence_has_a_finite_loss_and_gradient(model):
    loss = model(torch.full((2, 64, 128), -100.0), seeded()).loss
    loss.backward()
    assert loss.isfinite() and all(weight.grad.isfinite().all() for weight in model.parameters())


def test_half_precision_storage_and_autocast_come_close(model):
    mel = some_mel()
    with torch.no_grad():
        exact = model(mel, seeded()).loss
        torch.testing.assert_close(model(mel.half(), seeded()).loss, exact, atol=1e-3, rtol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(mel, seeded()).loss
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=2e-2, rtol=2e-2)


def test_training_reduces_the_loss_on_held_out_clips():
    """Clips with something to learn: each is one of four spectra that drift in time."""
    generator = seeded()
    shapes = torch.randn(4, 64, 1, generator=generator).cumsum(1)
    drift = torch.sin(torch.arange(128) / 20)
    kind = torch.randint(4, (96,), generator=generator)
    mel = shapes[kind] * (1 + drift) + torch.randn(96, 64, 128, generator=generator) - 40
    torch.manual_seed(0)
    model = MAE(Encoder(32, 2), 32, 1)
    model.encoder.set_input_stats(mel_stats([mel[:64]]))
    optimizer = torch.optim.AdamW(decay_groups(model, 0.05), lr=3e-3)

    with torch.no_grad():
        before = model(mel[64:], seeded(1)).loss.item()
    for _ in range(40):
        loss = model(mel[:64], generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = model(mel[64:], seeded(1)).loss.item()
    assert before > 0.9 and after < 0.6 * before


def test_clips_of_another_length_are_refused(model):
    assert model(some_mel(frames=131), seeded()).loss.isfinite()  # a last partial patch is cut
    for frames in (127, 132):
        with pytest.raises(ValueError, match="128"):
            model(some_mel(frames=frames), seeded())


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"mask_ratio": 0.0}, "mask_ratio"), ({"mask_ratio": 1.0}, "mask_ratio"), ({"mask_group": 32}, "mask_group"),
     ({"decoder_heads": 5}, "5 heads")],
)  # fmt: skip
def test_impossible_models_are_refused(encoder, changes, match):
    with pytest.raises(ValueError, match=match):
        MAE(encoder, **changes)


def test_noise_of_another_shape_is_refused(model):
    with pytest.raises(ValueError, match="one number a group"):
        model(some_mel(), noise=torch.rand(4, 15))


def test_a_run_s_configuration_decides_the_model():
    config = RunConfig(encoder="en96-2", heads=2, decoder_width=48, decoder_depth=3, mask_ratio=0.5, mask_group=4)
    model = MAE.from_config(config)
    assert model.encoder.spec == EncoderSpec(96, 2, 2, 4.0, 4, 128)
    assert len(model.decoder.blocks) == 3 and model.decoder.norm.normalized_shape == (48,)
    assert (model(some_mel(), seeded()).mask.sum(1) == 16).all()


def test_same_seed_same_weights():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(MAE(Encoder(32, 1)).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert not torch.equal(models[0]["encoder.time_pos_embed"], models[2]["encoder.time_pos_embed"])


def test_only_matrices_decay(model):
    decayed, plain = decay_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    decays = {names[id(weight)] for weight in decayed["params"]}
    assert decays == {n for n in names.values() if n.endswith("weight") and "norm" not in n and "init_bn" not in n}


# --- pictures -------------------------------------------------------------------------------------------


def test_reconstruction_keeps_what_was_seen_and_fills_what_was_not(model):
    mel, mask = some_mel(2), torch.zeros(2, 32, dtype=torch.bool)
    mask[0, 4:12] = mask[1, ::4] = True
    picture = model.reconstruct(mel, mask)
    hidden = mask.repeat_interleave(4, dim=1)[:, None].expand_as(mel)
    assert picture.mel.shape == mel.shape and torch.equal(picture.mask, mask)
    assert torch.equal(picture.mel[~hidden], mel[~hidden])
    assert (picture.mel[hidden] != mel[hidden]).all()


def test_reconstruction_error_is_the_loss(model):
    mel = some_mel()
    output = model(mel, seeded())
    picture = patchify(model.reconstruct(mel, output.mask).mel, 4)[output.mask]
    truth = patchify(mel, 4)[output.mask]
    std = (truth.var(dim=1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(((picture - truth) / std).square().mean(), output.loss.detach(), atol=1e-4, rtol=1e-4)


def test_reconstruction_refuses_impossible_masks(model):
    uneven = torch.zeros(2, 32, dtype=torch.bool)
    uneven[0, 0] = True
    for mask in (uneven, torch.zeros(2, 32), torch.ones(2, 32), torch.ones(2, 31)):
        with pytest.raises(ValueError, match="equally many"):
            model.reconstruct(some_mel(2), mask)


# --- checkpoints ----------------------------------------------------------------------------------------


def test_checkpoint_round_trip(encoder, tmp_path):
    path = tmp_path / "new" / "encoder.pt"
    save_encoder(encoder, path)
    again = load_encoder(path)
    assert again.spec == encoder.spec
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert torch.load(path, weights_only=True).keys() == {"model", "config"}
    assert [p.name for p in path.parent.iterdir()] == ["encoder.pt"]


def test_damaged_and_foreign_checkpoints_are_named(encoder, tmp_path):
    path = tmp_path / "encoder.pt"
    with pytest.raises(FileNotFoundError):
        load_encoder(path)
    save_encoder(encoder, path)
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pt")
    torch.save(content | {"config": content["config"] | {"depth": 3}}, tmp_path / "deeper.pt")
    torch.save(content | {"config": content["config"] | {"hop_size": 320}}, tmp_path / "hop.pt")
    torch.save(content | {"config": content["config"] | {"patch_stride": [64, 2]}}, tmp_path / "overlap.pt")
    for name, data in (("cut.pt", whole[: len(whole) // 2]), ("empty.pt", b""), ("text.pt", b"hello, I am no model")):
        (tmp_path / name).write_bytes(data)
    for name in ("bare", "deeper", "hop", "overlap", "cut", "empty", "text"):
        with pytest.raises(ValueError, match=f"{name}.pt: not an encoder checkpoint"):
            load_encoder(tmp_path / f"{name}.pt")


class Harmful:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": Harmful(tmp_path / "ran"), "config": {}}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="not an encoder checkpoint"):
        load_encoder(tmp_path / "harmful.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_same_masks_and_nearly_the_same_loss(model):
    expected = model(some_mel(), seeded())
    output = model.cuda()(some_mel().cuda(), seeded())
    assert torch.equal(output.mask.cpu(), expected.mask)
    torch.testing.assert_close(output.loss.cpu(), expected.loss, atol=1e-3, rtol=1e-3)


# --- the intervention -------------------------------------------------------------------------------------


def test_log_det_is_greatest_for_directions_of_equal_variance():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 9)) - rng.normal(size=(64, 9)).mean(0))[0][:, :8]
    basis = basis - basis.mean(0)
    even = torch.as_tensor(np.linalg.qr(basis)[0])  # 8 orthonormal columns; nearly centred
    assert float(log_det(even)) == pytest.approx(np.log(1.01), abs=2e-3)
    assert float(log_det(100 * even + 7)) == pytest.approx(float(log_det(even)), abs=1e-4)
    single = torch.randn(64, 1) @ torch.randn(1, 8)
    assert float(log_det(single)) == pytest.approx((7 * np.log(0.01) + np.log(8.01)) / 8, abs=2e-2)


def test_log_det_agrees_with_numpy_and_has_a_gradient_where_rank_is_missing():
    z = torch.randn(5, 8, requires_grad=True)  # fewer clips than dimensions
    centred = z.detach().double().numpy() - z.detach().double().numpy().mean(0)
    covariance = centred.T @ centred
    wanted = np.linalg.slogdet(covariance * 8 / np.trace(covariance) + 0.01 * np.eye(8))[1] / 8
    value = log_det(z)
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-4)
    value.backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().max() > 0
    assert torch.isfinite(log_det(torch.zeros(4, 8)))
