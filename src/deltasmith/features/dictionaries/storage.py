"""Dictionaries on disk, in the layout of SAELens: `cfg.json` beside `sae_weights.safetensors`.

What is written takes activations as they come out of the model, in SAELens too: nothing has to be scaled by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from deltasmith.errors import DamagedInputError, RefusedError, printable
from deltasmith.features.arrays import written_arrays
from deltasmith.features.dictionaries.dictionary import Dictionary
from deltasmith.features.dictionaries.settings import (
    JumpRelu,
    Kind,
    Relu,
    ReluL1,
    TopK,
    as_json,
    kind_of_json,
)
from deltasmith.features.dictionaries.torch_here import Tensor, torch
from deltasmith.formats.json_file import read_json_object

__all__ = ["CONFIG", "WEIGHTS", "files", "load", "metadata"]

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_OURS = "deltasmith"
_LAYOUT = "6.0.0"
"""The release of SAELens that introduced this layout of cfg.json; without one it takes the file for an older one."""


def files(dictionary: Dictionary, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the two files of a dictionary, by name: the same bytes for the same dictionary and metadata.

    `metadata` are JSON values that go into the `metadata` of cfg.json (SAELens knows `model_name`, `hook_name`, ...);
    what only this package needs, the kind and the scale of the training, is added there under `deltasmith`. A TopK is
    saved as `topk`, a ReLU as `standard`, and whatever has thresholds, a BatchTopK among them, as `jumprelu`.

    Raises:
        RefusedError: a BatchTopK that has no threshold yet.
    """
    architecture = _architecture(dictionary)
    ours = {"kind": as_json(dictionary.kind), "scale": dictionary.scale}
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": dictionary.width,
        "d_sae": dictionary.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _LAYOUT,
            "sae_lens_training_version": None,
            **metadata,
            _OURS: {**metadata.get(_OURS, {}), **ours},
        },
    }
    if isinstance(dictionary.kind, TopK):
        config |= {"k": dictionary.kind.k, "rescale_acts_by_decoder_norm": False}
    tensors = {
        "W_enc": dictionary.encoder.T,
        "W_dec": dictionary.decoder,
        "b_enc": dictionary.latent_bias,
        "b_dec": dictionary.output_bias,
    }
    if architecture == "jumprelu" and dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    return {CONFIG: text.encode(), WEIGHTS: written_arrays(arrays)}


def load(folder: str | Path, device: str | torch.device = "cpu") -> Dictionary:
    """Read a dictionary that this package or SAELens saved; its numbers become float32.

    Understood are the architectures `standard`, `topk` and `jumprelu` (which a BatchTopK is saved as), with
    `rescale_acts_by_decoder_norm` and with or without `apply_b_dec_to_input`; `hook_z` makes no difference, as
    activations are rows here. What others saved has the kind `relu`, `topk` or `jump-relu`, and the scale 1.

    Raises:
        RefusedError: another architecture, or an option that cannot be represented, by its name.
        DamagedInputError: a file is missing, unreadable, or says or holds something else than it should.
    """
    folder = Path(folder)
    config = _modern(read_json_object(folder / CONFIG))
    where = printable(str(folder / CONFIG))
    _check_options(config, where)
    tensors = _tensors(folder / WEIGHTS, config)
    encoder, decoder = tensors["W_enc"].T.contiguous(), tensors["W_dec"]
    latent_bias, output_bias, threshold = tensors["b_enc"], tensors["b_dec"], tensors.get("threshold")
    if config["architecture"] == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        lengths = decoder.norm(dim=1).clamp_min(1e-30)
        encoder, latent_bias = encoder * lengths[:, None], latent_bias * lengths
        decoder = decoder / lengths[:, None]
    if not config.get("apply_b_dec_to_input", True):
        shift = encoder.to(torch.float64) @ output_bias.to(torch.float64)
        latent_bias = (latent_bias + shift).to(torch.float32)
    kind, scale = _kind_and_scale(config, where)
    return Dictionary(kind, encoder, decoder, latent_bias, output_bias, threshold, scale).to(device)


def metadata(folder: str | Path) -> dict[str, Any]:
    """Return what a dictionary's cfg.json says of where it comes from; what others wrote is not checked.

    In files from before SAELens 6 it stands among the options. DamagedInputError where cfg.json cannot be read.
    """
    config = read_json_object(Path(folder) / CONFIG)
    told = config.get("metadata")
    return dict(told) if isinstance(told, dict) else config


