"""Dasheng's checkpoints, there and back: every form, the published shapes, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from rankscale.cli import main
from rankscale.dasheng import SHAPES, read_encoder, shape_name, write_dasheng
from rankscale.embed import load_embedder
from rankscale.mae import Encoder, save_encoder

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "target_length": 200, "patch_size": (64, 4)}


@pytest.fixture(scope="module")
def dasheng():
    return pytest.importorskip("dasheng.pretrained.pretrained")


def randomise(module):
    """Give every weight and input statistic a random value, so that none is at a telling 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) * 10 - 40)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) * 200 + 50)
            elif value.is_floating_point() and "front_end" not in name:
                value.add_(torch.randn(value.shape, generator=generator) * 0.02)
    return module.eval()


def sound(seconds):
    return 0.1 * torch.randn(1, int(16_000 * seconds), generator=torch.Generator().manual_seed(1))


def same_bits(ours, theirs):
    theirs = {name: value for name, value in theirs.items() if "front_end" not in name}
    ours = {name: value for name, value in ours.items() if "front_end" not in name}
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return randomise(Encoder(48, 2, heads=3, target_frames=200))


@pytest.fixture(scope="module")
def published(encoder):
    """The published form, by its parts: state dict and configuration."""
    return dict(encoder.state_dict()), dict(SMALL)


