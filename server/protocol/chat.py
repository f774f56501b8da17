"""The body of POST /v1/chat/completions."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from distllm.server.errors import InvalidRequest, shown
from distllm.server.protocol.sampling import Int64, SamplingFields
from distllm.server.protocol.validation import RequestModel, Unsupported, validate

MAX_ITEMS = 8192
"""Most messages of a conversation, and parts of a message."""

Role = Literal["system", "developer", "user", "assistant"]


def parse_content(value: Any) -> str | None:
    """A message's content: text, or a list of text parts, which become lines. Raises InvalidRequest."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequest("content must be a string or a list of parts", "content", "invalid_type")
    _check_count(value, "content", "parts")
    return "\n".join(_part_text(part, f"content[{number}]") for number, part in enumerate(value))


def parse_messages(value: Any) -> list["ChatMessage"]:
    """`messages`: at least one object. Errors carry the message's path."""
    if not isinstance(value, list):
        raise InvalidRequest("messages must be a list of messages", "messages", "invalid_type")
    if not value:
        raise InvalidRequest("messages must hold at least one message", "messages")
    _check_count(value, "messages", "messages")
    return [_parse_message(message, f"messages[{number}]") for number, message in enumerate(value)]


class ChatMessage(RequestModel):
    """One turn of a conversation."""

    role: Role
    content: Annotated[str | None, PlainValidator(parse_content)] = None
    name: str | None = None

    unsupported: ClassVar[Unsupported] = {
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "refusal": ("",),
        "audio": (),
        "annotations": ([],),
    }

    def for_template(self) -> dict[str, str]:
        """The message as chat templates read it."""
        message = {"role": self.role, "content": self.content or ""}
        return message if self.name is None else message | {"name": self.name}


class ChatPrompt(RequestModel):
    """What makes a conversation a prompt; the chat endpoint and /tokenize share it."""

    messages: Annotated[list[ChatMessage], PlainValidator(parse_messages)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check_template_fields(self) -> None:
        """Rules between the fields of the template. Raises InvalidRequest."""
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )


class ChatCompletionRequest(SamplingFields, ChatPrompt):
    """OpenAI's chat completion. `max_completion_tokens` is the newer name of `max_tokens`."""

    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None

    unsupported: ClassVar[Unsupported] = {
        "tools": ([],),
        "tool_choice": ("none",),
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "moderation": (),
        "chat_template": (),
    }

    def check(self) -> None:
        """Rules between fields. Raises InvalidRequest."""
        self.check_stream_fields()
        self.check_template_fields()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed when logprobs is true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise InvalidRequest("max_tokens and max_completion_tokens differ; send one", "max_tokens")
        if self.asked_max_tokens is not None and self.asked_max_tokens < 1:
            raise InvalidRequest(f"{self.max_tokens_field} must be at least 1", self.max_tokens_field)

    @property
    def max_tokens_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def asked_max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """Most likely tokens to list beside each token; None when no logprobs are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _check_count(items: list[Any], path: str, things: str) -> None:
    if len(items) > MAX_ITEMS:
        raise InvalidRequest(f"{path} holds {len(items)} {things}; at most {MAX_ITEMS} are accepted", path)


def _parse_message(value: Any, path: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path} must be an object with role and content", path, "invalid_type")
    try:
        message = validate(ChatMessage, value)
    except InvalidRequest as error:
        param = f"{path}.{error.param}" if error.param else path
        raise InvalidRequest(f"{path}: {error}", param, error.code) from None
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(f"{path}.content is required", f"{path}.content", "missing_required_parameter")
    return message


def _part_text(part: Any, path: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            if len(part) > 2:
                extra = min(part.keys() - {"type", "text"})
                raise InvalidRequest(f"unknown field {path}.{shown(extra)}", f"{path}.{extra}", "unknown_parameter")
            return text
        case {"type": "text"}:
            raise InvalidRequest(f"{path}.text must be a string", f"{path}.text", "invalid_type")
        case {"type": str(kind)}:
            raise InvalidRequest(
                f"{path}: parts of type {shown(kind)!r} are not supported by this server; send text",
                f"{path}.type",
                "unsupported_value",
            )
    raise InvalidRequest(f"{path} must be an object with type and text", path, "invalid_type")
