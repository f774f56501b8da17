"""What codecs of activations are called. Importable without torch."""

from typing import Literal

CodecName = Literal["none", "fp8", "int8"]

Compression = Literal["none", "fp8", "int8", "auto"]
"""A codec for every edge, or for each the one that is fastest there."""