def as_hugging_face(folder, state, config):
    folder.mkdir(exist_ok=True)
    state = {f"encoder.{name}": value for name, value in state.items() if not name.startswith("front_end")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- against PyPI dasheng ---------------------------------------------------------------------------------


def test_published_shapes_are_those_of_the_package(dasheng, monkeypatch):
    asked = []
    monkeypatch.setattr(dasheng.Dasheng, "from_pretrained", lambda pretrained_url, **shape: asked.append(shape))
    for make in (dasheng.dasheng_base, dasheng.dasheng_06B, dasheng.dasheng_12B):
        make("a file")
    ours = [{"embed_dim": s.width, "depth": s.depth, "num_heads": s.heads} for s in SHAPES.values()]
    assert ours == asked and [shape_name(spec) for spec in SHAPES.values()] == ["base", "0.6B", "1.2B"]


def test_weights_of_the_base_shape_go_there_and_back(dasheng, tmp_path):
    path, theirs = tmp_path / "base.pt", dasheng.Dasheng(embed_dim=768, depth=12, num_heads=12).eval()
    theirs.init_bn[1].running_mean.fill_(-40)
    torch.save({"model": theirs.state_dict(), "config": {"target_length": 1008}}, path)
    ours = read_encoder(path)
    assert shape_name(ours.spec) == "base" and ours.spec == SHAPES["base"]
    assert same_bits(ours.state_dict(), theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(sound(1)), theirs(sound(1)), atol=1e-5, rtol=0)
    content = torch.load(write_dasheng(ours, path), weights_only=True)
    path.unlink()  # 340 MB
    assert same_bits(content["model"], theirs.state_dict()) and content["config"]["num_heads"] == 12


@pytest.mark.parametrize("seconds", [0.05, 2.01, 7.3])
def test_small_weights_give_the_same_output_both_ways(seconds, dasheng, encoder, tmp_path):
    theirs = randomise(dasheng.Dasheng(**SMALL))
    torch.save({"model": theirs.state_dict(), "config": SMALL}, tmp_path / "theirs.pt")
    write_dasheng(encoder, tmp_path / "ours.pt")
    back = dasheng.Dasheng.from_pretrained(str(tmp_path / "ours.pt")).eval()
    with torch.no_grad():
        expected = theirs(sound(seconds))
        torch.testing.assert_close(read_encoder(tmp_path / "theirs.pt")(sound(seconds)), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder(sound(seconds)), back(sound(seconds)), atol=1e-5, rtol=0)
    assert expected.std() > 0.1  # there is something to agree on


def test_their_training_checkpoint_gives_its_encoder(dasheng, tmp_path):
    models = pytest.importorskip("dasheng.train.models")
    whole = models.AudioTransformerMAE(
        models.AudioTransformerMAE_Encoder(embed_dim=48, depth=1, num_heads=3, target_length=200),
        models.AudioTransformerMAE_Decoder(
            input_dim=48, outputdim=256, embed_dim=32, depth=1, num_heads=2, num_patches=50
        ),
    )
    torch.save({"model": whole.state_dict(), "config": {"num_heads": 3, "target_length": 200}}, tmp_path / "mae.pt")
    assert same_bits(read_encoder(tmp_path / "mae.pt").state_dict(), whole.encoder.state_dict())


# --- the Hugging Face form --------------------------------------------------------------------------------


def test_a_folder_goes_there_and_back(encoder, tmp_path):
    written = write_dasheng(encoder, tmp_path / "hf")
    assert sorted(path.name for path in written.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    names = set(load_file(written / "model.safetensors"))
    assert all(name.startswith("encoder.") for name in names) and not any("front_end" in name for name in names)
    for path in (written, written / "model.safetensors"):
        back = read_encoder(path)
        assert back.spec == encoder.spec and same_bits(back.state_dict(), encoder.state_dict())
    assert load_embedder(written).embed(sound(1)).shape == (1, 48)


def test_hugging_face_loads_what_we_write_and_we_what_it_writes(encoder, tmp_path):
    theirs = pytest.importorskip("dasheng_model.modeling_dasheng")
    features = pytest.importorskip("dasheng_model.feature_extraction_dasheng")
    folder = write_dasheng(encoder, tmp_path / "hf")
    model = theirs.DashengModel.from_pretrained(folder).eval()
    extract = features.DashengFeatureExtractor.from_pretrained(folder)
    assert same_bits(encoder.state_dict(), model.encoder.state_dict())
    with torch.no_grad():
        states = model(**extract(sound(2), sampling_rate=16_000)).hidden_states
        torch.testing.assert_close(encoder(sound(2))[:, :50], states[:, :50], atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "back")
    assert same_bits(read_encoder(tmp_path / "back").state_dict(), encoder.state_dict())


@pytest.mark.parametrize(
    "config",
    [
        {"name": "dasheng-base", "encoder_kwargs": SMALL},
        {"name": "dasheng-base"} | SMALL,
        {"name": "another", "num_heads": 3, "target_length": 200},
    ],
)
def test_the_shape_stands_in_one_of_several_places(config, published, tmp_path):
    back = read_encoder(as_hugging_face(tmp_path / "hf", published[0], config))
    assert (back.spec.width, back.spec.depth, back.spec.heads, back.spec.target_frames) == (48, 2, 3, 200)
    assert same_bits(back.state_dict(), published[0])


def test_a_json_file_of_the_same_name_comes_first(published, tmp_path):
    folder = as_hugging_face(tmp_path / "hf", published[0], {"num_heads": 4})
    (folder / "model.json").write_text(json.dumps({"num_heads": 3}))
    assert read_encoder(folder).spec.heads == 3
    (folder / "model.json").unlink()
    assert read_encoder(folder).spec.heads == 4


# --- what is refused --------------------------------------------------------------------------------------


def without(state, *keys):
    return {name: value for name, value in state.items() if name not in keys}


def longer(state):
    return state | {"time_pos_embed": torch.zeros(1, 48, 1, 60)}


FAULTS = {
    "no weights": (lambda s, c: {"config": c}, "no dict 'model'; it holds config"),
    "no configuration": (lambda s, c: {"model": s}, "no dict 'config'; it holds model"),
    "a list": (lambda s, c: [s], "holds a list, not a dict"),
    "no tensors": (lambda s, c: {"model": {"a": 1}, "config": c}, "other things than tensors with names: a"),
    "another model": (
        lambda s, c: {"model": {"fc.weight": torch.zeros(2, 2)}, "config": c},
        r"lacks patch_embed\.proj\.weight .*holds fc\.weight",
    ),
    "a missing key": (lambda s, c: {"model": without(s, "norm.bias"), "config": c}, r"\(lacks norm\.bias\)"),
    "many missing keys": (
        lambda s, c: {"model": {k: v for k, v in s.items() if "attn" not in k}, "config": c},
        r"lacks blocks\.0\.attn.* and 3 more",
    ),
    "no blocks": (
        lambda s, c: {"model": {k: v for k, v in s.items() if "blocks" not in k}, "config": c},
        r"lacks blocks\.0\.mlp",
    ),
    "a surplus key": (
        lambda s, c: {"model": s | {"cls_token": torch.zeros(1)}, "config": c},
        "holds cls_token, which",
    ),
    "no heads": (
        lambda s, c: {"model": s, "config": without(c, "num_heads")},
        r"lacks num_heads.* 48 x 2 .*none of Dasheng's: base \(768 x 12\), 0\.6B .*1\.2B",
    ),
    "bare weights": (lambda s, c: s, "lacks num_heads"),
    "another depth": (lambda s, c: {"model": s, "config": c | {"depth": 3}}, "says depth 3, its weights have 2"),
    "another width": (lambda s, c: {"model": s, "config": c | {"embed_dim": 96}}, "embed_dim 96, its weights have 48"),
    "other pieces": (lambda s, c: {"model": longer(s), "config": c}, r"time_pos_embed \(1, 48, 1, 60\), not \(1, 48,"),
    "another hop": (lambda s, c: {"model": s, "config": c | {"hop_size": 320}}, "hop_size is 320: only 160"),
    "other bands": (lambda s, c: {"model": s, "config": c | {"n_mels": 128}}, "n_mels is 128: only 64"),
    "uncentred": (lambda s, c: {"model": s, "config": c | {"center": False}}, "center is False: only True"),
    "another floor": (lambda s, c: {"model": s, "config": c | {"top_db": 80}}, "top_db is 80: only 120"),
    "other attention": (lambda s, c: {"model": s, "config": c | {"attention_type": "Fast"}}, "attention_type is Fast"),
    "another window": (
        lambda s, c: {"model": s | {"front_end.0.spectrogram.window": torch.ones(512)}, "config": c},
        r"front end is another.*spectrogram\.window",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault, published, tmp_path):
    make, words = FAULTS[fault]
    torch.save(make(*published), tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=words) as caught:
        read_encoder(tmp_path / "wrong.pt")
    assert "wrong.pt: not an encoder checkpoint" in str(caught.value)


def test_files_of_another_kind_are_refused(published, tmp_path):
    folder = as_hugging_face(tmp_path / "hf", *published)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"model\.safetensors: .*not a whole safetensors"):
        read_encoder(folder)
    (folder / "model.safetensors").write_bytes(whole)
    for text, words in (("[]", "holds a list"), ("{", r"config\.json is not JSON")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_encoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"configuration is missing: model\.json or config\.json"):
        read_encoder(folder)
    (tmp_path / "text.pt").write_text("hello, I am no model")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("text", "empty"):
        with pytest.raises(ValueError, match=rf"{name}\.pt: .*damaged"):
            read_encoder(tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        read_encoder(tmp_path / "none.pt")


class Harmful:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": Harmful(tmp_path / "ran"), "config": {}}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="without running code"):
        read_encoder(tmp_path / "harmful.pt")
    assert not (tmp_path / "ran").exists()


def test_half_precision_becomes_float32(published, tmp_path):
    state = {name: v.half() if v.is_floating_point() else v for name, v in published[0].items()}
    torch.save({"model": state, "config": published[1]}, tmp_path / "half.pt")
    back = read_encoder(tmp_path / "half.pt")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert torch.equal(back.norm.weight, published[0]["norm.weight"].half().float())


# --- the commands -----------------------------------------------------------------------------------------


def run(*args):
    return CliRunner().invoke(main, [*map(str, args)])


def test_import_and_export_by_command(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(encoder, "mine.pt")
    result = run("export-dasheng", "mine.pt", "--out", "hf")
    assert result.exit_code == 0 and "width 48, depth 2, 3 heads" in result.output, result.output
    result = run("import-dasheng", "hf")
    assert result.exit_code == 0 and "n_mels 64, hop_size 160" in result.output, result.output
    assert same_bits(read_encoder("runs/encoders/hf.pt").state_dict(), encoder.state_dict())
    assert run("export-dasheng", "hf", "--out", "again.pt").exit_code == 0
    assert same_bits(torch.load("again.pt", weights_only=True)["model"], encoder.state_dict())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["import-dasheng", "none.pt"], "none.pt: no such checkpoint"),
        (["import-dasheng", "mine.pt", "--out", "mine.pt"], "CHECKPOINT itself"),
        (["import-dasheng", "mine.pt", "--out", "folder"], "name a .pt file"),
        (["export-dasheng", "mine.pt", "--out", "text.txt"], "is a file; name a .pt file, or a folder"),
        (["export-dasheng", "text.txt", "--out", "hf"], "text.txt: not an encoder checkpoint"),
    ],
)
def test_wrong_calls_end_in_one_plain_message(args, words, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(encoder, "mine.pt")
    Path("text.txt").write_text("no encoder")
    result = run(*args)
    assert result.exit_code != 0 and words in result.stderr and "Traceback" not in result.output
