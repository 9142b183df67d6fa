"""Scores the vision encoder of a run: zero-shot classification, retrieval, and probes.

python -m mm1_jax evaluate_encoder --checkpoint=runs/clip_tiny
python -m mm1_jax evaluate_encoder --checkpoint=runs/clip_vit_l14 --datasets=data/imagenet,data/coco
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path, number, whole
from mm1_jax.launch.processes import add_cluster_options, evaluated

EPILOG = """\
data sets:
  A data set is a folder or a file of captions; docs/encoders.md shows the layouts. Its kind decides
  how it is used: captions by retrieval; classes by zero-shot classification, if the model encodes
  texts, and by the probes of --probe, which also need a train split.

    DIR/val/n01440764/*.JPEG             class folders; also DIR/train/..., or DIR/n01440764/...
    DIR/test/nshards.txt, DIR/test/0.tar webdatasets of CLIP_benchmark, of classes or of captions
    DIR/dataset_coco.json                Karpathy's file (COCO, Flickr30k), beside its pictures

  Without --datasets, the data sets of the run's own evaluators are used, and its own probes.

class names and templates:
  They are read from classnames.txt and zeroshot_classification_templates.txt in the folder, or from
  the files of --class_names and --templates: a text per line, or a JSON list. For ImageNet without
  these files, OpenAI's class names and 80 templates are read from open_clip, if it is installed.

output:
  --output receives report.md, and report.json, whose scores have the keys DATA/PROTOCOL/METRIC,
  such as imagenet/zero_shot/acc1. Scores are fractions; those in report.md are percent.

  For a model that needs the devices of several hosts, give the same command on each host, as for
  training. Each process decodes the pictures of its own devices.

examples:
  %(prog)s --checkpoint=runs/clip_tiny
  %(prog)s --checkpoint=runs/clip_tiny --probe=linear --baselines=pixels,random
  %(prog)s --checkpoint=runs/clip_vit_l14 --datasets=data/imagenet,coco=data/karpathy \\
      --mesh=data=-1 --batch_size=1024
  %(prog)s --checkpoint=runs/aim_600m --datasets=data/imagenet --probe=attentive --crop=0.875 \\
      --set=attentive_probe.num_epochs=100

exit codes:
  0    scored
  2    the command or a file must be changed; the message says how
  130  stopped by Ctrl-C (143: by SIGTERM)
"""


def _names(*known: str) -> Any:
    """Returns the type of a comma-separated list of these names."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{name!r}: expected some of {', '.join(known)}, separated by commas"
                )
        return list(dict.fromkeys(names))

    return parse


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("evaluate_encoder"),
        description="Scores the vision encoder of a run on data sets of pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        type=local_path,
        required=True,
        metavar="FOLDER",
        help="output folder of the run to evaluate",
    )
    parser.add_argument(
        "--datasets",
        default="",
        metavar="[NAME=]PATH[,...]",
        help="data sets, or names of the run's own; default: all of the run's own",
    )
    parser.add_argument(
        "--probe",
        type=_names("linear", "attentive"),
        default=[],
        metavar="KIND[,KIND]",
        help="probes of the encoder's patch features: linear (logistic regression on their mean), "
        "attentive (AIM's attention pooling over the mean of the last 6 blocks)",
    )
    parser.add_argument(
        "--baselines",
        type=_names("pixels", "random"),
        default=[],
        metavar="KIND[,KIND]",
        help="also probe the same encoder with random parameters (random), and fit a linear probe "
        "to raw pixels (pixels)",
    )
    parser.add_argument("--step", type=whole(0), help="step of the checkpoint; default: the newest")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N[,AXIS=N]",
        help="mesh of devices, such as data=8, or run for that of the training; default: one "
        "device, or run with several processes",
    )
    parser.add_argument(
        "--class_names",
        type=lambda text: str(local_path(text).resolve()),
        metavar="FILE",
        help="class names, one per line in the order of the sorted folders or as FOLDER NAME",
    )
    parser.add_argument(
        "--templates",
        type=lambda text: str(local_path(text).resolve()),
        metavar="FILE",
        help="prompt templates with {c} or {} for the class name",
    )
    parser.add_argument(
        "--resize",
        choices=("shortest", "stretch"),
        help="resize the shortest side and crop the center, as CLIP, or stretch both sides, as "
        "SigLIP; default: shortest, or that of the run's own evaluator",
    )
    parser.add_argument(
        "--crop",
        type=number(0.0, 1.0, exclusive=True),
        metavar="F",
        help="side of the crop as a fraction of the resized shortest side; AIM uses 0.875; "
        "default: 1.0, or that of the run's own evaluator",
    )
    parser.add_argument(
        "--limit",
        type=whole(),
        metavar="N",
        help="use N random pictures of each split, the same ones every time",
    )
    parser.add_argument(
        "--batch_size", type=whole(), metavar="N", help="pictures or texts per batch"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        help="seed of --limit, of the parts of probes and of random parameters; default: 0",
    )
    parser.add_argument(
        "--allow_bad_pictures",
        action="store_true",
        help="leave out pictures that cannot be decoded; the report counts them",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PROTOCOL.FIELD=VALUE",
        help="set a field of zero_shot, retrieval, linear_probe or attentive_probe; may be "
        "repeated",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        metavar="DIR",
        help="folder for the report; default: evaluation/encoder_STEP in the run's folder",
    )
    parser.add_argument(
        "--json", type=local_path, metavar="FILE", help="also write the scores to FILE"
    )
    add_cluster_options(parser)
    return parser.parse_args(arguments)


@command
def main(argv: Sequence[str] | None = None) -> int:
    flags = parse(sys.argv[1:] if argv is None else argv)
    # orbax warns about a checkpoint folder that is opened for reading only.
    logging.getLogger("absl").setLevel(logging.ERROR)
    folders = ("checkpoint", "datasets", "class_names", "templates", "output")
    note = "nothing is resumed; give the command again"
    return evaluated(flags, _evaluate, folders=folders, note=note)


def _evaluate(flags: argparse.Namespace) -> dict[str, float]:
    # Imported where it is needed, so that --help is instant.
    from mm1_jax.evals.encoders import runner

    return runner.evaluate(flags)
