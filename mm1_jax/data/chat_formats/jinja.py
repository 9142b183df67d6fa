"""Chat templates of Jinja, in the environment that transformers runs them in.

The library comes with the extra `hf`.
"""

import importlib
import json
from typing import Any


class TemplateError(ValueError):
    """A template that cannot be compiled, or that fails or refuses a conversation."""


class Template:
    """A compiled chat template."""

    def __init__(self, template: Any, errors: tuple[type[Exception], ...]):
        self._template, self._errors = template, errors

    def render(self, **variables: Any) -> str:
        """Returns the text of a conversation.

        Raises:
            TemplateError: The template raises an exception, as some do for system turns.
        """
        try:
            return self._template.render(**variables)
        except self._errors as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error


def compiled(text: str) -> Template:
    """Compiles a template. Raises TemplateError if it is invalid."""
    try:
        jinja2 = importlib.import_module("jinja2")
        sandbox = importlib.import_module("jinja2.sandbox")
        ext = importlib.import_module("jinja2.ext")
    except ImportError as error:
        raise ValueError(
            f"HFChatFormat needs jinja2 ({error}): pip install 'mm1_jax[hf]'"
        ) from error

    class Generation(ext.Extension):
        """Marks of the text that a model generates, which templates may have."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> None:
        raise jinja2.TemplateError(
            f"it writes the date of today ({form!r}), so that data would change every day; fix the "
            "date in chat_format.variables, such as {'date_string': '26 Jul 2024'}"
        )

    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    errors = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
    try:
        return Template(environment.from_string(text), errors)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template is invalid: {error}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON without escaping HTML, unlike Jinja's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def literal(value: Any) -> str:
    """Returns a value as an expression of Jinja.

    >>> literal({"a": [True, None, "x"]})
    '{"a": [true, none, "x"]}'
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)