def _architecture(dictionary: Dictionary) -> str:
    if isinstance(dictionary.kind, TopK):
        return "topk"
    if dictionary.threshold is not None:
        return "jumprelu"
    if isinstance(dictionary.kind, Relu | ReluL1):
        return "standard"
    raise RefusedError(
        f"a dictionary of kind {dictionary.kind.kind} has no threshold",
        fix="save what `Trainer.finished` returns",
    )


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """Bring a cfg.json from before SAELens 6 to the names that it has had since."""
    if "architecture" in config and "metadata" in config:
        return config
    renamed = {"activation_fn_str": "activation_fn"}
    config = {renamed.get(name, name): value for name, value in config.items()}
    function, details = config.get("activation_fn", "relu"), config.get("activation_fn_kwargs") or {}
    config.setdefault("architecture", "standard")
    if function == "topk" and isinstance(details, dict) and "k" in details:
        config |= {"architecture": "topk", "k": details["k"]}
    elif function != "relu":
        config["unsupported"] = f"the activation function {printable(str(function))!r}"
    return config


def _check_options(config: dict[str, Any], where: str) -> None:
    refused = config.get("unsupported")
    architecture = config["architecture"]
    if architecture not in ("standard", "topk", "jumprelu"):
        refused = f"the architecture {printable(str(architecture))!r}"
    normalised = config.get("normalize_activations") or "none"
    if normalised != "none":
        refused = f"normalize_activations = {printable(str(normalised))!r}"
    if config.get("finetuning_scaling_factor"):
        refused = "finetuning_scaling_factor"
    if refused:
        raise RefusedError(
            f"{refused} cannot be represented",
            where=where,
            fix="choose a standard, topk or jumprelu dictionary for activations as they are, saved by "
            "save_inference_model",
        )
    sizes = [config.get(name) for name in ("d_in", "d_sae", *(("k",) if architecture == "topk" else ()))]
    if not all(_whole(size) for size in sizes):
        raise DamagedInputError(
            f"d_in, d_sae or k is no whole number above 0 ({', '.join(map(str, sizes))})",
            where=where,
            fix="save the dictionary again",
        )
    if architecture == "topk" and config["k"] > config["d_sae"]:
        raise DamagedInputError(
            f"k = {config['k']} of {config['d_sae']} latents", where=where, fix="save the dictionary again"
        )


def _whole(size: Any) -> bool:
    is_number = isinstance(size, int | float) and not isinstance(size, bool)
    return is_number and float(size).is_integer() and size > 0


def _tensors(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the weights as float32 and compare their shapes with what cfg.json says."""
    where, fix = printable(str(path)), "save or download the dictionary again"
    from safetensors.torch import load as read_tensors  # which imports torch

    try:
        found = read_tensors(path.read_bytes())
    except OSError as cause:
        raise DamagedInputError(f"it cannot be read ({cause.strerror})", where=where, fix=fix) from cause
    except (SafetensorError, ValueError, KeyError) as cause:
        raise DamagedInputError("it is no safetensors file", where=where, fix=fix) from cause
    width, latents = int(config["d_in"]), int(config["d_sae"])
    shapes = {"W_enc": (width, latents), "W_dec": (latents, width), "b_enc": (latents,), "b_dec": (width,)}
    if config["architecture"] == "jumprelu":
        shapes["threshold"] = (latents,)
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape:
            has = f"has {tuple(found[name].shape)}" if name in found else "is not there"
            raise DamagedInputError(f"{name} of shape {shape} is expected, it {has}", where=where, fix=fix)
        found[name] = found[name].to(torch.float32)
        if not bool(torch.isfinite(found[name]).all()):
            raise DamagedInputError(f"{name} holds numbers that are not finite", where=where, fix=fix)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in found and not bool((found[name] == 1).all()):
            raise RefusedError(
                f"a {name} other than 1 cannot be represented", where=where, fix="choose another dictionary"
            )
    return {name: found[name] for name in shapes}


def _kind_and_scale(config: dict[str, Any], where: str) -> tuple[Kind, float]:
    architecture = config["architecture"]
    metadata = config.get("metadata")
    ours = metadata.get(_OURS) if isinstance(metadata, dict) else None
    if not isinstance(ours, dict) or "kind" not in ours:
        foreign: dict[str, Kind] = {"standard": Relu(), "jumprelu": JumpRelu()}
        return foreign.get(architecture) or TopK(k=int(config["k"])), 1.0
    fitting = {"standard": ("relu", "relu-l1"), "jumprelu": ("jump-relu", "batch-topk"), "topk": ("topk",)}
    try:
        kind: Kind = kind_of_json(ours["kind"])
        scale = float(ours["scale"])
        if kind.kind in fitting[architecture] and 0 < scale < float("inf"):
            return kind, scale
    except (ValidationError, KeyError, TypeError, ValueError):
        pass
    raise DamagedInputError(
        "metadata.deltasmith does not describe the dictionary beside it", where=where, fix="save it again"
    )
