"""Options of commands that take a named config, and overrides of its fields."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mm1_jax.command import USER_ERROR
from mm1_jax.config_file import ConfigFile, read_config_file
from mm1_jax.flags import local_text
from mm1_jax.launch.launch import Launch
from mm1_jax.launch.named_configs import find_named_config

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--config.PATH=VALUE` from the other arguments; `--[no]config.PATH` is a bool."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        negated, path, value = match.groups()
        if negated and value is not None:
            print(
                f"error: {argument}: --noconfig.{path} takes no value, it sets the field to False; "
                f"--config.{path}={value} sets another value",
                file=sys.stderr,
            )
            raise SystemExit(USER_ERROR)
        if value is None and not negated and arguments and not arguments[0].startswith("--"):
            value = arguments.pop(0)
        if value is None:
            value = "false" if negated else "true"
        # The last one counts, in its place.
        overrides.pop(path, None)
        overrides[path] = value
    return rest, overrides


def _config_file(text: str) -> ConfigFile:
    """Parses the value of --config_file for argparse."""
    try:
        return read_config_file(local_text(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--config_file=")) from None


class _ReadFile(argparse.Action):
    """Stores a config file, and its config's name as --config."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.config_file = values
        namespace.config = values.config


def add_config_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the options that choose a config; `split_overrides` reads those that change it."""
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument(
        "--config",
        metavar="NAME",
        help="a named config, which --list of a launch shows; --config.PATH=VALUE sets a field",
    )
    which.add_argument(
        "--config_file",
        metavar="FILE",
        type=_config_file,
        action=_ReadFile,
        help="a config that --print_config=json of a launch printed, or config.json of a run",
    )
    parser.add_argument(
        "--module",
        metavar="MODULE",
        help="the module whose named_configs() has NAME, in the current folder or on PYTHONPATH "
        "(default: all modules of `experiments`)",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="the same structure at sizes for a laptop: few and narrow layers, small images, short "
        "rows, a small batch, embedded data; says what it changes, and --config.PATH=VALUE still "
        "sets a field",
    )
    parser.add_argument(
        "--evals",
        metavar="A,B",
        help='keeps these evaluators alone (short for --config.evals); "" switches all off',
    )
    parser.add_argument(
        "--data_dir",
        type=local_text,
        metavar="DIR",
        help="folder of records and tokenizer (short for --config.input.data_dir; default: ./data)",
    )


def chosen_launch(options: argparse.Namespace, overrides: Mapping[str, str]) -> Launch:
    """Returns the launch that these options name; raises ValueError for an unknown config."""
    file = options.config_file
    if file is None:
        return named_launch(options.config, options, overrides)
    overrides = _with_short_options(options, overrides)
    return Launch(file.config, options.module, overrides, asdict(file), options.small)


def named_launch(name: str, options: argparse.Namespace, overrides: Mapping[str, str]) -> Launch:
    """Returns the launch of a named config with the other options."""
    named = find_named_config(name, options.module)
    overrides = _with_short_options(options, overrides)
    return Launch(named.name, named.module, overrides, small=options.small)


def _with_short_options(
    options: argparse.Namespace, overrides: Mapping[str, str]
) -> Mapping[str, str]:
    if options.evals is not None:
        # First, so that an override of an evaluator that is switched off is an error.
        overrides = {"evals": options.evals, **overrides}
    if options.data_dir is not None:
        overrides = {**overrides, "input.data_dir": options.data_dir}
    return overrides


def say_note(line: str) -> None:
    """Prints a change that a command line does not spell out."""
    print(f"note: {line}", file=sys.stderr, flush=True)
