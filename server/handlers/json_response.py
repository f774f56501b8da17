"""msgspec objects as JSON responses."""

import msgspec
from starlette.responses import Response


def json_response(value: msgspec.Struct, status_code: int = 200) -> Response:
    """The value as application/json."""
    return Response(msgspec.json.encode(value), status_code=status_code, media_type="application/json")
