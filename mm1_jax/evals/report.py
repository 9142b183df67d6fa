"""Report of an evaluation as Markdown, in the layout of the paper's tables."""

from collections.abc import Mapping, Sequence

from mm1_jax.evals.evaluation import Scores, averages

# Metrics that qualify a score, with the remark that the report makes on each.
REMARKS: Mapping[str, str] = {
    "undecodable_images": "pictures could not be decoded and were not shown",
    "positions_beyond_training": "positions of the longest prompt exceed the training rows",
    "truncated_prompts": "prompts were longer than a row and lost their beginning",
    "without_reference": "tasks have no published reference and are not in the scores",
    "unreadable_reviews": "reviews by the judge had no grades and are not in the scores",
    "unreadable_grades": "grades by the judge could not be read and count as 0",
    "videos_left_out": "questions about videos were not asked",
}


def markdown(
    scores: Sequence[Scores],
    *,
    title: str,
    pretraining: Sequence[str],
    chat: Sequence[str],
    text_core: Sequence[str] = (),
    small_world: Sequence[str] = (),
    small_world_text: Sequence[str] = (),
    protocol: Mapping[str, str],
) -> str:
    """Returns the report: tables, remarks on them, all metrics, and the protocols.

    Args:
        pretraining: Benchmarks of the first table, in order; the table has their average.
        chat: Benchmarks of the second table.
        text_core: Benchmarks of the third table, without pictures; the table has their average.
        small_world, small_world_text: Benchmarks of two more tables, with their averages.
        protocol: A description of how each benchmark was asked, by benchmark.
    """
    tables = [
        ("Pre-training", pretraining, True),
        ("Chat", chat, False),
        ("Text", text_core, True),
        ("Small world", small_world, True),
        ("Texts of the small world", small_world_text, True),
    ]
    known = {name for _, names, _ in tables for name in names}
    others = [name for name in dict.fromkeys(s.benchmark for s in scores) if name not in known]
    lines = [f"# {title}", ""]
    for heading, names, has_average in (*tables, ("Embedded", others, False)):
        lines += _table(heading, scores, names, has_average)
    lines += _remarks(scores, [names for _, names, has_average in tables if has_average])
    lines += [
        "The best and the worst answers, with their pictures: "
        + ", ".join(
            f"[{one.benchmark}, {one.shots} shots]({one.benchmark}/{one.shots}_shot_cases.html)"
            for one in scores
        )
        + ".",
        "",
    ]
    lines += ["## All metrics", "", "| metric | value | 95% interval |", "|---|---:|---:|"]
    for one in scores:
        for name, value in one.metrics.items():
            interval = one.intervals.get(name)
            shown = "" if interval is None else f"{interval[0]:.4g} .. {interval[1]:.4g}"
            lines.append(f"| `{one.benchmark}/{one.shots}/{name}` | {value:.5g} | {shown} |")
    lines += ["", "## Protocol", ""]
    lines += [f"- `{name}`: {text}" for name, text in protocol.items()]
    return "\n".join(lines) + "\n"


def _table(
    heading: str, scores: Sequence[Scores], names: Sequence[str], has_average: bool
) -> list[str]:
    """Returns a table with a row per number of shots and a column per benchmark."""
    own = [one for one in scores if one.benchmark in names]
    if not own:
        return []
    columns = [name for name in names if any(one.benchmark == name for one in own)]
    cells = {(one.benchmark, one.shots): _cell(one) for one in own}
    means = averages(own, names)
    titles = ["shots", *columns, *(["average"] if has_average else [])]
    lines = [f"## {heading}", "", _row(titles), "|" + "---:|" * len(titles)]
    for shots in sorted({one.shots for one in own}):
        row = [str(shots), *(cells.get((name, shots), "") for name in columns)]
        if has_average:
            mean, number = (means.get(f"average/{shots}/{x}") for x in ("score", "num_benchmarks"))
            is_whole = number == len(names)
            row.append("" if mean is None else f"{mean:.1f}" if is_whole else f"({mean:.1f})")
        lines.append(_row(row))
    return [*lines, ""]


def _cell(one: Scores) -> str:
    if one.headline is None:
        return "unscored"
    text = f"{one.headline:.1f}"
    if one.headline_interval is not None:
        low, high = one.headline_interval
        text += f" [{low:.1f}, {high:.1f}]"
    return text + ("*" if one.num_tasks < one.num_records else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _remarks(scores: Sequence[Scores], averaged: Sequence[Sequence[str]]) -> list[str]:
    """Returns remarks on the tables.

    Args:
        averaged: The benchmarks of each table that has an average.
    """
    lines = ["Scores in percent (CIDEr times 100), with 95% bootstrap intervals in brackets.", ""]
    if any(one.num_tasks < one.num_records for one in scores):
        lines += ["An asterisk marks scores on a random subset of the records.", ""]
    asked = {one.benchmark for one in scores if one.headline is not None}
    for names in averaged:
        if asked & {*names} and (lacking := [name for name in names if name not in asked]):
            lines += [f"Averages in parentheses do not include {', '.join(lacking)}.", ""]
    remarks = [
        f"- {one.benchmark}, {one.shots} shots: {one.metrics[name]:.0f} {meaning}."
        for one in scores
        for name, meaning in REMARKS.items()
        if one.metrics.get(name)
    ]
    remarks += [
        f"- {one.benchmark}, {one.shots} shots: unscored, as it has no metric "
        f"`{one.headline_name}`; set its field `headline` to a metric that it has."
        for one in scores
        if one.headline is None and set(one.metrics) - {"n", *REMARKS}
    ]
    return [*lines, *remarks, ""] if remarks else lines
