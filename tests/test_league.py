"""The league of label-free numbers: constructed embeddings with known answers, and the definitions pinned."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from rankscale import league as room
from rankscale.config import profile
from rankscale.embed import encoder_embedding
from rankscale.league import NUMBERS, TARGETS, Seen, augment, cka, coding_rate, league, ridge_r2, two_nn
from rankscale.mae import Encoder


def clips(n, frames=64, seed=0):
    """Log-Mel clips from a formula: a sloping spectrum with bumps that move and beat. Needs no synthesiser."""
    rng = np.random.default_rng(seed)
    band, time = np.arange(64)[:, None], np.arange(frames) / 100
    level, slope, rate, depth, place, drift = (u[:, None, None] for u in rng.random((6, n)))
    bump = np.exp(-(((band - 64 * place - 30 * (drift - 0.5) * time) / 5) ** 2))
    beat = 6 * depth * np.sin(2 * np.pi * (2 + 20 * rate) * time)
    grain = rng.normal(size=(n, 64, frames))
    return torch.from_numpy(-60 + 20 * level - 0.5 * slope * band + 25 * bump + beat + grain).float()


MEL = clips(400)


def blocks(size=64, mel=MEL):
    return mel.split(size)


def random_map(rows, columns, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns))).float()


def read(*targets, dim=None):
    """An embedding that holds acoustic targets: as they are, or mixed into `dim` directions."""

    def embed(mel):
        held = torch.cat([target(mel) for target in targets], dim=1)
        return held if dim is None else held @ random_map(held.shape[1], dim)

    return embed


def seen(z, z_init=None, mel=MEL[:8]):
    """Material with these embeddings, for numbers that look at z only."""
    made = room.look(lambda mel: torch.ones(len(mel), 2), None, [mel])
    return Seen(z, z if z_init is None else z_init, made.views, made.stats, made.targets)


def gaussian(n, scales, seed=0):
    return np.random.default_rng(seed).standard_normal((n, len(scales))) * np.asarray(scales)


# --- the whole league -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    config = profile("smoke", encoder="en40-1", heads=1)
    torch.manual_seed(0)
    encoder, initial = Encoder.from_config(config), Encoder.from_config(config)
    return encoder_embedding(encoder), encoder_embedding(initial)


def test_every_number_of_an_encoder_is_finite(whole):
    result = league(*whole, blocks())
    assert result.missing == {}
    assert set(result.values) == set(NUMBERS)
    assert np.isfinite([*result.values.values()]).all()
    assert result.version == "v1"


def test_a_second_look_and_other_blocks_give_the_same(whole):
    one, two, three = (league(*whole, blocks(size)).values for size in (64, 64, 50))
    assert one == two
    assert one == pytest.approx(three, rel=1e-3, abs=1e-4)  # float32 products round by the size of a batch


def test_an_untrained_encoder_is_its_own_initialisation(whole):
    values = league(whole[0], None, blocks()).values
    assert values == league(whole[0], whole[0], blocks()).values
    assert values["cka_init"] == pytest.approx(1)
    assert values["rankme_log_gain"] == pytest.approx(0, abs=1e-9)


def test_a_collapsed_encoder_has_reasons_and_no_numbers_where_none_are_defined():
    result = league(lambda mel: torch.ones(len(mel), 8), lambda mel: MEL[: len(mel), :8, 0], blocks())
    assert result.values["rankme"] == pytest.approx(1, abs=1e-4)
    assert result.values["uniformity"] == pytest.approx(0, abs=1e-9)
    assert result.values["self_cluster"] == pytest.approx(1)
    assert result.values["rankme_log_gain"] < 0
    for name in ("rankme_centred", "rankme_standardised", "two_nn", "cka_init", "lidar", "pseudo_probe"):
        assert result.values[name] is None
        assert len(result.missing[name]) > 10
    assert set(result.missing) == {name for name, value in result.values.items() if value is None}


def test_too_few_clips_for_the_width_give_no_numbers():
    result = league(read(room.quarters), None, blocks())
    assert set(result.values.values()) == {None}
    assert set(result.missing.values()) == {"only 400 clips for 256 dimensions"}


def test_no_more_clips_are_read_than_the_league_takes(monkeypatch):
    monkeypatch.setattr(room, "LEAGUE_CLIPS", 100)
    monkeypatch.setattr(room, "VIEW_CLIPS", 70)

    def endless():
        yield from blocks()
        raise AssertionError("read on")

    room._view_draws.cache_clear()
    made = room.look(read(room.quefrency), None, endless())
    room._view_draws.cache_clear()
    assert len(made.z) == len(made.stats) == 100
    assert made.views.shape == (70, 8, 16)


@pytest.mark.parametrize(
    ("embed", "mels", "message"),
    [
        (room.quefrency, [], "no clips"),
        (room.quefrency, [MEL[:4, :63]], "shape"),
        (room.quefrency, [MEL[:4], MEL[:4, :, :50]], "all of one length"),
        (room.quefrency, [MEL[:4, :, :3]], "frame >= 4"),
        (room.quefrency, [MEL[:4], MEL[:4] * torch.nan], "log-Mel of clips 4 to 7"),
        (lambda mel: room.quefrency(mel) / (mel[:, :1, 0] != MEL[3, 0, 0]), [MEL[:8]], "embeddings of clip 3"),
        (lambda mel: mel, [MEL[:8]], "pool over time"),
        (lambda mel: room.quefrency(mel)[1:], [MEL[:8]], "for 8 clips"),
    ],
)
def test_bad_input_is_named(embed, mels, message):
    with pytest.raises(ValueError, match=message):
        league(embed, None, mels)


# --- frozen -----------------------------------------------------------------------------------------------

# Means and standard deviations of each family's targets on the fixed clips.
TARGET_DIGESTS = {
    "modulation": (48, 0.954994, 1.44146),
    "quarters": (256, 1.2666e-08, 2.0619),
    "quefrency": (16, 2.40826, 10.5367),
    "random_conv": (48, 0.468203, 0.0641646),
}
# All numbers for two linear read-outs of the fixed clips.
GOLDEN = {
    "rankme": 11.1005,
    "rankme_centred": 11.8343,
    "rankme_standardised": 19.0416,
    "effective_rank_squared": 5.43203,
    "alpha_req": 6.46446,
    "stable_rank": 1.59295,
    "participation_ratio": 3.64832,
    "nesum": 2.11766,
    "self_cluster": 0.247734,
    "uniformity": -1.79372,
    "coding_rate": 9.4213,
    "two_nn": 2.91355,
    "cka_init": 0.516888,
    "rankme_log_gain": -0.510491,
    "lidar": 8.73814,
    "logmel_from_z": 0.610838,
    "z_from_logmel": 0.928,
    "probe_modulation": 0.135637,
    "probe_quarters": 0.661307,
    "probe_quefrency": 0.998949,
    "probe_random_conv": 0.824889,
    "pseudo_probe": 0.655196,
}


def golden_pair():
    """Targets, mixed, beside single cells of the clips, so that no direction is left to rounding."""
    one, two = read(room.random_conv, room.quefrency, dim=24), read(room.quefrency, room.quarters, dim=24)
    cells = lambda mel: mel[:, ::3, 5] / 2 + 30  # noqa: E731
    return (lambda mel: torch.cat([one(mel), cells(mel)], 1)), (lambda mel: torch.cat([two(mel), cells(mel)], 1))


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_frozen(name):
    target = TARGETS[name](MEL).double()
    digest = (target.shape[1], float(target.mean()), float(target.std(0).mean()))
    assert digest == pytest.approx(TARGET_DIGESTS[name], rel=1e-3, abs=1e-5)


def test_numbers_are_frozen():
    """Whoever changes a definition gives LEAGUE_VERSION another value, and these numbers with it."""
    assert room.LEAGUE_VERSION == "v1"
    assert league(*golden_pair(), blocks()).values == pytest.approx(GOLDEN, rel=2e-3, abs=1e-4)


# --- spectra and geometry ---------------------------------------------------------------------------------

MORE_WITH_NOISE = (
    "rankme", "rankme_centred", "rankme_standardised", "effective_rank_squared", "participation_ratio", "nesum",
    "stable_rank", "coding_rate", "two_nn",
)  # fmt: skip
LESS_WITH_NOISE = ("alpha_req", "self_cluster", "uniformity")


def test_noise_in_every_direction_moves_each_number_its_way():
    signal = gaussian(1000, 1 / np.arange(1, 9)) @ gaussian(8, np.ones(40), seed=1)
    quiet, loud = (seen(signal + scale * gaussian(1000, np.ones(40), seed=2)) for scale in (0.05, 1.0))
    for name in MORE_WITH_NOISE:
        assert NUMBERS[name](loud) > 1.05 * NUMBERS[name](quiet), name
    for name in LESS_WITH_NOISE:
        assert NUMBERS[name](loud) < NUMBERS[name](quiet), name


def test_a_scale_and_a_rotation_change_what_they_should():
    z = gaussian(500, 1 / np.arange(1, 41)) + 0.2
    turn = np.linalg.qr(gaussian(40, np.ones(40), seed=1))[0]
    for name in (*MORE_WITH_NOISE, *LESS_WITH_NOISE):
        assert NUMBERS[name](seen(7 * z)) == pytest.approx(NUMBERS[name](seen(z)), rel=1e-6), name
        if name != "rankme_standardised":
            assert NUMBERS[name](seen(z @ turn)) == pytest.approx(NUMBERS[name](seen(z)), rel=1e-6), name
    assert room.rankme_standardised(z * np.arange(1, 41)) == pytest.approx(room.rankme_standardised(z))


def test_rankme_standardised_leaves_columns_out_that_do_not_vary():
    z = gaussian(500, np.ones(6))
    padded = np.concatenate([z, np.full((500, 3), 2.5)], axis=1)
    assert room.rankme_standardised(padded) == pytest.approx(room.rankme_standardised(z))


def test_coding_rate_at_its_limits():
    line = np.outer(np.linspace(1, 2, 50), np.ones(8))
    assert coding_rate(line) == pytest.approx(np.log(1 + 8 / 0.5) / 2)
    assert coding_rate(np.tile(3 * np.eye(8), (5, 1))) == pytest.approx(8 / 2 * np.log(1 + 1 / 0.5))
    with pytest.raises(ValueError, match="row 2"):
        coding_rate(np.array([[1.0, 0], [0, 1], [0, 0]]))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_cube_in_a_larger_space(dim):
    cube = np.random.default_rng(dim).random((2000, dim))
    assert two_nn(cube @ gaussian(dim, np.ones(30))) == pytest.approx(dim, rel=0.08)


def test_two_nn_leaves_twins_out():
    cube = np.random.default_rng(0).random((1500, 3))
    assert two_nn(np.concatenate([cube, cube[:300]])) == pytest.approx(two_nn(cube), rel=1e-9)
    with pytest.raises(ValueError, match="only 1 clips"):
        two_nn(np.ones((50, 3)))


def test_cka_at_its_limits_and_what_it_ignores():
    x, other = gaussian(2000, 1 / np.arange(1, 6)), gaussian(2000, np.ones(5), seed=1)
    turn = np.linalg.qr(gaussian(5, np.ones(5)))[0]
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 3 * x @ turn + 100) == pytest.approx(1)
    assert cka(x, other) < 0.02
    assert 0.1 < cka(x, x + other) < 0.9
    assert cka(x, other[:, :2]) == pytest.approx(cka(other[:, :2], x))
    with pytest.raises(ValueError, match="same clips"):
        cka(x, x[1:])


def test_training_that_opens_directions_is_a_gain():
    narrow, wide = gaussian(500, [1, 0.01, 0.01, 0.01]), gaussian(500, np.ones(4))
    assert room.rankme_log_gain(seen(wide, narrow)) == pytest.approx(np.log(4 / 1.13), abs=0.1)
    assert room.rankme_log_gain(seen(narrow, wide)) == pytest.approx(-room.rankme_log_gain(seen(wide, narrow)))


# --- views ------------------------------------------------------------------------------------------------

MIDDLE = torch.tensor([[0.5, 0.5, 0.99, 0.5]])  # no shift, no tilt, a floor far down, no change of level


def views_of(mel, **draws):
    chosen = MIDDLE.clone()
    for name, value in draws.items():
        chosen[0, ("shift", "tilt", "floor", "level").index(name)] = value
    return augment(mel, chosen.expand(len(mel), -1))


def test_each_part_of_a_view_does_what_it_says():
    mel = clips(5)
    mel = mel.maximum(mel.amax(dim=(1, 2), keepdim=True) - 40)
    rest = views_of(mel)
    assert torch.allclose(rest, mel, atol=0.2)  # the floor is there, 60 dB down
    assert torch.allclose(views_of(mel, level=1.0), rest + 6, atol=1e-4)
    assert torch.allclose(views_of(mel, level=0.0), rest - 6, atol=1e-4)
    assert torch.allclose(views_of(mel, shift=0.75), rest.roll(8, dims=2), atol=1e-4)
    assert torch.allclose(views_of(mel, shift=0.0), rest.roll(-16, dims=2), atol=1e-4)
    tilt = (views_of(mel, tilt=1.0) - rest).mean(dim=(0, 2))
    assert tilt[[0, -1]].tolist() == pytest.approx([-3, 3], abs=0.2)
    quiet = mel.clone()
    quiet[:, :10] = -100
    raised = views_of(quiet, floor=0.0)
    assert torch.allclose(raised[:, :10].amax(2), quiet.amax(dim=(1, 2))[:, None] - 30, atol=0.1)


def test_views_differ_among_themselves_and_repeat():
    draws = room._view_draws()
    assert draws.shape == (512, 8, 4)
    assert len(draws.flatten(0, 1).unique(dim=0)) == 512 * 8
    one, two = (room._embed_views(room.quefrency, MEL[:6], start=3) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one[2:], room._embed_views(room.quefrency, MEL[2:6], start=5))  # by clip, not by block
    assert (one.std(dim=1) > 1e-3).all()


def test_lidar_counts_no_direction_that_views_scramble():
    """Eight directions of a clip's own, and eight that any change of the clip draws anew."""

    def scrambled(mel):
        key = mel.double().sum(dim=(1, 2), keepdim=True)[..., 0] * torch.arange(1, 9).double() * 1e3
        return key.sin().float()

    def steady(mel):
        return room.quefrency(mel)[:, 4:12]

    alone = league(steady, None, blocks()).values
    both = league(lambda mel: torch.cat([steady(mel), 3 * scrambled(mel)], dim=1), None, blocks()).values
    assert both["rankme"] > 1.5 * alone["rankme"]
    assert both["lidar"] < 1.25 * alone["lidar"]


