"""Where a checkpoint keeps its chat template, and how a conversation becomes a prompt string.

Hugging Face puts templates in chat_template.jinja, chat_template.json, additional_chat_templates/*.jinja and, as a
string or a list of named ones, in tokenizer_config.json; files of their own win. The sandbox is
transformers'.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from distllm.server.errors import InvalidRequest, shown
from distllm.server.slow_tokenizer import TokenizerError

Message = dict[str, str]

RESERVED_NAMES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template",
     "conversations", "return_assistant_tokens_mask", "self")
)  # fmt: skip
"""Names that a template's variables cannot have: the renderer's own, and what it passes to templates itself."""


class NoChatTemplate(InvalidRequest):
    """The checkpoint has no chat template, so a conversation cannot become a prompt."""

    def __init__(self) -> None:
        super().__init__(
            "this model's tokenizer has no chat template; use /v1/completions, or start the server with "
            "--chat-template FILE",
            "messages",
            "no_chat_template",
        )


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The text of a template, and the file to name where it is wrong."""

    text: str
    file: Path

    @classmethod
    def read(cls, file: Path) -> "TemplateSource":
        """Raises TokenizerError for a file that cannot be read."""
        try:
            return cls(file.read_text(encoding="utf-8"), file)
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"the chat template {file} cannot be read: {error}") from None

    def check(self) -> None:
        """Raises TokenizerError for a template that Jinja cannot compile."""
        try:
            _compile_jinja_template(self.text)
        except TemplateError as error:
            place = f" in line {line}" if (line := getattr(error, "lineno", None)) else ""
            raise TokenizerError(
                f"the chat template in {self.file} is wrong{place}: {error.message}; mend it, or give another with "
                "--chat-template FILE"
            ) from None


class ChatTemplate:
    """A Jinja template and the special tokens it may name. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: list[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt string. Raises InvalidRequest with the template's own words when it refuses, or naming a
        variable that is not the client's to set."""
        if reserved := RESERVED_NAMES.intersection(variables):
            name = min(reserved)
            raise InvalidRequest(f"chat_template_kwargs must not set {name}", f"chat_template_kwargs.{name}")
        with self.refusals():
            rendered, _ = render_jinja_template(
                [self.prepare(messages)],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **self._special_tokens | dict(variables),
            )
        return str(rendered[0])

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Turns what a template raises about its input into InvalidRequest."""
        try:
            yield
        except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {shown(str(error), 500)}",
                "messages",
                "chat_template_error",
            ) from None

    def prepare(self, messages: list[Message]) -> list[Message]:
        """Messages under roles that the template knows: OpenAI's developer is the system elsewhere."""
        if self._knows_developer:
            return messages
        return [message | {"role": "system"} if message["role"] == "developer" else message for message in messages]


def find_template(directory: Path) -> TemplateSource | None:
    """The default chat template of a checkpoint directory; None when it has none. Raises TokenizerError."""
    named = _from_config(directory / "tokenizer_config.json")
    named |= _from_config(directory / "chat_template.json")
    folder = directory / "additional_chat_templates"
    named |= {path.stem: TemplateSource.read(path) for path in sorted(folder.glob("*.jinja"))}
    if (path := directory / "chat_template.jinja").is_file():
        named["default"] = TemplateSource.read(path)
    if "default" in named or len(named) != 1:
        return named.get("default")
    return next(iter(named.values()))


def _from_config(path: Path) -> dict[str, TemplateSource]:
    """Templates of a JSON file's `chat_template`, by name."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return {name: TemplateSource(text, path) for name, text in _named(document.get("chat_template"), path).items()}


def _named(template: object, path: Path) -> dict[str, str]:
    """A `chat_template` by name, whichever of its forms it has."""
    pairs: list[tuple[Any, Any]]
    match template:
        case None:
            return {}
        case dict():
            pairs = list(template.items())
        case list():
            entries = [entry if isinstance(entry, dict) else {} for entry in template]
            pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
        case _:
            pairs = [("default", template)]
    if not all(isinstance(part, str) for pair in pairs for part in pair):
        raise TokenizerError(
            f"{path}: chat_template must be a string, or a list of objects with the strings name and template"
        )
    return dict(pairs)
