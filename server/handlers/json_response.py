"""msgspec objects as JSON responses."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response


def json_response(
    value: msgspec.Struct, status_code: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The value as application/json."""
    return Response(msgspec.json.encode(value), status_code, headers, "application/json")
