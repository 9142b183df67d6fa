"""Evaluates a trained model on benchmarks, or scores prediction files as the official code does.

python -m mm1_jax evaluate --checkpoint=runs/mm1_tiny --benchmarks=digits_vqa
python -m mm1_jax evaluate --score_only --benchmarks=pope --predictions=FILE
python -m mm1_jax evaluate --chat_table=runs/mm1_3b_chat
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.processes import add_cluster_options, evaluated, write_scores
from mm1_jax.storage import write_whole

RESUMES = "the same command resumes"
# Names of groups of benchmarks. The registry, which defines them, would import jax.
GROUPS = (
    *("pretraining", "chat", "judged", "table4", "text_core", "embedded", "embedded_chat"),
    *("small_world", "small_world_text"),
)

EPILOG = """\
with --checkpoint:
  Prompts, few-shot examples, stop strings and metrics follow the paper; docs/evaluation.md
  describes the protocol, and --list the files of each benchmark. --set=NAME.FIELD=VALUE sets any
  field of a benchmark. Answers are stored as they are generated: after a stop, the same command
  resumes. --output receives the answers, prediction files, report.md, and scores.json with the
  keys NAME/SHOTS/METRIC.

  For a model that needs the devices of several hosts, give the same command on each host, as for
  training. The processes find each other as in a launch, and must see the same folders.

predictions and annotations, with --score_only:
  A path is a file or a folder. In a folder, all files in the layout of the benchmark are read; a
  subfolder NAME is read instead if there is one. For several benchmarks, give a folder with such
  subfolders, or repeat the option as NAME=PATH. --list shows the layouts.

  References are in the predictions themselves, or in a separate file: --annotations.

with --chat_table:
  Prints the scores of evaluated runs in the layout of MM1's Table 4, below the published rows, as
  Markdown. FOLDER is the folder of a run or of an evaluation, NAME the name of its row.
  --output=DIR receives chat_table.md and chat_table.csv.

scores:
  The keys are NAME/FILE, where FILE is a prediction file without its suffix (for MME, a subtask).
  docs/evaluation.md has the definition of each score and its source.

examples:
  %(prog)s --list
  %(prog)s --checkpoint=runs/mm1_tiny --benchmarks=embedded --shots=0,4 --limit=100
  %(prog)s --checkpoint=runs/mm1_3b --benchmarks=pretraining --shots=0,4,8,16 \\
      --benchmarks_dir=benchmarks --json=scores.json
  %(prog)s --checkpoint=runs/mm1_3b --benchmarks=vqav2 \\
      --set=vqav2.corpus.source.query_split=test-dev2015
  %(prog)s --checkpoint=runs/mm1_3b_chat --benchmarks=table4 --benchmarks_dir=benchmarks
  %(prog)s --chat_table=runs/mm1_3b_chat --chat_table=large=runs/mm1_7b_chat
  %(prog)s --score_only --benchmarks=pope --predictions=pope/adversarial.jsonl
  %(prog)s --score_only --benchmarks=mme --predictions=mme --json=scores.json
  %(prog)s --score_only --benchmarks=pope,textvqa --predictions=answers
  %(prog)s --score_only --benchmarks=vqav2,gqa --json=scores.json \\
      --predictions=vqav2=vqa.json --annotations=vqav2=v2_mscoco_val2014_annotations.json \\
      --predictions=gqa=gqa.json --annotations=gqa=testdev_balanced_questions.json
  %(prog)s --score_only --benchmarks=caption --caption_metrics=METEOR,SPICE \\
      --predictions=captions_val2014_fakecap_results.json \\
      --annotations=annotations/captions_val2014.json

