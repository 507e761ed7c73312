"""Spectra of rows that arrive in pieces: one pass, merged shards, two processes, a file."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_spectra import gaussian
from torch import nn

from rankscale.mae import Encoder
from rankscale.spectra import LayerSpectra, SpectrumAccumulator, SpectrumWarning, effective_rank, rankme, spectrum

METHODS = ["gram", "tsqr"]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), offset=st.sampled_from([0.0, 1.0, 1e3]))
def test_pieces_and_merged_shards_give_what_one_pass_gives(method, cuts, offset):
    z = gaussian(300, 1 / np.arange(1, 13)) + offset
    pieces = np.split(z, sorted(cuts))
    streamed = SpectrumAccumulator(12, method)
    shards = [SpectrumAccumulator(12, method) for _ in range(3)]
    for k, piece in enumerate(pieces):
        streamed.update(piece)
        shards[k % 3].update(piece)
    merged = shards[2].merge(shards[0]).merge(shards[1])
    for center in (False, True):
        once = spectrum(z, center, method="svd").numpy()
        for state in (streamed, merged):
            assert state.rows == 300
            assert rankme(state, center=center) == pytest.approx(rankme(once), rel=1e-10)
            assert state.spectrum(center).numpy() == pytest.approx(once, rel=1e-10, abs=2e-9 * once[0])


def test_rank_five_at_full_width_from_float32_streamed():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(1536, 5)))[0].T
    seen, exact = SpectrumAccumulator(1536), []
    for _ in range(8):
        part = rng.normal(size=(512, 5))
        exact.append(part)
        seen.update((part @ basis).astype(np.float32))
    with pytest.warns(SpectrumWarning, match="1531 of 1536"):
        found = effective_rank(seen)
    assert found == pytest.approx(effective_rank(np.concatenate(exact)), rel=1e-5)
    assert found == pytest.approx(5, abs=1e-2)  # five equal directions, as far as 4096 draws are equal


@pytest.mark.parametrize("method", METHODS)
def test_state_goes_to_a_file_and_back(method, tmp_path):
    z = gaussian(200, np.ones(8))
    seen = SpectrumAccumulator(8, method).update(z[:120])
    loaded = SpectrumAccumulator.load(seen.save(tmp_path / "deep" / "half.safetensors"))
    assert (loaded.rows, loaded.method, loaded.dim) == (120, method, 8)
    assert rankme(loaded.update(z[120:])) == pytest.approx(rankme(z), rel=1e-12)


def test_a_wrong_file_is_named(tmp_path):
    (tmp_path / "text").write_text("no tensors here")
    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="text is not a safetensors file"):
        SpectrumAccumulator.load(tmp_path / "text")
    with pytest.raises(ValueError, match="other is not a saved spectrum"):
        SpectrumAccumulator.load(tmp_path / "other")
    with pytest.raises(ValueError, match="nowhere cannot be read"):
        SpectrumAccumulator.load(tmp_path / "nowhere")


def test_memory_does_not_grow_with_the_rows():
    """Ten times the rows from a stream: NumPy and Python hold no more than before."""

    def peak(n_block):
        tracemalloc.start()
        seen = SpectrumAccumulator(32)
        for k in range(n_block):
            seen.update(np.full((1000, 32), k + 0.5, dtype=np.float32))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(50) < 1.2 * peak(5)


@pytest.mark.parametrize("method", METHODS)
def test_bad_pieces_are_named_and_change_nothing(method):
    seen = SpectrumAccumulator(4, method).update(np.eye(4))
    before = seen.spectrum()
    with pytest.raises(ValueError, match="row 5 of the embeddings holds NaN"):
        seen.update(np.array([[1.0, 2, 3, 4], [np.inf, 0, 0, 0]]))
    with pytest.raises(ValueError, match="width 3 were given to an accumulator of width 4"):
        seen.update(np.ones((2, 3)))
    with pytest.raises(ValueError, match="floating point"):
        seen.update(np.ones((2, 4), dtype=int))
    with pytest.raises(ValueError, match="cannot merge"):
        seen.merge(SpectrumAccumulator(5, method))
    assert torch.equal(seen.spectrum(), before) and seen.rows == 4


def test_bad_accumulators_are_refused():
    with pytest.raises(ValueError, match="dim must be"):
        SpectrumAccumulator(0)
    with pytest.raises(ValueError, match="gram or tsqr"):
        SpectrumAccumulator(3, "svd")
    with pytest.raises(ValueError, match="at least two rows"):
        SpectrumAccumulator(3).update(np.ones((1, 3))).spectrum()
    with pytest.raises(ValueError, match="all zero"):
        SpectrumAccumulator(3).update(np.zeros((5, 3))).spectrum()


def test_large_values_do_not_pass_as_bad_ones():
    """The sum of a block overflows, its entries do not."""
    z = gaussian(100, np.ones(4)).astype(np.float32)
    z[0] = 3e38
    assert 1 <= rankme(z) < 1.1


def reduce_in_process(rank, method, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    z = gaussian(301, 1 / np.arange(1, 13)) + 5
    mine = SpectrumAccumulator(12, method).update(z[:200] if rank == 0 else z[200:])
    mine.all_reduce().save(f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_reduce_to_the_whole(method, tmp_path):
    mp.spawn(reduce_in_process, args=(method, str(tmp_path)), nprocs=2)
    z = gaussian(301, 1 / np.arange(1, 13)) + 5
    for rank in range(2):
        total = SpectrumAccumulator.load(tmp_path / f"{rank}.safetensors")
        assert total.rows == 301
        for center in (False, True):
            assert rankme(total, center=center) == pytest.approx(rankme(z, center=center), rel=1e-10)


# --- layers ------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Two layers over tokens, then one over clips."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).mean(dim=1))


@pytest.mark.parametrize("pool", ["clip", "frame"])
def test_every_layer_in_one_pass(pool):
    tower = Tower().double()
    x = torch.as_tensor(gaussian(600, np.ones(6))).reshape(60, 10, 6)
    with torch.no_grad():
        first = tower.first(x)
        second = tower.second(first.relu())
        with LayerSpectra(tower, ["second", "first", "head"], pool) as layers:
            for batch in x.split(7):
                tower(batch)
        tower(x)  # the hooks are off: this is not counted
    assert [name for name, _ in layers.items()] == ["second", "first", "head"]
    for name, output in {"first": first, "second": second}.items():
        expected = output.mean(dim=1) if pool == "clip" else output.flatten(0, 1)
        assert layers[name].rows == len(expected)
        assert rankme(layers[name]) == pytest.approx(rankme(expected), rel=1e-9)
    assert layers["head"].rows == 60


def test_layers_of_our_encoder():
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=3).eval()
    mel = torch.randn(80, 64, 128)
    with torch.no_grad(), LayerSpectra(encoder, [f"blocks.{i}" for i in range(3)]) as layers:
        tokens = encoder.forward_mel(mel, layers=True)
    found = [rankme(seen) for _, seen in layers.items()]
    expected = [rankme(layer.mean(dim=1)) for layer in tokens]
    assert found[:2] == pytest.approx(expected[:2], rel=1e-6)  # the last of `tokens` is normalised, a block's is not


def test_layers_refuse_what_they_cannot_count():
    tower = Tower()
    with pytest.raises(ValueError, match="no layer 'third'; its layers: first, second, head"):
        LayerSpectra(tower, ["third"])
    with pytest.raises(ValueError, match="clip or frame"):
        LayerSpectra(tower, ["first"], pool="token")
    with LayerSpectra(tower, ["first"]), pytest.raises(ValueError, match="layer 'first' gives"):
        tower.first(torch.ones(6))
