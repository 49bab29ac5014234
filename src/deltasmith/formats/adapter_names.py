"""Which part of a PEFT adapter can hold the change of a tensor, told from names, shapes and config.json alone.

There is no table of architectures: a tensor `X.weight` belongs to the module X. What is told by name is which
modules look tokens up (embeddings), which produce logits (heads), and which are transposed linear layers (the
Conv1D of transformers, as in GPT-2). Where transformers renames modules while loading (ViT since version 5, fused
experts), the names of the files are not those PEFT looks for, and it refuses the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from deltasmith.table.checkpoint import Spec

__all__ = ["Arrangement", "Modules", "PairKind", "task_type"]

PairKind = Literal["linear", "flipped", "convolution", "embedding"]
"""How two factors make a delta: B A; its transpose, in a Conv1D; B A of kernels; or the transpose, in an embedding."""

_EMBEDDING = re.compile(r"(?:.*emb.*|wte|wpe|shared|.*_bias)")
_NOT_EMBEDDING = re.compile(r".*(?:norm|patch|proj|ln|out).*|layer_?norm", re.IGNORECASE)
_OTHER_EMBEDDING = re.compile(r"pos|type|segment|wpe|bias")
_HEAD = re.compile(r"(?:lm_head|embed_out|output_layer|output|head|.*classifier|score)")
_CONV1D = re.compile(r"(?:c_attn|c_proj|c_fc|q_attn)")
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_BARE = re.compile(r"\w*(?<!Head)(?<!Heads)Model")
_LEADS = {
    "gpt2": "transformer",
    "bloom": "transformer",
    "falcon": "transformer",
    "bert": "bert",
    "roberta": "roberta",
}
"""What transformers calls the body of models whose published weights are those of the body alone."""


@dataclass(frozen=True)
class Arrangement:
    """What an adapter holds, by names of the base's tensors.

    `pairs` become factors. `saved` are modules that are kept beside the base's, and `whole` the tensors they have.
    `placed` replace the base's own tensors when PEFT loads the adapter, and stay while it is disabled: biases of
    linear layers, as PEFT's `bias: all` has them, and tied embeddings, as PEFT has resized ones. `unheld` fits nowhere.
    """

    pairs: Mapping[str, PairKind]
    saved: tuple[str, ...]
    whole: tuple[str, ...]
    placed: tuple[str, ...]
    unheld: tuple[str, ...]


@dataclass(frozen=True)
class Modules:
    """The modules of a base model, as far as headers and config.json tell."""

    specs: Mapping[str, Spec]
    config: Mapping[str, Any]

    @property
    def lead(self) -> str:
        """Return what transformers puts before the names of these tensors: empty, or such as `transformer.`."""
        lead = _LEADS.get(str(self.config.get("model_type")), "")
        bare = all(_BARE.fullmatch(str(a)) for a in self.config.get("architectures") or ["Model"])
        if not lead or bare or any(name.startswith(f"{lead}.") for name in self.specs):
            return ""
        return f"{lead}."

    def module(self, name: str) -> str:
        """Return the module that a tensor belongs to, as PEFT names it; empty for a parameter of the model itself.

        >>> Modules({}, {}).module("model.layers.0.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj'
        """
        own = name.rpartition(".")[0]
        if not own:
            return ""
        return own if own.partition(".")[0] in ("lm_head", "score", "classifier") else self.lead + own

    @cached_property
    def every(self) -> frozenset[str]:
        """Return all modules that have tensors, and all that hold such modules."""
        found: set[str] = set()
        for name in self.specs:
            module = self.module(name)
            while module and module not in found:
                found.add(module)
                module = module.rpartition(".")[0]
        return frozenset(found)

    @property
    def tied(self) -> bool:
        """Tell whether the head is the token embedding."""
        inner = self.config.get("text_config")
        values = [c.get("tie_word_embeddings") for c in (self.config, inner) if isinstance(c, Mapping)]
        return next((value for value in values if isinstance(value, bool)), False)

    @property
    def transposed(self) -> bool:
        """Tell whether the model has Conv1D layers: by its type, or by a bias as long as the second axis."""
        if self.config.get("model_type"):
            return self.config["model_type"] in _CONV1D_MODELS
        return any(self._proves_conv1d(name) for name in self.specs)

    def _proves_conv1d(self, name: str) -> bool:
        spec, bias = self.specs[name], self.specs.get(f"{name.removesuffix('.weight')}.bias")
        if bias is None or not _is_conv1d(name, spec) or spec.shape[0] == spec.shape[1]:
            return False
        return bias.shape == (spec.shape[1],)

    def is_embedding(self, name: str) -> bool:
        """Tell whether a tensor's rows are looked up."""
        last = _last(name)
        known = bool(_EMBEDDING.fullmatch(last)) and not _NOT_EMBEDDING.fullmatch(last)
        return name.endswith(".weight") and len(self.specs[name].shape) == 2 and known

    def is_tied(self, name: str) -> bool:
        """Tell whether a tensor is an embedding that the head shares; those of positions and types are not."""
        return self.tied and self.is_embedding(name) and not _OTHER_EMBEDDING.search(_last(name))

    def is_linear_bias(self, name: str) -> bool:
        """Tell whether a tensor is the bias of a linear layer or convolution, and not of a norm."""
        weight = self.specs.get(f"{name.removesuffix('.bias')}.weight")
        return name.endswith(".bias") and weight is not None and len(weight.shape) >= 2

    def is_head(self, name: str) -> bool:
        """Tell whether a tensor makes logits."""
        return name.endswith(".weight") and bool(_HEAD.fullmatch(_last(name)))

    def pair_kind(self, name: str, *, embeddings: bool = False) -> PairKind | None:
        """Return how a low-rank delta of this tensor is held, or None where only the whole tensor can be.

        `embeddings` asks for factors of embeddings and heads too; but not of a tied embedding, whose head PEFT would
        leave behind.
        """
        spec = self.specs[name]
        shape = spec.shape
        outer = self.is_embedding(name) or self.is_head(name)
        if not name.endswith(".weight") or not spec.dtype.floating or spec.size == 0:
            return None
        if not self.module(name) or (outer and not embeddings) or self.is_tied(name):
            return None
        if len(shape) == 2:
            return self._matrix_kind(name, spec)
        convolution = 3 <= len(shape) <= 5 and "expert" not in name and shape[1] > 1
        return "convolution" if convolution else None

    def _matrix_kind(self, name: str, spec: Spec) -> PairKind | None:
        if self.is_embedding(name):
            return "embedding"
        if not self.transposed:
            return "linear"
        return "flipped" if _is_conv1d(name, spec) else None  # one adapter has but one orientation

    def arrange(self, pairs: Mapping[str, PairKind], changed: Iterable[str]) -> Arrangement:
        """Decide where everything goes: `pairs` may become factors, `changed` are the other tensors that differ.

        A bias of a linear layer or convolution is put in its place, and so is a tied embedding: PEFT would tie a
        saved module only to a second copy. Any other tensor is saved with its module and all that the module has.
        PEFT finds modules by the end of their names, so modules that end alike come along.
        """
        saved: set[str] = set()
        placed: list[str] = []
        unheld: list[str] = []
        for name in changed:
            if not self.module(name):
                unheld.append(name)
            elif self.is_linear_bias(name) or self.is_tied(name):
                placed.append(name)
            else:
                saved.add(self.module(name))
        saved |= {m for m in self.every if any(m.endswith(s) for s in saved)}
        whole = [
            n
            for n in self.specs
            if any(self.module(n) == s or self.module(n).startswith(f"{s}.") for s in saved)
        ]
        inside = set(whole)
        return Arrangement(
            {name: kind for name, kind in pairs.items() if name not in inside},
            tuple(sorted(saved)),
            tuple(whole),
            tuple(name for name in placed if name not in inside),
            tuple(unheld),
        )

    def short(self, modules: Iterable[str], *, dotted: bool) -> list[str]:
        """Name modules as briefly as PEFT's matching allows without naming others.

        By the last part of their names where all modules that end so are meant, else in full. `dotted`: the end must
        follow a dot (target_modules); without it any ending matches (modules_to_save).
        """
        wanted = set(modules)
        found = set()
        for module in wanted:
            last = module.rpartition(".")[2]
            alike = {m for m in self.every if m == last or m.endswith(f".{last}" if dotted else last)}
            found.add(last if alike <= wanted and not last.isdecimal() else module)
        return sorted(found)


def _last(name: str) -> str:
    return name.split(".")[-2] if "." in name else name


def _is_conv1d(name: str, spec: Spec) -> bool:
    return name.endswith(".weight") and len(spec.shape) == 2 and bool(_CONV1D.fullmatch(_last(name)))


def task_type(config: Mapping[str, Any]) -> str | None:
    """Return PEFT's word for what a model does; None where saying it would change how PEFT loads the adapter.

    For classifiers PEFT saves a module `classifier` or `score` of its own accord, and misses it where it is not.

    >>> task_type({"architectures": ["LlamaForCausalLM"]}), task_type({"architectures": ["BertModel"]})
    ('CAUSAL_LM', None)
    """
    names = [str(a) for a in config.get("architectures") or []]
    if any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in names):
        return "CAUSAL_LM"
    return "SEQ_2_SEQ_LM" if any(n.endswith("ForConditionalGeneration") for n in names) else None