exit codes:
  0    scored
  2    the command or a file must be changed; the message says how
  130  stopped by Ctrl-C (143: by SIGTERM); the same command resumes
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("evaluate"),
        description="Evaluates a trained model on benchmarks, or scores prediction files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--list", action="store_true", help="describe the benchmarks and their layouts, and exit"
    )
    parser.add_argument(
        "--score_only", action="store_true", help="score prediction files, without a model"
    )
    parser.add_argument(
        "--chat_table",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="print the scores of a run in the layout of MM1's Table 4; may be repeated",
    )
    parser.add_argument(
        "--benchmarks",
        default="",
        metavar="NAME[,NAME]",
        help=f"names of --list; with --checkpoint also the groups {', '.join(GROUPS)}; with "
        "--score_only also all: every benchmark that has a subfolder in --predictions",
    )
    parser.add_argument(
        "--checkpoint",
        type=local_path,
        metavar="FOLDER",
        help="output folder of the run to evaluate",
    )
    parser.add_argument("--step", type=whole(0), help="step of the checkpoint; default: the newest")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N[,AXIS=N]",
        help="mesh of devices, such as data=2,model=4, or run for that of the training; default: "
        "one device, or run with several processes",
    )
    parser.add_argument(
        "--shots",
        metavar="K[,K]",
        help="numbers of few-shot examples; default: 0,4,8, and 0 for chat and text benchmarks",
    )
    parser.add_argument(
        "--exemplars",
        choices=("random", "similar"),
        default="random",
        help="few-shot examples: random ones, or those whose images are most similar to the "
        "query's for the model's vision encoder (RICES); default: %(default)s",
    )
    parser.add_argument(
        "--tiled_exemplars",
        type=whole(0),
        metavar="N",
        help="show the pictures of the last N few-shot examples in tiles, those of the others as "
        "one view each; default: all as the tiling of the run does",
    )
    parser.add_argument(
        "--reasoning",
        action="store_true",
        help="ask chat benchmarks for reasoning before the answer (chain of thought); few-shot "
        "examples show that of their records",
    )
    parser.add_argument(
        "--judge_url",
        default="",
        metavar="URL",
        help="endpoint with the API of OpenAI, https://HOST/v1, that grades llava_bench and mmvet; "
        "the environment variable OPENAI_API_KEY holds its key",
    )
    parser.add_argument(
        "--judge_model", default="", metavar="NAME", help="model of the endpoint that grades"
    )
    parser.add_argument(
        "--judge_allow_http",
        action="store_true",
        help="allow a --judge_url of another machine without TLS",
    )
    parser.add_argument(
        "--benchmarks_dir",
        type=local_path,
        default=Path("benchmarks"),
        metavar="DIR",
        help="folder with a subfolder per benchmark; default: %(default)s",
    )
    parser.add_argument(
        "--limit", type=whole(), metavar="N", help="use N random records, the same ones every time"
    )
    parser.add_argument("--batch_size", type=whole(), metavar="N", help="prompts per batch")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.FIELD=VALUE",
        help="set a field of a benchmark; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        metavar="DIR",
        help="folder for answers and report; default: evaluation/STEP in the run's folder",
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="prediction file or folder; may be repeated, with the name of the benchmark",
    )
    parser.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="references, if the predictions do not hold them; may be repeated",
    )
    parser.add_argument(
        "--caption_metrics",
        default="",
        metavar="NAME[,NAME]",
        help="additional metrics of captions, METEOR and SPICE; they need Java and "
        "mm1_jax[caption-metrics]",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the scores to FILE"
    )
    add_cluster_options(parser)
    flags = parser.parse_args(arguments)
    if flags.list:
        return flags
    if flags.score_only + (flags.checkpoint is not None) + bool(flags.chat_table) != 1:
        parser.error(
            "give one of --checkpoint=FOLDER to evaluate a model, --score_only to score "
            "predictions, and --chat_table=FOLDER to print a table of scores"
        )
    if flags.chat_table:
        return flags
    if flags.checkpoint is not None:
        if not flags.benchmarks:
            parser.error("--benchmarks: required; --help has examples")
        return flags
    if missing := [
        f"--{name}" for name in ("benchmarks", "predictions") if not getattr(flags, name)
    ]:
        parser.error(f"{', '.join(missing)}: required; --help has examples")
    return flags


@command
def main(argv: Sequence[str] | None = None) -> int:
    # Modules are imported where they are needed: --help is instant, and scoring needs no jax.
    flags = parse(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The encoding of the terminal may lack characters that questions or names contain.
        sys.stdout.reconfigure(errors="backslashreplace")
    if flags.list:
        from mm1_jax.evals.listing import describe

        print(describe())
        return 0
    if flags.chat_table:
        print_chat_table(flags)
        return 0
    if flags.checkpoint is None:
        from mm1_jax.evals.predictions.score_files import score_predictions, table

        scores, notes = score_predictions(flags)
        write_scores(flags, scores)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print("\n".join(table(scores)))
        return 0
    # orbax warns about a checkpoint folder that is opened for reading only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return evaluated(flags, _ask, folders=("checkpoint", "benchmarks_dir", "output"), note=RESUMES)


def _ask(flags: argparse.Namespace) -> dict[str, float]:
    from mm1_jax.evals import runner

    return runner.ask(flags)


def print_chat_table(flags: argparse.Namespace) -> None:
    """Prints the table of chat models, and writes it to --output, if given."""
    from mm1_jax.evals import chat_table

    rows = chat_table.published_rows()
    for given in flags.chat_table:
        name, equals, folder = given.rpartition("=")
        path = local_path(folder)
        rows.append(chat_table.read_row(name if equals else path.resolve().name, path, flags.step))
    text = chat_table.markdown(rows)
    print(text)
    if flags.output is not None:
        flags.output.mkdir(parents=True, exist_ok=True)
        write_whole(flags.output / "chat_table.md", text)
        write_whole(flags.output / "chat_table.csv", chat_table.csv_text(rows))
