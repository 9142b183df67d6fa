"""`python -m mm1_jax NAME` and the script `mm1_jax NAME` run a command; without NAME, list all.

    python -m mm1_jax evaluate --checkpoint=runs/mm1_tiny --benchmarks=embedded

A command is imported when its name is known, and nothing heavy before that.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from mm1_jax import __version__
from mm1_jax.command import command, end_on_signals, started_as

_MODULES = {"launch": "mm1_jax.launch.__main__", "rehearse": "mm1_jax.rehearse.__main__"}
COMMANDS = {
    "launch": "train a named config, or resume its run",
    "rehearse": "compile a config for TPUs or GPUs that are not there: memory, speed",
    "compare": "compare the configs of two runs; say why a launch cannot resume one",
    "evaluate": "ask a trained model benchmarks, or score files of predictions",
    "evaluate_encoder": "zero-shot, retrieval and probe scores of a trained vision encoder",
    "generate": "ask a trained model about pictures",
    "convert_records": "convert data of other projects into records for training",
    "train_tokenizer": "train a sentencepiece tokenizer on records or text files",
    "show_batch": "write a page that shows the batch of a step: rows, tokens, pictures",
    "compute_lengths": "count the examples of each corpus, and prepare packing",
    "snapshot": "sample the mixture of a config once, to train from many times",
    "hash_batches": "print a hash of every batch, for any number of hosts",
    "convert_checkpoint": "import weights of other projects, export models for transformers",
    "compare_runs": "compare metrics of runs over seeds, with confidence intervals",
    "fit_learning_rate": "fit a law of the best learning rate by size to a table of runs",
    "run_study": "run the arms of a study over seeds, resume it, and report its claims",
}


def script(name: str | None = None) -> int:
    """Runs the command line of this process; the result is its exit status.

    Args:
        name: The command, where the command line does not begin with it.
    """
    # Before a command is imported, which takes seconds.
    end_on_signals()
    return main([*([] if name is None else [name]), *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, which turns its errors into exit codes itself."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        return _without_command(arguments)
    name, *options = arguments
    module = importlib.import_module(_MODULES.get(name, f"mm1_jax.commands.{name}"))
    return module.main(options)


@command
def _without_command(argv: Sequence[str] | None) -> int:
    """Lists the commands, or says that the first argument is none."""
    first = argv[0] if argv else "--help"
    if first == "--version":
        print(f"mm1_jax {__version__}")
    elif first in ("--help", "-h", "help"):
        print(_overview())
    elif first.startswith("-"):
        raise ValueError(f"{first}: expected a command before it; {_hint(first)}")
    else:
        raise ValueError(f"{first}: there is no such command; {_hint(first)}")
    return 0


def _hint(first: str) -> str:
    close = difflib.get_close_matches(first, COMMANDS)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}`{started_as('--help')}` lists all commands"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {line}" for name, line in COMMANDS.items())
    return "\n".join(
        [
            f"usage: {started_as('COMMAND')} [OPTION ...]",
            "",
            *lines,
            "",
            "COMMAND --help describes the options of a command; --version shows the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(script())
