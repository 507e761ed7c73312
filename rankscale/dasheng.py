"""Dasheng's checkpoints (Dinkel et al. 2024, arXiv 2406.06992): theirs are opened here, ours are written as theirs.

Weights and input statistics pass bit for bit. Front end, patches, blocks and the cutting of long clips are those of
PyPI `dasheng`; what is not theirs is refused, with its name. What differs:

* The decibel floor lies 120 dB below the maximum of each clip; theirs, below that of the whole batch. One clip at a
  time gives the same.
* A clip under four frames is extended; theirs fails.
* Their Hugging Face form pads the last piece of a clip of more than 1008 frames with zeros, which its tokens attend
  to, and leaves a last piece of exactly 1008 frames out. PyPI `dasheng` and this module encode it as it is.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankscale.config import SAMPLE_RATE
from rankscale.mae import FRONT_END, Encoder, EncoderSpec, save_encoder
from rankscale.mel import LogMel
from rankscale.storage import write_atomically

TARGET_FRAMES = 1008  # of a piece: 10.08 s
SHAPES = {
    "base": EncoderSpec(768, 12, 12, target_frames=TARGET_FRAMES),
    "0.6B": EncoderSpec(1280, 32, 16, target_frames=TARGET_FRAMES),
    "1.2B": EncoderSpec(1536, 40, 24, target_frames=TARGET_FRAMES),
}
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder of the Hugging Face form
_STEM = "patch_embed.proj.weight"  # which every encoder has
_PLAIN = {"block_type": "Block", "attention_type": "Attention", "init_bn": True, "norm_layer": None, "act_layer": None}
_LISTED = 5  # keys named in a message
_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, LookupError, AttributeError, TypeError, ValueError)

State = dict[str, Tensor]


def shape_name(spec: EncoderSpec) -> str | None:
    """Which of Dasheng's published encoders has this width, depth and heads: "base", "0.6B", "1.2B", or none."""
    wanted = (spec.width, spec.depth, spec.heads)
    return next((name for name, shape in SHAPES.items() if (shape.width, shape.depth, shape.heads) == wanted), None)


def describe(encoder: Encoder) -> str:
    """Shape, size and front end in a few lines for a terminal."""
    spec, count = encoder.spec, sum(weight.numel() for weight in encoder.parameters())
    name = shape_name(spec)
    lines = [
        f"Dasheng {name}" if name else "none of Dasheng's published shapes",
        f"width {spec.width}, depth {spec.depth}, {spec.heads} heads, {count / 1e6:.1f} million parameters",
        f"patches of {spec.patch_frames} frames; longer clips in pieces of {spec.target_frames} frames",
        "front end: " + ", ".join(f"{key} {value}" for key, value in FRONT_END.items()),
    ]
    return "\n".join(lines)


