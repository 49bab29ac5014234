"""The architectures of transformers with mixtures in place of linears, and their registration with the Auto classes.

A mixture's model is its base's architecture: the same class (a subclass of the same name), the same config object,
the same names of tensors. Only some linears are other modules. So caches, generation, devices, tied weights and
conversions of names are transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig as _PretrainedConfig
from transformers.models.auto import auto_factory, modeling_auto
from transformers.pytorch_utils import Conv1D

from deltasmith.errors import DamagedInputError, RecipeError, printable
from deltasmith.upscaling.linear import MixedConv1D, Mixture, SmileLinear
from deltasmith.upscaling.router import Router
from deltasmith.upscaling.routing import call_routed, generating, reading_prompts, routes
from deltasmith.upscaling.settings import (
    MODEL_TYPE,
    ROUTER,
    TENSORS,
    Settings,
    config_document,
    weights_of,
)
from deltasmith.upscaling.skeleton import kind_of, tied_head
from deltasmith.upscaling.twins import MixedEmbedding, MixedTiedHead, mixed_norm

__all__ = ["MixtureModel", "SmileConfig", "mixture_class", "register", "set_expert_weights"]

_KEY = "deltasmith_smile"
"""The attribute of the base's config object that holds the settings while a model lives."""
_FLOAT32 = "_keep_in_fp32_modules_strict"
"""Where transformers looks for modules that stay in float32 when a model is loaded in 16 bits."""


class SmileConfig(_PretrainedConfig):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """A base's config and what its mixture adds; attributes that it lacks are the base's.

    `base` is the base's config object; its attribute `deltasmith_smile` holds the settings.
    """

    model_type = MODEL_TYPE

    def __init__(self, base: Any = None, **kwargs: Any) -> None:
        """Wrap the config of a base. Without one this is an empty config, which transformers asks for."""
        self.base = base  # first: the parent's checks ask for the base's text config
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base")
        if base is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(base, name)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read config.json: the base's part by the base's own class, which options of the caller go to."""
        inner = config_dict.get("base_config")
        if not isinstance(inner, dict) or "model_type" not in inner:
            raise DamagedInputError("there is no `base_config`", where="config.json", fix="upscale again")
        settings = Settings.from_json(config_dict.get("smile"))
        unused = kwargs.pop("return_unused_kwargs", False)
        kind = transformers.CONFIG_MAPPING[inner["model_type"]]
        base, rest = kind.from_dict(dict(inner), return_unused_kwargs=True, **kwargs)
        setattr(base, _KEY, settings.as_json())
        config = cls(base, architectures=config_dict.get("architectures"))
        return (config, rest) if unused else config

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return super().to_dict() if self.base is None else _document(self.base)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds: nothing is left out for being a default."""
        return self.to_dict()

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """Return the base's config of its text part."""
        return super().get_text_config() if self.base is None else self.base.get_text_config(*args, **kwargs)


def _document(base: Any) -> dict[str, Any]:
    inner = base.to_dict()
    inner.pop("_name_or_path", None)  # a path of this machine
    return config_document(inner, Settings.from_json(inner.pop(_KEY)))


def _unwrapped(config: Any) -> Any:
    """Return the base's config object, which bears the settings."""
    return config.base if isinstance(config, SmileConfig) else config


