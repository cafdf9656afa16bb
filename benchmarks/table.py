"""The table: one column for each target, what was to be reached, and whether it was. Markdown, so that it can be kept."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import ROWS, Row, Samples, Scale

OURS, LIMIT = "gateway", "nginx"


def number(value: float | None) -> str:
    """Three digits that matter; thousands with a comma; a dash for nothing."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"


def ratio(ours: float | None, other: float | None) -> str:
    return number(ours / other) if ours is not None and other and ours > 0 and other > 0 else "-"


def cells(row: Row, samples: Samples, targets: Sequence[str]) -> list[str] | None:
    """One line of the table; None where nothing of it was measured."""
    values = {target: samples.value(row, target) for target in targets}
    ours = values.get(OURS)
    if all(value is None for value in values.values()) or (row.against and ours is None):
        return None
    goal, verdict = "", ""
    if row.goal is not None:
        slowness = samples.slowness(row.goal.scale)
        goal = f"{'>=' if row.goal.least else '<='} {number(row.goal.allowed(slowness))}"
        if slowness > 1:
            goal += f" ({number(row.goal.limit)})"
        verdict = "-" if ours is None else "yes" if row.goal.reached(ours, slowness) else "no"
    shown = [number(values[target]) for target in targets]
    return [row.label, *shown, "-" if row.against else ratio(ours, values.get(LIMIT)), goal, verdict]


def exactness(samples: Samples, targets: Sequence[str]) -> list[str]:
    counts = [f"{samples.exact.get(target, 0):,} of {samples.answers.get(target, 0):,}" if target in samples.answers else "-" for target in targets]
    verdict = "-"
    if OURS in samples.answers:
        verdict = "yes" if samples.exact[OURS] == samples.answers[OURS] else "no"
    return ["exact answers", *counts, "-", "all", verdict]


def table(samples: Samples, targets: Sequence[str]) -> list[str]:
    """The lines, aligned: the first column to the left, the others to the right."""
    heading = ["", *targets, f"{OURS}/{LIMIT}", "goal", "reached"]
    rows = [found for row in ROWS if (found := cells(row, samples, targets)) is not None]
    rows.append(exactness(samples, targets))
    widths = [max(len(line[column]) for line in (heading, *rows)) for column in range(len(heading))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = (heading, rule, *rows)
    return [
        "| " + " | ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths))) + " |"
        for line in lines
    ]


def remarks(samples: Samples) -> list[str]:
    """What must be known to read the table."""
    lines = ["What direct shows where others show what they add is the base: its own latency."]
    slower, dearer = samples.slowness(Scale.TIME), samples.slowness(Scale.CPU)
    if slower > 1 or dearer > 1:
        lines.append(
            f"Here nginx is {slower:.2f} times slower than where the goals were set, and takes {dearer:.2f} times the CPU: "
            "so much more is allowed than the goal in brackets."
        )
    return lines + [f"{target}: {text}" for target, text in samples.mistakes.items()]