def read_encoder(path: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """An encoder in any form that rankscale or Dasheng writes; no code in the file is run.

    path: a file of {"model": state dict, "config": {...}}; a .safetensors file with a JSON file of its name, or
    config.json, beside it; or a folder with model.safetensors and config.json. What the configuration leaves out is
    read off the weights; the number of heads cannot be, and is known for Dasheng's three shapes only. Other parts than
    the encoder (a decoder, a classifier) are left out. Half precision becomes float32.
    Raises FileNotFoundError, or ValueError that names the file and what is missing, left over, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state, config = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        state = _encoder_part(state)
        with torch.device("meta"):  # initial weights would cost more time than reading the file
            encoder = Encoder(**vars(_spec(state, config)))
        _fill(encoder, state)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not an encoder checkpoint that can be read here ({error})") from error
    return encoder.eval().to(device)


def write_dasheng(encoder: Encoder, path: str | Path) -> Path:
    """Write what PyPI `dasheng` loads (a .pt file), or what its Hugging Face form loads (any other name: a folder)."""
    path = Path(path)
    if path.suffix == ".pt":
        save_encoder(encoder, path)
        return path
    if path.is_file():
        raise ValueError(f"{path}: is a file; name a .pt file, or a folder for the Hugging Face form")
    kept = {f"encoder.{k}": v.detach().cpu() for k, v in encoder.state_dict().items() if not k.startswith("front_end.")}
    write_atomically(path / WEIGHTS, partial(save_file, kept, metadata={"format": "pt"}))
    front_end = {name: value for name, value in FRONT_END.items() if name not in ("n_mels", "top_db")}
    extractor = {"feature_extractor_type": "DashengFeatureExtractor", "sampling_rate": SAMPLE_RATE}
    _write_json(path / "preprocessor_config.json", extractor | front_end | {"feature_size": FRONT_END["n_mels"]})
    # Their configuration takes a shape from the name, and from names of its own that stand beside it.
    named = {"model_type": "dasheng", "architectures": ["DashengModel"], "loss": "BCELoss"}
    named["name"] = f"dasheng-{shape_name(encoder.spec) or 'base'}"
    _write_json(path / CONFIG, named | encoder.spec.to_dasheng())
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


# --- reading ----------------------------------------------------------------------------------------------


def _read_pickle(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError("it is damaged, or cannot be read without running code in it") from error
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a dict")
    if any(key.endswith(_STEM) for key in map(str, content)):
        content = {"model": content, "config": {}}  # bare weights
    for part in ("model", "config"):
        if not isinstance(content.get(part), dict):
            raise ValueError(f"has no dict {part!r}; it holds {_listed(content)}")
    return content["model"], content["config"]


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    beside = [path.with_suffix(".json"), path.parent / CONFIG]
    config = next((candidate for candidate in beside if candidate.is_file()), None)
    if config is None:
        raise ValueError(f"its configuration is missing: {beside[0].name} or {CONFIG}, beside it")
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{config.name} holds a {type(found).__name__}, not an object")
    name = str(found.get("name", "")).removeprefix("dasheng-")
    named = SHAPES[name].to_dasheng() if name in SHAPES else {}
    try:
        return load_file(path), named | found.get("encoder_kwargs", {}) | found
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error


def _encoder_part(state: State) -> State:
    """The encoder's tensors by their own names, from a state dict that may hold more."""
    if bad := [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        raise ValueError(f"its state dict holds other things than tensors with names: {_listed(bad)}")
    prefix = "encoder." if f"encoder.{_STEM}" in state else ""
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if _STEM not in state or state[_STEM].ndim != 4:
        raise ValueError(f"lacks {_STEM} (width, 1, band, frame); it holds {_listed(state)}")
    if state[_STEM].dtype != torch.float32:  # a rounded front end is worse than ours
        state = {key: value.float() for key, value in state.items() if not key.startswith("front_end.")}
    return state


def _spec(state: State, config: dict[str, Any]) -> EncoderSpec:
    """The shape that weights and configuration agree on."""
    width, _, *patch = state[_STEM].shape
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)
    wanted = ("time_pos_embed", "blocks.0.mlp.fc1.weight")
    if missing := [key for key in wanted if key not in state]:
        raise ValueError(f"lacks {_listed(missing)}")
    frames, hidden = state[wanted[0]].shape[-1] * patch[1], len(state[wanted[1]])
    heads = {(shape.width, shape.depth): shape.heads for shape in SHAPES.values()}.get((width, depth))
    weighed = {"embed_dim": width, "depth": depth, "num_heads": heads, "patch_size": patch, "mlp_ratio": hidden / width}
    config = weighed | {"target_length": frames} | config

    for name, value in _PLAIN.items():
        if (found := config.get(name, value)) != value:
            raise ValueError(f"{name} is {found}: only {value} can be loaded")
    for name in ("embed_dim", "depth"):
        if config[name] != weighed[name]:
            raise ValueError(f"its configuration says {name} {config[name]}, its weights have {weighed[name]}")
    if config["num_heads"] is None:
        known = ", ".join(f"{name} ({s.width} x {s.depth})" for name, s in SHAPES.items())
        raise ValueError(
            f"its configuration lacks num_heads, and its shape, {width} x {depth} (width x depth), is none of "
            f"Dasheng's: {known}; add num_heads to the configuration"
        )
    return EncoderSpec.from_dasheng(config)


def _fill(encoder: Encoder, state: State) -> None:
    """Load weights; the Hugging Face form has no front end among them, which is then ours."""
    own = {f"front_end.{name}": value for name, value in LogMel().state_dict().items()}
    wanted, state = encoder.state_dict(), own | state
    if missing := wanted.keys() - state.keys():
        raise ValueError(f"lacks {_listed(missing)}")
    if surplus := state.keys() - wanted.keys():
        raise ValueError(f"holds {_listed(surplus)}, which this encoder has not")
    if wrong := [key for key, value in wanted.items() if state[key].shape != value.shape]:
        told = [f"{key} {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}" for key in sorted(wrong)]
        raise ValueError(f"holds {_listed(told)}")
    if foreign := [key for key, value in own.items() if not torch.allclose(state[key], value, atol=1e-6)]:
        raise ValueError(f"its front end is another than the one here: {_listed(foreign)} differ")
    encoder.load_state_dict(state, strict=True, assign=True)


def _listed(names: Any) -> str:
    names = sorted(map(str, names))
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "nothing") + more
