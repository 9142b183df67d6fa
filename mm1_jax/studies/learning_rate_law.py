"""Fits a law for the best learning rate to grid searches at several sizes (MM1, section 3, Fig. 6).

    ln rate = intercept + slope x ln(size / center)

Method:

    optimum   per size, a parabola in ln rate by least squares through the best rates, up to two on
              either side of the best one; its lowest point. A size is refused if the best rate is
              at the edge of the grid, or the parabola has no lowest point inside its rates.
    line      least squares in ln size, weighted by 1 / variance of the optima; no standard
              deviation counts as less than a third of the grid's spacing
    interval  the scores are drawn again 1,000 times around the parabolas, with the standard
              deviation that runs of the same size and rate have over seeds, and everything is
              fitted again (parametric bootstrap). As this deviation is itself an estimate, noise is
              multiplied by a quantile of Student's t over that of the normal distribution.

The interval says how well the slope is known if the law holds. Whether it holds is told by the
curvature, and by the loss that the law of the smaller sizes pays at the largest one.
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from mm1_jax.train.optimizers.learning_rate import LearningRateLaw

COLUMNS = ("size", "learning_rate", "score")
# Rates on either side of the best one that a parabola goes through.
_SIDE = 2
_NUM_DRAWS = 1000
_LEAST_SIZES = 3


class Trial(NamedTuple):
    """One run: number of parameters, peak learning rate, and its score, such as the loss."""

    size: float
    learning_rate: float
    score: float


@dataclass(frozen=True)
class Optimum:
    """The best rate of a size.

    Attributes:
        learning_rate: Lowest point of the parabola.
        score: Its height there.
        curvature: Second derivative of the score by ln rate.
        deviation: Standard deviation of ln rate, from the noise of the scores.
        rates: The rates that the parabola goes through.
    """

    size: float
    learning_rate: float
    score: float
    curvature: float
    deviation: float
    rates: tuple[float, ...]

    def loss_at(self, learning_rate: float) -> float:
        """Returns what the parabola pays at another rate, above its lowest point."""
        return self.curvature / 2 * math.log(learning_rate / self.learning_rate) ** 2


@dataclass(frozen=True)
class Law(LearningRateLaw):
    """A line in ln size, with 95% intervals.

    Attributes:
        slope_interval: Lower and upper end.
        curvature: Coefficient of the square of ln size in a parabola through the optima.
        curvature_interval: Its interval; it does not hold 0 if the law bends.
    """

    slope_interval: tuple[float, float]
    curvature: float
    curvature_interval: tuple[float, float]


@dataclass(frozen=True)
class LeftOut:
    """The largest size, predicted from the others.

    Attributes:
        predicted: Rate by the law of the other sizes.
        loss: What the parabola of the largest size pays there.
    """

    size: float
    predicted: float
    found: float
    loss: float


@dataclass(frozen=True)
class Fit:
    """Everything that is fitted to a table.

    Attributes:
        refused: Reason, by size.
        deviation: Standard deviation of a score over seeds.
        law: None if fewer than three sizes have an optimum.
        left_out: None if fewer than three sizes are left without the largest.
        refused_draws: Share of the draws in which some size was refused; they are not in the
            intervals.
    """

    optima: tuple[Optimum, ...]
    refused: Mapping[float, str]
    deviation: float
    law: Law | None
    left_out: LeftOut | None
    refused_draws: float = 0.0


class _Grid(NamedTuple):
    """The rates of a size, rising: ln rate, mean score, and number of runs."""

    x: Float[np.ndarray, "r"]
    means: Float[np.ndarray, "r"]
    numbers: Float[np.ndarray, "r"]


def read_trials(path: Path, *, higher: bool = False) -> list[Trial]:
    """Reads a CSV file with the columns `size`, `learning_rate` and `score`; others are ignored.

    Args:
        higher: Whether higher scores are better; they are negated.

    Raises:
        ValueError: A column is missing, or a value is no number, or not positive; names the line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(
                f"{path}: no column {', '.join(lacking)}; expected a first line with "
                f"{', '.join(COLUMNS)}"
            )
        return [_trial(row, f"{path}, line {reader.line_num}", higher) for row in reader]