# --- predictability and the pseudo-probe ------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_an_embedding_that_holds_the_targets_is_found_out(name):
    mel = clips(700, frames=24, seed=1)
    target = TARGETS[name](mel)
    z = target.double().numpy()
    z = z @ gaussian(z.shape[1], np.ones(z.shape[1]))
    assert room.mean_r2(ridge_r2(z, target.double().numpy())) > 0.98
    shuffled = np.random.default_rng(0).permutation(z)
    assert room.mean_r2(ridge_r2(shuffled, target.double().numpy())) < 0.01


def test_families_are_told_apart_and_their_mean_is_the_pseudo_probe():
    values = league(read(room.quefrency), None, blocks()).values
    assert values["probe_quefrency"] > 0.99
    assert values["probe_quarters"] < 0.5
    assert values["pseudo_probe"] == pytest.approx(np.mean([values[f"probe_{name}"] for name in TARGETS]))


def test_log_mel_statistics_predict_each_other_only():
    statistics = room.logmel_embedding("meanstd")
    mixed = random_map(128, 128)
    values = league(lambda mel: statistics(mel) @ mixed, None, blocks()).values
    assert values["z_from_logmel"] > 0.99
    assert values["logmel_from_z"] > 0.95
    noise = lambda mel: (mel[:, :8, 0] * 1e4).sin()  # noqa: E731
    values = league(noise, None, blocks()).values
    assert values["z_from_logmel"] < 0.02
    assert values["logmel_from_z"] < 0.02
    assert values["pseudo_probe"] < 0.02


