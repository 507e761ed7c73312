"""How fast a device can be at best: what the speed of a run is measured against."""

from __future__ import annotations

import time
from functools import cache

import torch

# Dense matrix products, FLOP/s, from NVIDIA's data sheets (which print twice as much for bf16: "with sparsity").
# float32 is without TF32, which torch does not use unless it is told to.
PEAKS = {
    "NVIDIA H200": {"bf16": 989e12, "float32": 67e12},
    "NVIDIA H100 80GB HBM3": {"bf16": 989e12, "float32": 67e12},
    "NVIDIA H100 PCIe": {"bf16": 756e12, "float32": 51e12},
    "NVIDIA A100": {"bf16": 312e12, "float32": 19.5e12},
}
TRIALS = 8
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed


def peak_flop_per_s(device: str, precision: str) -> float:
    """The most FLOP/s that matrix products reach: from the data sheet of a known GPU, else measured now.

    device: "cpu", with as many threads as torch uses in this process, or "cuda". precision: "float32" or "bf16".
    """
    if device.startswith("cuda"):
        model = torch.cuda.get_device_name(device)
        for name, peaks in PEAKS.items():
            if model.startswith(name):
                return peaks[precision]
    return measure_peak(device, precision)


@cache
def measure_peak(device: str, precision: str) -> float:
    """FLOP/s of the fastest of a few products of large matrices; others' work on the machine lowers it."""
    side = SIDE["cuda" if device.startswith("cuda") else "cpu"]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(side, side, device=device, dtype=kind)
    best = min(_time_product(a) for _ in range(TRIALS))
    return 2 * side**3 / best


def _time_product(a: torch.Tensor) -> float:
    started = time.perf_counter()
    (a @ a)[0, 0].item()  # reading a number waits for the device
    return time.perf_counter() - started