def fit(trials: Sequence[Trial], *, seed: int = 0, num_draws: int = _NUM_DRAWS) -> Fit:
    """Fits the law to runs of at least three sizes, of which some are repeated with other seeds.

    Raises:
        ValueError: No size and rate has two runs, so that the noise is unknown.
    """
    grids = _grids(trials)
    deviation, freedom = _noise(trials)
    optima: list[Optimum] = []
    refused: dict[float, str] = {}
    for size, grid in grids.items():
        try:
            optima.append(_optimum(size, grid, deviation))
        except ValueError as error:
            refused[size] = str(error)
    if len(optima) < _LEAST_SIZES:
        return Fit(tuple(optima), refused, deviation, None, None)
    sizes = [optimum.size for optimum in optima]
    least = np.array([_spacing(grids[size]) for size in sizes]) / 3
    rates = np.log([[optimum.learning_rate for optimum in optima]])
    spreads = np.maximum([[optimum.deviation for optimum in optima]], least)
    center, ((slope, intercept),) = _coefficients(sizes, rates, spreads, 1)
    _, ((bend, *_),) = _coefficients(sizes, rates, spreads, 2)
    inflated = deviation * float(scipy.stats.t.ppf(0.975, freedom) / scipy.stats.norm.ppf(0.975))
    rng = np.random.default_rng(seed)
    drawn, drawn_spreads, is_found = _draws(grids, optima, inflated, rng, num_draws)
    drawn, drawn_spreads = drawn[is_found], np.maximum(drawn_spreads[is_found], least)
    slopes, bends = (
        _coefficients(sizes, drawn, drawn_spreads, degree)[1][:, 0] for degree in (1, 2)
    )
    law = Law(
        center, float(intercept), float(slope), _interval(slopes), float(bend), _interval(bends)
    )
    left_out = _left_out(optima, rates, spreads)
    return Fit(tuple(optima), refused, deviation, law, left_out, 1 - float(is_found.mean()))


def to_json(found: Fit) -> str:
    """Returns a law as text for `trainer.optimizer.learning_rate_law`.

    Raises:
        ValueError: There is no law.
    """
    if found.law is None:
        raise ValueError("fewer than three sizes have a best rate, so there is no law to store")
    sizes = [optimum.size for optimum in found.optima]
    return json.dumps({**asdict(found.law), "sizes": sizes}, indent=2) + "\n"


def _trial(row: Mapping[str, str | None], place: str, higher: bool) -> Trial:
    values = []
    for name in COLUMNS:
        try:
            value = float(row[name] or "")
        except ValueError:
            raise ValueError(f"{place}: {name}={row[name]!r}: expected a number") from None
        if not math.isfinite(value) and name == "score":
            # A run that diverged.
            value = math.inf
        elif name != "score" and not 0 < value < math.inf:
            raise ValueError(f"{place}: {name}={row[name]!r}: expected a positive number")
        values.append(value)
    size, rate, score = values
    return Trial(size, rate, -score if higher and math.isfinite(score) else score)


def _by_cell(trials: Sequence[Trial]) -> dict[tuple[float, float], list[float]]:
    """Returns the scores of each size and rate, both rising."""
    scores: dict[tuple[float, float], list[float]] = defaultdict(list)
    for trial in sorted(trials):
        scores[trial.size, trial.learning_rate].append(trial.score)
    return scores


def _grids(trials: Sequence[Trial]) -> dict[float, _Grid]:
    """Returns the mean scores of each size, by rising size."""
    columns: dict[float, list[tuple[float, float, int]]] = defaultdict(list)
    for (size, rate), scores in _by_cell(trials).items():
        columns[size].append((math.log(rate), float(np.mean(scores)), len(scores)))
    return {size: _Grid(*np.array(found, float).T) for size, found in columns.items()}


