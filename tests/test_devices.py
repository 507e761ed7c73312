"""Peak speeds: from data sheets where the GPU is known, measured elsewhere."""

import pytest
import torch

from rankscale import devices
from rankscale.records import provenance


@pytest.mark.parametrize(
    ("model", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 67e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5e12),
        ("Some other GPU", "bf16", 1.0),
    ],
)
def test_known_gpus_have_the_peaks_of_their_data_sheets(model, precision, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: model)
    monkeypatch.setattr(devices, "measure_peak", lambda device, precision: 1.0)
    assert devices.peak_flop_per_s("cuda", precision) == peak


def test_the_peak_of_a_cpu_is_measured(monkeypatch):
    monkeypatch.setitem(devices.SIDE, "cpu", 64)
    times = iter([3.0, 2.0, 4.0, 5.0, 2.5, 3.5, 6.0, 7.0])
    monkeypatch.setattr(devices, "_time_product", lambda a: next(times))
    devices.measure_peak.cache_clear()
    assert devices.peak_flop_per_s("cpu", "float32") == 2 * 64**3 / 2.0
    devices.measure_peak.cache_clear()


def test_utilisation_counts_all_processes():
    made = provenance("cpu", "2026-01-01T00:00:00+00:00", 1.0, 1.0, processes=4, flop_per_s=2e9, peak_flop_per_s=1e9)
    assert made.utilisation == 0.5
    assert made.model_copy(update={"flop_per_s": None}).utilisation is None
