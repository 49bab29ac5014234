"""Which tokens a latent raises and lowers at the output, by the direct path alone. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltasmith.features.dictionaries.dictionary import Dictionary
from deltasmith.features.site import Site, module_at
from deltasmith.features.study import Effects

__all__ = ["Path", "direct_path", "effects_of"]

_TOP = 10
_ROOM = 1 << 26
"""Bytes of logits held at once: 64 MiB."""
_WRITERS = frozenset(
    ("down_proj", "o_proj", "c_proj", "out_proj", "fc2", "fc_out", "dense_4h_to_h", "dense", "wo", "w2")
)
"""Names that architectures give the linear maps whose outputs are added to the residual stream."""
_ADDED = _WRITERS | {"mlp", "self_attn", "attn", "attention"}
_NORMS = (
    *(
        "model.norm",
        "transformer.ln_f",
        "gpt_neox.final_layer_norm",
        "model.final_layernorm",
        "model.decoder.norm",
    ),
    *("model.decoder.final_layer_norm", "transformer.norm_f", "backbone.norm_f", "model.final_layer_norm"),
)
_BETWEEN = ("post_feedforward_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
"""Norms between a sublayer's output and the residual stream: behind one, a direction has no effect of its own."""


@dataclass(frozen=True, eq=False)
class Path:
    """A linear map from activations at a site to logits, up to the length of the residual stream at the final norm.

    A direction d of (width,) becomes (writer @ d, or d) * gain, less its mean first where the norm takes that off,
    times unembedding, (vocabulary, hidden), whose mean over the vocabulary is taken off: softmax does not see it.
    """

    writer: Tensor | None
    centred: bool
    gain: Tensor
    unembedding: Tensor

    @property
    def width(self) -> int:
        """Return the width of the site."""
        return int(self.gain.shape[0] if self.writer is None else self.writer.shape[1])

    def logits(self, directions: Tensor) -> Tensor:
        """Return (n, vocabulary) of (n, width)."""
        residual = directions if self.writer is None else directions @ self.writer.T
        if self.centred:
            residual = residual - residual.mean(-1, keepdim=True)
        return (residual * self.gain) @ self.unembedding.T


def direct_path(network: nn.Module, site: Site) -> Path | str:
    """Return the direct path from a site to the logits, or why there is none: a note.

    From the input of a linear map that writes to the residual stream it leads through the map's weight; from its
    output, from that of a whole sublayer, or from input or output of a whole layer, through nothing; then through the
    gain of the final norm and the unembedding. Layers in between are left out, and so are biases.
    """
    module = module_at(network, site)
    missing = _why_undefined(network, site, module)
    if missing:
        return f"no tokens are given for latents at {site}: {missing}"
    head = network.get_output_embeddings()  # type: ignore[operator]
    unembedding = head.weight.detach().float()
    measured = _gain(_norm(network), unembedding)
    if isinstance(measured, str):
        return f"no tokens are given for latents at {site}: {measured}"
    gain, centred = measured
    writer = _weight(module) if site.side == "in" and site.module.split(".")[-1] in _WRITERS else None
    written = writer.shape[0] if writer is not None else None
    if written is not None and written != unembedding.shape[1]:
        return f"no tokens are given for latents at {site}: the module does not write to the residual stream"
    return Path(writer, centred, gain, unembedding - unembedding.mean(0))


def effects_of(network: nn.Module, site: Site, dictionary: Dictionary) -> Effects:
    """Rank the tokens that each latent's decoder row raises and lowers most at the output, by the direct path.

    Values are logits, relative to the mean over the vocabulary, of one unit of activation on a residual stream of
    root mean square one: comparable among latents, not on their own. Where there is no direct path (`direct_path`
    says why), and where widths do not fit, the arrays are (latents, 0). Paper: the logit lens of nostalgebraist 2020,
    applied to directions as in Bricken et al. 2023, "Towards monosemanticity".
    """
    path = direct_path(network, site)
    wide = dictionary.decoder.to(next(network.parameters()).device)
    if isinstance(path, str) or wide.shape[1] != path.width:
        empty = np.zeros((dictionary.latents, 0))
        ids, values = empty.astype(np.int32), empty.astype(np.float32)
        return Effects(ids, values, ids, values)
    top = min(_TOP, path.unembedding.shape[0])
    rows = max(1, _ROOM // (4 * path.unembedding.shape[0]))
    found: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for first in range(0, dictionary.latents, rows):
            logits = path.logits(wide[first : first + rows])
            found.append((*logits.topk(top, dim=1), *logits.topk(top, dim=1, largest=False)))
    raised_by, raised, lowered_by, lowered = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return Effects(
        raised.numpy().astype(np.int32),
        raised_by.numpy(),
        lowered.numpy().astype(np.int32),
        lowered_by.numpy(),
    )


def _why_undefined(network: Any, site: Site, module: nn.Module) -> str:
    """Say what stands between a site and the logits; nothing where there is a direct path."""
    last = site.module.split(".")[-1]
    if getattr(network, "get_output_embeddings", lambda: None)() is None:
        return "the network has no unembedding"
    if _norm(network) is None:
        return "the final norm was not found"
    if last.isdigit():
        return ""  # a whole layer: the residual stream itself
    if last not in (_WRITERS if site.side == "in" else _ADDED):
        return "the module does not write to the residual stream"
    if site.side == "in" and _weight(module) is None:
        return "the module has no weight matrix to follow"
    layer = _layer_of(network, site)
    if layer is not None and any(hasattr(layer, name) for name in _BETWEEN):
        return "a norm lies between the module and the residual stream"
    return ""


def _layer_of(network: nn.Module, site: Site) -> nn.Module | None:
    """Return the layer that a module belongs to: the longest part of its name that ends in a number."""
    parts = site.module.split(".")
    numbered = [at for at, part in enumerate(parts) if part.isdigit()]
    return network.get_submodule(".".join(parts[: numbered[-1] + 1])) if numbered else None


def _norm(network: nn.Module) -> nn.Module | None:
    modules = dict(network.named_modules())
    return next((modules[name] for name in _NORMS if name in modules), None)


def _gain(norm: Any, like: Tensor) -> tuple[Tensor, bool] | str:
    """Measure a norm's gain, (hidden,), and whether it takes the mean off, by what it makes of signs.

    Signs have a root mean square of one and, in even number, a mean of zero; so f(s) - f(-s) = 2 s gain, for any way
    of keeping the gain (1 + weight, a bias besides).
    """
    hidden = like.shape[1]
    kept = next((p.dtype for p in norm.parameters()), like.dtype)
    signs = torch.ones(hidden, device=like.device, dtype=kept)
    signs[1::2] = -1
    with torch.no_grad():
        found = [norm(x[None, None])[0, 0].float() for x in (signs, -signs, signs + 1)]
    gain = (found[0] - found[1]) / (2 * signs.float())
    if not bool(torch.isfinite(gain).all()):
        return "the gain of the final norm is not finite"
    return gain, bool(torch.allclose(found[2], found[0], rtol=1e-3, atol=1e-4 * float(gain.abs().max())))


def _weight(module: nn.Module) -> Tensor | None:
    """Return a linear map's weight as (outputs, inputs), or None where the module is none."""
    weight = getattr(module, "weight", None)
    weight = weight.detach() if isinstance(weight, Tensor) else None
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    return weight.float().T if type(module).__name__ == "Conv1D" else weight.float()
