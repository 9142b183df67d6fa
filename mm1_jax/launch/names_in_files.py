"""Reads the names and summaries of a module's configs from its file, without importing it.

Imports of configs take seconds, so a list of all names reads files where it can. It understands
`named_configs` functions that return one of

    {"name": make, "other": functools.partial(make, ...)}
    {make.__name__: make for make in (first, second)}

whose functions are those of the module; the tuple may have a name. Each name is defined once, and
only assignments stand before the return. Other modules are imported.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def read_names(file: Path) -> dict[str, str] | None:
    """Returns the first line of each config's docstring by its name, or None: import the module."""
    try:
        module = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    defined = Counter(_definitions(module))
    functions: dict[str, ast.FunctionDef] = {}
    values: dict[str, ast.expr] = {}
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and not statement.decorator_list:
            functions[statement.name] = statement
        values |= _assigned(statement)
    if (naming := functions.get("named_configs")) is None:
        return None
    *before, last = naming.body
    own = [_assigned(statement) for statement in before]
    if not isinstance(last, ast.Return) or not all(own):
        return None
    for each in own:
        values |= each
    # A name that is defined twice may have any of its values.
    once = {name for name, number in defined.items() if number == 1}
    try:
        named = list(_named(last.value, {name: values[name] for name in values.keys() & once}))
        makes = {name: functions[name] for name in functions.keys() & once}
        return {name: _summary(makes[make]) for name, make in named}
    except (_Unread, KeyError):
        return None


def _definitions(module: ast.Module) -> Iterator[str]:
    """Yields each name as often as it is defined, assigned, imported or deleted."""
    for node in ast.walk(module):
        match node:
            case ast.Name(name, ast.Store() | ast.Del()):
                yield name
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                yield name
            case ast.alias(name, alias):
                yield alias or name.partition(".")[0]


class _Unread(Exception):
    """An expression of another form."""


def _assigned(statement: ast.stmt) -> dict[str, ast.expr]:
    match statement:
        case ast.Assign([ast.Name(name)], value):
            return {name: value}
        case ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
            return {name: value}
    return {}


def _named(value: ast.expr | None, values: dict[str, ast.expr]) -> Iterator[tuple[str, str]]:
    """Yields the names of configs and of the functions that make them."""
    match value:
        case ast.Dict(keys, makes):
            for key, make in zip(keys, makes, strict=True):
                match key:
                    case ast.Constant(str(name)):
                        yield name, _function(make)
                    case _:
                        raise _Unread
        case ast.DictComp(
            ast.Attribute(ast.Name(key), "__name__"),
            ast.Name(made),
            [ast.comprehension(ast.Name(each), sequence, [])],
        ) if key == made == each:
            if isinstance(sequence, ast.Name):
                sequence = values[sequence.id]
            # A list may have changed since.
            if not isinstance(sequence, ast.Tuple):
                raise _Unread
            for make in sequence.elts:
                name = _function(make)
                yield name, name
        case _:
            raise _Unread


def _function(make: ast.expr) -> str:
    match make:
        case ast.Name(name):
            return name
        case ast.Call(
            ast.Name("partial") | ast.Attribute(ast.Name("functools"), "partial"),
            [ast.Name(name), *_],
        ):
            return name
    raise _Unread


def _summary(function: ast.FunctionDef) -> str:
    return (ast.get_docstring(function) or "").partition("\n")[0]
