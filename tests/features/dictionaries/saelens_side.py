"""The other side of the exchange, run by an interpreter that has SAELens: read our dictionaries, write theirs.

python saelens_side.py FOLDER: FOLDER/ours/NAME are read and applied to FOLDER/x.npy; FOLDER/theirs/NAME are written.
FOLDER/results.npz receives NAME.codes and NAME.made of all of them.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

WIDTH, LATENTS = 32, 64


def shaken(sae):
    """Give every parameter another value, decoder rows other lengths, and thresholds something to cut."""
    draws = torch.Generator().manual_seed(3)
    for name, tensor in sae.named_parameters():
        noise = torch.randn(tensor.shape, generator=draws)
        tensor.data += 0.1 * noise
        if name == "threshold":
            tensor.data += 0.5
    sae.W_dec.data *= torch.linspace(0.3, 3, LATENTS)[:, None]
    return sae


def theirs() -> dict:
    size = {"d_in": WIDTH, "d_sae": LATENTS}
    batch = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=4))
    batch.topk_threshold += 0.7
    return {
        "standard": StandardSAE(StandardSAEConfig(**size)),
        "standard-unshifted": StandardSAE(StandardSAEConfig(**size, apply_b_dec_to_input=False)),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**size)),
        "topk": TopKSAE(TopKSAEConfig(**size, k=5)),
        "topk-unshifted": TopKSAE(TopKSAEConfig(**size, k=5, apply_b_dec_to_input=False)),
        "topk-rescaled": TopKSAE(TopKSAEConfig(**size, k=5, rescale_acts_by_decoder_norm=True)),
        "topk-trained": TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=5)),
        "batchtopk-trained": batch,
    }


@torch.no_grad()
def main(folder: Path) -> None:
    x = torch.from_numpy(np.load(folder / "x.npy"))
    results = {}
    for name, sae in theirs().items():
        place = folder / "theirs" / name
        getattr(shaken(sae), "save_inference_model", sae.save_model)(place)
    for place in sorted([*(folder / "theirs").iterdir(), *(folder / "ours").iterdir()]):
        sae = SAE.load_from_disk(place)
        codes = sae.encode(x)
        results[f"{place.parent.name}/{place.name}.codes"] = codes.numpy()
        results[f"{place.parent.name}/{place.name}.made"] = sae.decode(codes).numpy()
        results[f"{place.parent.name}/{place.name}.hook"] = np.array(str(sae.cfg.metadata.hook_name))
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