class MixtureModel:
    """What is put before an architecture's own class: building, weights, saving. Made by `mixture_class`."""

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build the base's modules, then put mixtures in their places."""
        config = _unwrapped(config)
        inherited: Any = super()
        inherited.__init__(config, *args, **kwargs)
        settings = Settings.from_json(getattr(config, _KEY, None))
        weights = None if settings.weights is None else torch.tensor(settings.weights, device="cpu")
        self._mixture = Mixture(len(settings.experts), settings.top_k, weights)
        _replace(self, settings, self._mixture)
        if settings.router is not None:
            setattr(self, ROUTER, Router(settings.router, len(settings.experts)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the architecture does; with a router that decides, after a first pass of the shared expert."""
        inherited: Any = super()
        if not routes(self):
            return inherited.__call__(*args, **kwargs)
        return call_routed(self, inherited.__call__, args, kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, with the base's config."""
        config = kwargs.pop("config", None)
        if not isinstance(config, transformers.PretrainedConfig):
            config = transformers.AutoConfig.from_pretrained(config or pretrained_model_name_or_path)
        inherited: Any = super()
        return inherited.from_pretrained(
            pretrained_model_name_or_path, *args, config=_unwrapped(config), **kwargs
        )

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        inherited: Any = super()
        return inherited._from_config(_unwrapped(config), **kwargs)

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *args: Any, **kwargs: Any) -> None:
        """Start experts and router at zero where no file brings them; transformers leaves the memory as it finds it."""
        inherited: Any = super()
        inherited._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)
        for key in missing_keys:
            if key.rpartition(".")[2] in TENSORS or key.startswith(f"{ROUTER}."):
                with torch.no_grad():
                    inherited.get_parameter(key).zero_()

    @property
    def expert_labels(self) -> tuple[str, ...]:
        """Return the experts' labels, in the order of the weights."""
        return Settings.from_json(getattr(self.config, _KEY)).experts

    def set_expert_weights(self, weights: Any) -> None:
        """Mix the experts with these weights from now on; see the function of the same name."""
        set_expert_weights(self, weights)

    def reading_prompts(self, tokens: torch.Tensor, lengths: Sequence[int]) -> AbstractContextManager[None]:
        """Let the router read only the first tokens of each row; see the function of the same name."""
        return reading_prompts(self, tokens, lengths)

    def save_pretrained(
        self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save as transformers does, with the mixture's config.json.

        Raises:
            ValueError: `push_to_hub` is asked for here; the model's method of that name does it.
        """
        if push_to_hub:
            raise ValueError("save first, then call push_to_hub()")
        inherited: Any = super()
        inherited.save_pretrained(save_directory, *args, **kwargs)
        text = json.dumps(_document(self.config), indent=2, ensure_ascii=False) + "\n"
        (Path(save_directory) / "config.json").write_text(text, encoding="utf-8")


def set_expert_weights(model: Any, weights: Any) -> None:
    """Mix the experts of a loaded model with these weights from now on, in every token and every linear.

    `weights`: {label: weight} (experts not named: 0), a sequence with one weight per expert, a tensor (rows of the
    batch, experts), or None, which lets the router decide, or without one the gates. They are used as they are:
    nothing makes them sum to 1.

    Raises:
        RecipeError: an unknown label, another number of weights than of experts, or a weight that is not finite.
        ValueError: a tensor of another shape.
    """
    mixture: Mixture = model._mixture
    if weights is None:
        mixture.weights = None
    elif isinstance(weights, torch.Tensor) and weights.dim() != 1:
        if weights.dim() != 2 or weights.shape[1] != mixture.experts:
            raise ValueError(f"weights of shape {list(weights.shape)}; expected (rows, {mixture.experts})")
        if not bool(torch.isfinite(weights).all()):
            raise RecipeError("some of the weights are not finite", fix="give finite weights")
        mixture.weights = weights.detach().clone()
    else:
        given: Mapping[str, float] | Sequence[float]
        given = weights if isinstance(weights, Mapping) else [float(weight) for weight in weights]
        mixture.weights = torch.tensor(weights_of(given, model.expert_labels))


def _replace(model: Any, settings: Settings, mixture: Mixture) -> None:
    """Put mixtures in the places of the modules that the settings name.

    The names are those of the class that was upscaled. Another class over the same body (AutoModel for a causal
    model's folder) has them with the body's prefix less or more, or has no such module.
    """
    modules = dict(model.named_modules())
    prefix = f"{model.base_model_prefix}."
    head = tied_head(model)
    for name in (*settings.linears, *settings.embeddings, *settings.norms):
        found = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in modules), None)
        if found is None:
            continue
        mixed = _mixed(modules[found], settings, mixture)
        if mixed is None:
            raise DamagedInputError(
                f"{printable(name)} of {type(model).__name__} is nothing that can be a mixture",
                where="config.json",
                fix="upscale again, with this version of transformers",
            )
        if type(head) is nn.Linear and modules[found] is model.get_input_embeddings():
            _put(model, modules, next(n for n, m in modules.items() if m is head), MixedTiedHead(head, mixed))
        _put(model, modules, found, mixed)


def _put(model: Any, modules: Mapping[str, Any], name: str, module: Any) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(modules[owner] if owner else model, attribute, module.train(modules[name].training))


def _mixed(module: Any, settings: Settings, mixture: Mixture) -> Any:
    """Return a module's mixture with experts that are still zero; None if it is of no kind that has one."""
    kind = kind_of(module)
    if kind == "norm":
        return mixed_norm(module, mixture)
    if kind is None:
        return None
    rows, columns = module.weight.shape
    rank = settings.rank(rows, columns)
    if kind == "embedding":
        return MixedEmbedding(module, mixture, rank)
    make = MixedConv1D if isinstance(module, Conv1D) else SmileLinear
    return make(module, mixture, rank, settings.router_rank)


@cache
def mixture_class(architecture: type) -> type:
    """Return the architecture's class with mixtures: a subclass of the same name and module.

    transformers chooses conversions of tensor names, losses and attention by a class's name and module.
    """
    names: dict[str, Any] = {"__module__": architecture.__module__, "__doc__": MixtureModel.__doc__}
    if hasattr(architecture, "generate"):
        names["generate"] = generating(architecture)
    whole = (
        getattr(architecture, _FLOAT32, None) or ()
    )  # a router decides between experts: its rounding matters
    names[_FLOAT32] = {*whole, ROUTER}
    return type(architecture.__name__, (MixtureModel, architecture), names)


def _loader(auto: Any) -> type:
    """Return what one Auto class finds for a `SmileConfig`: something that loads the right class."""

    def architecture(config: SmileConfig) -> Any:
        kind = type(config.base)
        if kind not in auto._model_mapping:
            raise ValueError(f"{auto.__name__} knows no class for {kind.__name__}")
        factory: Any = auto_factory
        return mixture_class(factory._get_model_class(config.base, auto._model_mapping))

    class Loader:
        """Stands in for the class of a mixture's architecture, which depends on the config."""

        config_class = SmileConfig

        @classmethod
        def from_pretrained(cls, *args: Any, config: SmileConfig, **kwargs: Any) -> Any:
            """Load a mixture of the architecture that the config names."""
            return architecture(config).from_pretrained(*args, config=config, **kwargs)

        @classmethod
        def _from_config(cls, config: SmileConfig, **kwargs: Any) -> Any:
            return architecture(config)._from_config(config, **kwargs)

    Loader.__name__ = Loader.__qualname__ = f"Smile{auto.__name__.removeprefix('Auto')}"
    return Loader


def register() -> None:
    """Make transformers' AutoConfig, AutoTokenizer and every AutoModel class load mixtures; twice does nothing.

    No code of a model's folder is run, and `trust_remote_code` is not needed.
    """
    if MODEL_TYPE in transformers.CONFIG_MAPPING:
        return
    transformers.AutoConfig.register(MODEL_TYPE, SmileConfig)
    tokenizers: Any = transformers.AutoTokenizer
    tokenizers.register(SmileConfig, fast_tokenizer_class=transformers.PreTrainedTokenizerFast)
    for auto in vars(modeling_auto).values():
        mapping = getattr(auto, "_model_mapping", None)
        if isinstance(auto, type) and mapping is not None:
            auto.register(SmileConfig, _loader(auto))  # type: ignore[attr-defined]
