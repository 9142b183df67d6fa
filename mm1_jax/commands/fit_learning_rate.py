"""Fits a law of the best learning rate by size to a table of runs.

python -m mm1_jax fit_learning_rate --table=runs.csv --output=law.json
"""

import argparse
import math
import sys
from collections.abc import Sequence

from mm1_jax.command import command, started_as
from mm1_jax.flags import local_path
from mm1_jax.storage import write_whole
from mm1_jax.studies.learning_rate_law import Fit, fit, read_trials, to_json

EPILOG = """\
table:
  A CSV file with one line per run and the columns size, learning_rate and score, among others.
  The size is the number of non-embedding parameters of the decoder, the score the loss at the end.
  A run that diverged has the score nan. Give each size at least seven rates, a factor of sqrt(2)
  apart, around the best one, and two or three seeds to the best three. Runs of all sizes should see
  as many tokens; otherwise, the law mixes size and tokens.

method:
  Per size, a parabola in ln rate through the best five rates; over sizes, weighted least squares in
  ln size. Intervals are of a parametric bootstrap with the noise between seeds. A size whose best
  rate is at the edge of the grid, or whose scores are concave, is refused.

examples:
  %(prog)s --table=runs.csv
  %(prog)s --table=runs.csv --higher --output=law.json
  python -m mm1_jax.launch --config=mm1_1b \\
      --config.trainer.optimizer.learning_rate_law=law.json

exit codes:
  0    fitted
  1    fewer than three sizes have a best rate
  2    the command or the table must be changed; the message says how
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=started_as("fit_learning_rate"),
        description="Fits a law of the best learning rate by size to a table of runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--table", required=True, type=local_path, metavar="CSV", help="runs of the grid searches"
    )
    parser.add_argument(
        "--higher", action="store_true", help="higher scores are better, such as accuracies"
    )
    parser.add_argument("--output", type=local_path, metavar="FILE", help="file for the law")
    return parser.parse_args(arguments)


def markdown(found: Fit) -> str:
    """Returns the tables of a fit."""
    lines = [
        "| size | best rate | 95% interval | cost of half or twice the rate | rates |",
        "|---:|---:|---|---:|---:|",
    ]
    for each in found.optima:
        factor = math.exp(1.96 * each.deviation)
        low, high = each.learning_rate / factor, each.learning_rate * factor
        lines.append(
            f"| {each.size:.4g} | {each.learning_rate:.4g} | {low:.4g} to {high:.4g} | "
            f"+{each.loss_at(2 * each.learning_rate):.4f} | {len(each.rates)} |"
        )
    lines += [f"\nrefused: size {size:.4g}: {reason}" for size, reason in found.refused.items()]
    lines.append(f"\nStandard deviation of a score over seeds: {found.deviation:.4g}")
    if found.law is None:
        return "\n".join([*lines, "No law: fewer than three sizes have a best rate."])
    law = found.law
    slope, bend = (_interval(each) for each in (law.slope_interval, law.curvature_interval))
    lines += [
        f"\nln rate = {law.intercept:.4f} + {law.slope:.4f} ln(size / {law.center:.4g})",
        f"slope: {law.slope:.4f} {slope}; MM1's is -0.4214",
        f"curvature: {law.curvature:.4f} {bend}"
        + ("" if _holds_zero(law.curvature_interval) else "; the law bends, so do not extrapolate"),
    ]
    if found.refused_draws:
        lines.append(
            f"Intervals leave out {found.refused_draws:.0%} of the draws, in which a size had no "
            "best rate; more rates or seeds would help."
        )
    if found.left_out is not None:
        out = found.left_out
        lines.append(
            f"Without size {out.size:.4g}, the law predicts {out.predicted:.4g} for it, where "
            f"{out.found:.4g} was found; that costs {out.loss:.4f} of loss"
        )
    return "\n".join(lines)


def _interval(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.4f}, {ends[1]:.4f}]"


def _holds_zero(ends: tuple[float, float]) -> bool:
    return ends[0] <= 0 <= ends[1]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = parse(sys.argv[1:] if argv is None else argv)
    trials = read_trials(args.table, higher=args.higher)
    try:
        found = fit(trials)
    except ValueError as error:
        raise ValueError(f"{args.table}: {error}") from error
    print(markdown(found))
    if found.law is None:
        return 1
    if args.output is not None:
        write_whole(args.output, to_json(found))
        print(f"wrote {args.output}")
    return 0
