"""What codecs of activations are called. Importable without torch."""

from typing import Final, Literal

CodecName = Literal["none", "fp8", "int8"]

PLAIN: Final = "none"
"""Activations as they are."""

Compression = Literal["none", "fp8", "int8", "auto"]
"""A codec for every edge, or for each the one that is fastest there."""
