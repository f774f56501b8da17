"""What is asked of whoever has weights, and of who knows who has. Importable without torch."""

from typing import Annotated, Final

import msgspec

MANIFEST_PATH: Final = "/v1/manifest"
WEIGHTS_PATH: Final = "/v1/weights"
HOLDERS_PATH: Final = "/v1/holders"


class ManifestRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for the manifest of a checkpoint. The answer is its encoding."""

    fingerprint: str


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [offset, offset + num_bytes) of a tensor."""

    name: str
    offset: Annotated[int, msgspec.Meta(ge=0)]
    num_bytes: Annotated[int, msgspec.Meta(ge=1)]


class WeightsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for bytes of a checkpoint's tensors. The answer is those of all spans, one after the other."""

    fingerprint: str
    spans: list[Span]


class HoldersRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks the coordinator which peers have layers [begin, end) of a checkpoint. The answer is their Endpoints."""

    fingerprint: str
    begin: int
    end: int
