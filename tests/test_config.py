"""Run configurations: validation, names, hashes."""

import pytest
from pydantic import ValidationError

from rankscale.config import EncoderName, RunConfig, profile


@pytest.mark.parametrize(("name", "width", "depth"), [("en64-4", 64, 4), ("en128-12", 128, 12)])
def test_encoder_names_parse_and_print(name, width, depth):
    parsed = EncoderName.parse(name)
    assert parsed == (width, depth)
    assert str(parsed) == name


@pytest.mark.parametrize("name", ["64-4", "en64", "en64-0", "en064-4", "en64-4x", "vit-b"])
def test_bad_encoder_names_say_how_to_write_one(name):
    with pytest.raises(ValidationError, match="for example en64-4"):
        RunConfig(encoder=name)


@pytest.mark.parametrize(
    "change",
    [
        {"mask_ratio": 1.0},
        {"lr": 0},
        {"lr": float("nan")},
        {"clips": 0},
        {"steps": -1},
        {"colour": "red"},
        {"corpus": ()},
    ],
)
def test_values_out_of_range_and_unknown_fields_are_refused(change):
    with pytest.raises(ValidationError):
        RunConfig(**change)


def test_clips_too_short_for_their_mask_groups_are_refused():
    with pytest.raises(ValidationError, match="use longer clips"):
        RunConfig(clip_s=0.12, mask_group=2)


def test_a_layer_that_the_encoder_lacks_is_refused():
    assert RunConfig(encoder="en64-4", layer=4).layer == 4
    with pytest.raises(ValidationError, match="layer 5: en64-4 has 4 blocks"):
        RunConfig(encoder="en64-4", layer=5)


def test_heads_follow_width_unless_given():
    assert RunConfig(encoder="en32-1").n_heads == 1
    assert RunConfig(encoder="en256-4").n_heads == 8
    assert RunConfig(encoder="en64-4", heads=4).n_heads == 4
    with pytest.raises(ValidationError, match="not divisible"):
        RunConfig(encoder="en64-4", heads=5)


def test_the_hash_is_of_the_changed_fields_only_and_includes_the_seed():
    assert RunConfig().hash == RunConfig(encoder="en64-4", steps=2000).hash
    assert len({RunConfig(seed=seed).hash for seed in range(5)}) == 5


def test_the_hash_and_the_record_do_not_know_where_a_folder_lies():
    here, there = RunConfig(corpus=("synth", "/data/a/pool")), RunConfig(corpus=("synth", "../b/pool"))
    assert here.hash == there.hash
    assert here.portable().corpus == ("synth", "pool")


def test_untrained_runs_of_one_encoder_share_a_record():
    slow, fast = RunConfig(lr=1e-4, mask_ratio=0.5), RunConfig(lr=1e-2, decoder_width=32, batch=8)
    assert slow.untrained() == fast.untrained()
    assert slow.untrained().steps == 0
    assert RunConfig(seed=1).untrained() != RunConfig(seed=2).untrained()


def test_small_is_the_default_and_unknown_profiles_are_refused():
    assert profile("small") == RunConfig()
    assert profile("smoke", seed=5).seed == 5
    with pytest.raises(ValueError, match="smoke, small, full"):
        profile("tiny")
