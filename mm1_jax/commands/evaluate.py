"""Evaluates a trained model on benchmarks, or scores prediction files as the official code does.

python -m mm1_jax evaluate --checkpoint=runs/mm1_tiny --benchmarks=digits_vqa
python -m mm1_jax evaluate --score_only --benchmarks=pope --predictions=FILE
"""

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path, whole
from mm1_jax.launch.processes import add_cluster_options, chosen_cluster, join, of_several
from mm1_jax.storage import write_whole

RESUMES = "the same command resumes"
# Names of groups of benchmarks. The registry, which defines them, would import jax.
GROUPS = ("pretraining", "chat", "judged", "text_core", "embedded")

EPILOG = """\
with --checkpoint:
  Prompts, exemplars, stop strings and metrics are the paper's; --list has the files that each
  benchmark is read from, and docs/evaluation.md the protocol. Any field of a benchmark is set by
  --set=NAME.FIELD=VALUE. Answers are kept as they come: a stopped command, given again, goes on.
  In --output are the answers, files of predictions, report.md and scores.json, whose keys are
  NAME/SHOTS/METRIC.

  A model that takes the devices of several hosts is asked by one command on each of them, as it
  was trained; they find each other as processes of a launch do, and see the same folders.

predictions and annotations, with --score_only:
  A path is a file, or a folder: then the files of it that are in the layout of the benchmark, or of
  its subfolder called NAME where there is one. For several benchmarks give one folder with such
  subfolders, or the flag once for each, as NAME=PATH. --list shows the layouts.

  References stand in the predictions themselves or in a file of their own, --annotations.

scores:
  Under the keys NAME/FILE, where FILE is a prediction file without its suffix (for MME, a subtask).
  The rules of each number, and where they come from: docs/evaluation.md.

examples:
  %(prog)s --list
  %(prog)s --checkpoint=runs/mm1_tiny --benchmarks=embedded --shots=0,4 --limit=100
  %(prog)s --checkpoint=runs/mm1_3b --benchmarks=pretraining --shots=0,4,8,16 \\
      --benchmarks_dir=benchmarks --json=scores.json
  %(prog)s --checkpoint=runs/mm1_3b --benchmarks=vqav2 \\
      --set=vqav2.corpus.source.query_split=test-dev2015
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
        description="Asks a trained model benchmarks, or scores what any model answered.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--list", action="store_true", help="describe the benchmarks and their layouts, and end"
    )
    parser.add_argument(
        "--score_only", action="store_true", help="score files of predictions; no model is run"
    )
    parser.add_argument(
        "--benchmarks",
        default="",
        metavar="NAME[,NAME]",
        help=f"names of --list; with --checkpoint {', '.join(GROUPS)} too; with --score_only "
        "all: those that have a subfolder in --predictions",
    )
    parser.add_argument(
        "--checkpoint", type=local_path, metavar="FOLDER", help="a run's output folder, to be asked"
    )
    parser.add_argument(
        "--step", type=whole(0), help="which of its checkpoints; default: the newest"
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N[,AXIS=N]",
        help="how devices share the work, such as data=2,model=4; run: as in training; default: "
        "one device, and run with several processes",
    )
    parser.add_argument(
        "--shots",
        metavar="K[,K]",
        help="numbers of exemplars; default: 0,4,8, and 0 for chat and text benchmarks",
    )
    parser.add_argument(
        "--exemplars",
        choices=("random", "similar"),
        default="random",
        help="any, or those whose pictures the model's vision encoder finds most like the query's "
        "(RICES); default: %(default)s",
    )
    parser.add_argument(
        "--judge_url",
        default="",
        metavar="URL",
        help="an endpoint as OpenAI's, https://HOST/v1, to grade llava_bench and mmvet; the key "
        "comes from the environment variable OPENAI_API_KEY",
    )
    parser.add_argument(
        "--judge_model", default="", metavar="NAME", help="what the endpoint calls the judge"
    )
    parser.add_argument(
        "--judge_allow_http",
        action="store_true",
        help="speak to a --judge_url of another machine without TLS",
    )
    parser.add_argument(
        "--benchmarks_dir",
        type=local_path,
        default=Path("benchmarks"),
        metavar="DIR",
        help="the folder with a folder of each benchmark; default: %(default)s",
    )
    parser.add_argument(
        "--limit", type=whole(), metavar="N", help="ask a random N of the records, always the same"
    )
    parser.add_argument("--batch_size", type=whole(), metavar="N", help="prompts at once")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME.FIELD=VALUE",
        help="a field of a benchmark; may be given several times",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        metavar="DIR",
        help="for answers and report; default: evaluation/STEP in the run's folder",
    )
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file or folder; may be given several times, with the name of the benchmark",
    )
    parser.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="the references, where the predictions do not hold them",
    )
    parser.add_argument(
        "--caption_metrics",
        default="",
        metavar="NAME[,NAME]",
        help="METEOR, SPICE: of captions as well; they need Java and .[caption-metrics]",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="write the scores there as well"
    )
    add_cluster_options(parser)
    flags = parser.parse_args(arguments)
    if flags.list:
        return flags
    if flags.score_only == (flags.checkpoint is not None):
        parser.error(
            "give --checkpoint=FOLDER to ask a model, or --score_only to score files of predictions"
        )
    if flags.checkpoint is not None:
        if not flags.benchmarks:
            parser.error("--benchmarks: needed here; --help has examples")
        return flags
    if missing := [
        f"--{name}" for name in ("benchmarks", "predictions") if not getattr(flags, name)
    ]:
        parser.error(f"{', '.join(missing)}: needed here; --help has examples")
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
    cluster = chosen_cluster(flags)
    if cluster is not None:
        return of_several(
            cluster,
            lambda: ask_together(flags, cluster),
            errors=(ValueError, OSError),
            note=RESUMES,
        )
    try:
        from mm1_jax.evals import runner

        write_scores(flags, runner.ask(flags))
    except KeyboardInterrupt as stop:
        stop.add_note(RESUMES)
        raise
    return 0


def ask_together(flags: argparse.Namespace, cluster: Any) -> int:
    """Evaluates as one process of several; process 0 writes the scores."""
    join(cluster, flags)
    from mm1_jax.evals import runner

    scores = runner.ask_together(flags)
    if cluster.process_id == 0:
        write_scores(flags, scores)
    return 0


def write_scores(flags: argparse.Namespace, scores: Mapping[str, Any]) -> None:
    """Writes the scores to the file of --json, if given."""
    if flags.json is not None:
        write_whole(flags.json, json.dumps(scores, indent=1) + os.linesep)