def test_ridge_is_blind_to_linear_maps_and_keeps_negative_values():
    x = gaussian(300, np.ones(5))
    y = x @ gaussian(5, np.ones(3), seed=1) + gaussian(300, np.ones(3), seed=2)
    turned = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    mixed = np.concatenate([x[:, :3] @ turned, 100 * x[:, 3:] + 7], axis=1)
    assert ridge_r2(mixed, 5 * y - 1) == pytest.approx(ridge_r2(x, y), abs=2e-3)
    assert np.allclose(ridge_r2(x, y), 1 - 1 / np.var(y, axis=0), atol=0.05)
    assert ridge_r2(x, gaussian(300, np.ones(50), seed=3)).min() < 0


def test_targets_that_do_not_vary_are_left_out():
    x = gaussian(100, np.ones(4))
    y = np.stack([x[:, 0], np.full(100, 0.1), np.zeros(100)], axis=1)
    r2 = ridge_r2(x, y)
    assert np.isnan(r2).tolist() == [False, True, True]
    assert room.mean_r2(r2) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="varies"):
        ridge_r2(np.ones((100, 4)), y)


def test_targets_by_hand():
    mel = torch.zeros(1, 64, 128)
    mel[:, :8] = 4 * torch.sin(2 * torch.pi * 10 * torch.arange(128) / 100)  # lowest group, 10 Hz
    table = room.modulation(mel).reshape(6, 8)  # (rate, group)
    assert np.unravel_index(int(table.argmax()), table.shape) == (3, 0)  # 8 to 16 Hz
    assert table[:, 1:].numpy() == pytest.approx(np.log(0.01))

    steps = torch.arange(4.0).repeat_interleave(5).expand(2, 64, 20)
    assert room.quarters(steps).reshape(2, 4, 64)[0, :, 0].tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5])

    wave = torch.cos(torch.pi * 3 * (torch.arange(64) + 0.5) / 64)[None, :, None].expand(1, 64, 8)
    order = room.quefrency(wave - 40)[0]
    assert int(order.argmax()) == 2  # orders count from 1
    assert order[2].item() == pytest.approx(32**0.5, rel=1e-4)
    assert order.abs().sum().item() == pytest.approx(32**0.5, rel=1e-4)


def test_what_the_targets_are_blind_to():
    mel = clips(3)
    assert torch.allclose(room.random_conv(mel + 9), room.random_conv(mel), atol=1e-4)
    assert torch.allclose(room.quefrency(mel + 9), room.quefrency(mel), atol=1e-3)
    assert torch.allclose(room.quarters(mel + 9), room.quarters(mel), atol=1e-3)
    assert torch.allclose(room.quefrency(mel.flip(2)), room.quefrency(mel), atol=1e-3)
    assert torch.allclose(room.modulation(mel + 9), room.modulation(mel), atol=1e-3)


@pytest.mark.parametrize("frames", [4, 5, 19, 128, 300])
def test_clips_of_any_length_have_targets(frames):
    mel = clips(4, frames)
    for target in TARGETS.values():
        assert target(mel).isfinite().all()
        assert target(mel).shape[0] == 4
