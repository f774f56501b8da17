"""What /docs shows of a body: handlers parse bodies themselves, within limits, so FastAPI is told apart."""

from typing import Any

from pydantic import BaseModel


def describe(*models: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` for a route that takes one of `models` as JSON."""
    schemas = [model.model_json_schema() for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
