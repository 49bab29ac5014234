"""One line per codec (and per behaviour that differs): what the contract is checked on."""

from __future__ import annotations

from deltasmith.codecs.catalogue import codec_from
from deltasmith.codecs.protocol import Codec

TEXTS: list[str] = []


def codecs() -> list[Codec]:
    return [codec_from(text) for text in TEXTS]