def _noise(trials: Sequence[Trial]) -> tuple[float, int]:
    """Returns the pooled standard deviation over seeds, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for found in _by_cell(trials).values():
        scores = np.array([score for score in found if math.isfinite(score)])
        if len(scores) > 1:
            squares += float(np.sum((scores - scores.mean()) ** 2))
            freedom += len(scores) - 1
    if not freedom:
        raise ValueError(
            "no size and learning_rate has two runs, so the noise over seeds is unknown; repeat "
            "the best rates with other seeds"
        )
    return math.sqrt(squares / freedom), freedom


def _optimum(size: float, grid: _Grid, deviation: float) -> Optimum:
    """Returns the best rate of a size; raises ValueError if the grid does not show it."""
    best = int(np.argmin(grid.means))
    if best in (0, len(grid.x) - 1):
        side = "lower" if best == 0 else "higher"
        raise ValueError(
            f"the best rate, {math.exp(grid.x[best]):.3g}, is at the edge of the grid; try "
            f"{side} ones"
        )
    found = _parabolas(grid, grid.means[None])
    used = np.flatnonzero(found.weights[0])
    if len(used) < 3:
        raise ValueError("fewer than three rates around the best one did not diverge")
    if found.curvature[0] <= 0:
        raise ValueError("the scores around the best rate have no lowest point (concave)")
    if not found.is_inside[0]:
        raise ValueError("the lowest point of the parabola is outside of its rates")
    return Optimum(
        size,
        math.exp(found.lowest[0]),
        float(found.height[0]),
        float(found.curvature[0]),
        deviation * float(found.spread[0]),
        tuple(math.exp(grid.x[i]) for i in used),
    )


class _Parabolas(NamedTuple):
    """Parabolas through the best rates of d draws.

    Attributes:
        weights: Number of runs of each rate that a parabola goes through, and 0 of the others.
        lowest: The ln rate of the lowest point.
        spread: Standard deviation of that for scores with one of 1.
        is_inside: Whether the lowest point is one, and between the rates.
    """

    weights: Float[np.ndarray, "d r"]
    lowest: Float[np.ndarray, "d"]
    height: Float[np.ndarray, "d"]
    curvature: Float[np.ndarray, "d"]
    spread: Float[np.ndarray, "d"]
    is_inside: np.ndarray


def _parabolas(grid: _Grid, scores: Float[np.ndarray, "d r"]) -> _Parabolas:
    best = np.argmin(scores, axis=1)
    places = np.arange(len(grid.x))
    is_used = (np.abs(places - best[:, None]) <= _SIDE) & np.isfinite(scores)
    weights = np.where(is_used, grid.numbers, 0.0)
    # Around the best rate and in units of the grid, for the sake of rounding.
    unit = _spacing(grid)
    x = (grid.x - grid.x[best][:, None]) / unit
    y = np.where(is_used, scores - scores.min(axis=1, keepdims=True), 0.0)
    design = np.stack([x**2, x, np.ones_like(x)], axis=-1)
    products = np.einsum("dr,dri,drj->dij", weights, design, design)
    num_rates = is_used.sum(axis=1)
    # Too few rates determine no parabola; such draws are not used.
    products[num_rates < 3] = np.eye(3)
    covariance = np.linalg.inv(products)
    a, b, c = np.moveaxis(np.einsum("dij,drj,dr,dr->di", covariance, design, weights, y), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = -b / (2 * a)
        # The derivatives of -b / 2a.
        gradient = np.stack([-lowest / a, -1 / (2 * a), np.zeros_like(a)], axis=-1)
        variance = np.einsum("di,dij,dj->d", gradient, covariance, gradient)
        height = c + b * lowest / 2 + scores.min(axis=1)
        first = np.where(is_used, x, np.inf).min(axis=1)
        last = np.where(is_used, x, -np.inf).max(axis=1)
        is_edge = (best == 0) | (best == len(grid.x) - 1)
        is_inside = (a > 0) & (num_rates >= 3) & ~is_edge & (first <= lowest) & (lowest <= last)
    return _Parabolas(
        weights,
        lowest * unit + grid.x[best],
        height,
        2 * a / unit**2,
        np.sqrt(variance) * unit,
        is_inside,
    )


def _draws(
    grids: Mapping[float, _Grid],
    optima: Sequence[Optimum],
    deviation: float,
    rng: np.random.Generator,
    num_draws: int,
) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, "d n"], np.ndarray]:
    """Draws scores again; returns ln rate and deviation of each optimum, and whether all are found.

    Scores are drawn around the parabolas, and beyond their rates around those that were measured.
    """
    rates, spreads, found = [], [], np.ones(num_draws, bool)
    for optimum in optima:
        grid = grids[optimum.size]
        used = np.isclose(grid.x[:, None], np.log(optimum.rates), atol=1e-9).any(axis=1)
        fitted = [optimum.score + optimum.loss_at(math.exp(x)) for x in grid.x]
        means = np.where(used, fitted, grid.means)
        noise = rng.normal(0, deviation, (num_draws, len(means))) / np.sqrt(grid.numbers)
        drawn = _parabolas(grid, means + noise)
        rates.append(drawn.lowest)
        spreads.append(deviation * drawn.spread)
        found &= drawn.is_inside
    return np.stack(rates, axis=1), np.stack(spreads, axis=1), found


def _spacing(grid: _Grid) -> float:
    return float(np.median(np.diff(grid.x)))


def _coefficients(
    sizes: Sequence[float],
    rates: Float[np.ndarray, "d n"],
    spreads: Float[np.ndarray, "d n"],
    degree: int,
) -> tuple[float, Float[np.ndarray, "d k"]]:
    """Fits polynomials in ln (size / center) to ln rates.

    Returns:
        The center, and the coefficients, that of the highest power first.
    """
    x = np.log(np.array(sizes))
    middle = float(x.mean())
    design = np.vander(x - middle, degree + 1)
    weights = 1 / spreads**2
    products = np.einsum("dn,ni,nj->dij", weights, design, design)
    targets = np.einsum("dn,ni,dn->di", weights, design, rates)
    return math.exp(middle), np.linalg.solve(products, targets[..., None])[..., 0]


def _interval(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return (-math.inf, math.inf)
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _left_out(
    optima: Sequence[Optimum],
    rates: Float[np.ndarray, "1 n"],
    spreads: Float[np.ndarray, "1 n"],
) -> LeftOut | None:
    *others, largest = optima
    if len(others) < _LEAST_SIZES:
        return None
    sizes = [optimum.size for optimum in others]
    center, ((slope, intercept),) = _coefficients(sizes, rates[:, :-1], spreads[:, :-1], 1)
    predicted = math.exp(float(intercept + slope * math.log(largest.size / center)))
    return LeftOut(largest.size, predicted, largest.learning_rate, largest.loss_at(predicted))
