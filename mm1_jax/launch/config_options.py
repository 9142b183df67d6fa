"""Options of commands that take a named config, and overrides of its fields."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

from mm1_jax.command import USER_ERROR
from mm1_jax.flags import local_text
from mm1_jax.launch.named_configs import find_named_config
from mm1_jax.launch.run_folder import Launch

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


def add_config_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that name a config; `split_overrides` has taken those that change it."""
    parser.add_argument(
        "--config",
        metavar="NAME",
        required=required,
        help="a named config, which --list of a launch shows; --config.PATH=VALUE sets a field",
    )
    parser.add_argument(
        "--module",
        metavar="MODULE",
        help="the module whose named_configs() has NAME, in the current folder or on PYTHONPATH "
        "(default: all modules of `experiments`)",
    )
    parser.add_argument(
        "--data_dir",
        type=local_text,
        metavar="DIR",
        help="where records and tokenizer lie (short for --config.input.data_dir; default: ./data)",
    )


def chosen_launch(options: argparse.Namespace, overrides: Mapping[str, str]) -> Launch:
    """The launch that these options name; raises ValueError where there is no such config."""
    if options.data_dir is not None:
        overrides = {**overrides, "input.data_dir": options.data_dir}
    named = find_named_config(options.config, options.module)
    return Launch(named.name, named.module, overrides)
