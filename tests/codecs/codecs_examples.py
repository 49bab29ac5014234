"""One line per codec (and per behaviour that differs): what the contract is checked on."""

from __future__ import annotations

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Codec

TEXTS: list[str] = [
    "zero",
    "low_rank:rank=4",
    "low_rank:error=0.3",
    "low_rank:energy=0.5,dtype=float16",
    "low_rank:error=0.1,max_rank=3,dtype=float32",
    "dense",
    "lossless",
    "sparse",
    "sparse:values=float32",
    "sparse:values=float16",
    "claq",
    "claq:bits=3.4,dtype=float32",
    "claq:bits=1,of=weight,dtype=float16",
    "claq:bits=2.05,reserve=0.05,threshold=4",
    "bitdelta",
    "bitdelta:zero=plus,scale=row",
    "bitdelta:zero=zero,magnitude=1.5",
    "bitdelta:zero=zero,scale=row,magnitude=3",
    "bitdelta_random",
    "bitdelta_random:distribution=uniform,spread=1.5,zero=zero",
    "magnitude_blocks",
    "magnitude_blocks:blocks=5,scheme=equal_width,zero=plus",
    "magnitude_blocks:blocks=40,zero=minus",
    "residual_bits:passes=1",
    "residual_bits:passes=3,zero=plus",
]


def codecs() -> list[Codec]:
    return [codec_from(text) for text in TEXTS]
