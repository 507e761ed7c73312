"""The spectra of every layer of a network in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from rankscale.spectra.accumulate import SpectrumAccumulator

POOLS = ("clip", "frame")


class LayerSpectra:
    """Collects the outputs of chosen layers while a network runs, as one `SpectrumAccumulator` a layer.

    A layer's output is (batch, token, width), or (batch, width). With pool "clip", tokens are averaged and every clip
    is one row: RankMe as the papers have it. With "frame", every token is a row, so that the rank also counts what
    changes within a clip (RankMe-t). Nothing but the sums is kept. Use it as a context, so that the hooks come off:

        with LayerSpectra(encoder, [f"blocks.{i}" for i in range(4)]) as layers:
            for mel in clips:
                encoder.forward_mel(mel)
        ranks = {name: rankme(seen) for name, seen in layers.items()}

    model: any torch module. names: of its submodules, as in `model.named_modules()`. method: see `SpectrumAccumulator`.
    Tokens that are padding are counted: leave them out of the batch. Put the model into evaluation mode yourself.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], pool: str = "clip", method: str = "gram") -> None:
        if pool not in POOLS:
            raise ValueError(f"pool {pool!r}: choose {' or '.join(POOLS)}")
        known, names = dict(model.named_modules()), list(names)
        self._modules = {name: known[name] for name in names if name in known}
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"the model has no layer {missing[0]!r}; its layers: {', '.join(n for n in known if n)}")
        self._pool, self._method = pool, method
        self._seen: dict[str, SpectrumAccumulator] = {}
        self._hooks: list = []

    def __enter__(self) -> LayerSpectra:
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_hook(self._collector(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _collector(self, name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def collect(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (2, 3):
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer {name!r} gives {shape}, not (batch, token, width) or (batch, width)")
            rows = output.detach()
            if rows.ndim == 3:
                rows = rows.mean(dim=1) if self._pool == "clip" else rows.flatten(0, 1)
            if name not in self._seen:
                self._seen[name] = SpectrumAccumulator(rows.shape[1], self._method, rows.device)
            self._seen[name].update(rows)

        return collect

    def __getitem__(self, name: str) -> SpectrumAccumulator:
        return self._seen[name]

    def items(self) -> list[tuple[str, SpectrumAccumulator]]:
        """(name, accumulator) of every layer that has run, in the order that was asked for."""
        return [(name, self._seen[name]) for name in self._modules if name in self._seen]
