"""The report's plots: small, without titles (the page has them), each an SVG as a data: address.

As an image a plot can run nothing, and its element names cannot meet those of another.
"""

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

# Told apart by people with any colour vision; each run has one
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#882255", "#666666")
CHOSEN, REJECTED, INK, GRID = "#0072b2", "#d55e00", "#444444", "#e4e4e4"
SIZE = (4.2, 2.5)  # inches; three beside each other on a wide page
MARGINS = {"left": 0.15, "right": 0.95, "bottom": 0.19, "top": 0.96}  # fixed: the axes of all plots stand in line
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "axes.axisbelow": True,
    "text.parse_math": False,
    "svg.hashsalt": "report",  # the same runs give the same page
}

# (steps, values) of what was logged while training, and at evaluations
Points = tuple[Sequence[float], Sequence[float]]


def curves(lines: Sequence[tuple[str, Points, Points]], limits: tuple[float, float] | None = None) -> str:
    """A metric over the steps: training as a thin line, evaluations as dots.

    Args:
        lines: (colour, training, evaluation) of each run.
        limits: of the vertical axis; by default what the values need.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        for colour, training, evaluation in lines:
            lone = "." if len(training[0]) == 1 else None
            axes.plot(*training, color=colour, linewidth=1.4, alpha=0.6, marker=lone)
            axes.plot(*evaluation, color=colour, linewidth=1.1, marker="o", markersize=3.8)
        if limits:
            axes.set_ylim(limits)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        return as_address(figure)


def by_round(rounds: Sequence[int], means: Sequence[float], errors: Sequence[float]) -> str:
    """A measure of each round's model with its standard error; round 0 is the start."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        axes.errorbar(rounds, means, errors, color=COLOURS[0], linewidth=1.2, marker="o", markersize=4, capsize=3)
        axes.set_xticks(rounds, ["start" if number == 0 else str(number) for number in rounds])
        axes.set(xlabel="round (bars: one standard error)", xlim=(min(rounds) - 0.3, max(rounds) + 0.3))
        return as_address(figure)


def score_histogram(every: Sequence[float], chosen: Sequence[float], rejected: Sequence[float]) -> str:
    """Scores of all responses, and of those that became chosen and rejected."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        edges = np.histogram_bin_edges([*every, *chosen, *rejected], bins=30)
        if every:
            axes.hist(every, edges, color="#d0d0d0")
        outlines(axes, edges, chosen, rejected)
        axes.set(xlabel="reward score")
        return as_address(figure)


def margin_histogram(margins: Sequence[float]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        axes.hist(margins, bins=30, color="#8fb8d8")
        axes.axvline(float(np.median(margins)), color=INK, linewidth=1.3, linestyle="--")
        axes.set(xlabel="score of chosen - score of rejected (dashed: median)")
        return as_address(figure)


def length_histogram(chosen: Sequence[int], rejected: Sequence[int]) -> str:
    """Lengths on a logarithmic axis: they spread over decades."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure()
        lengths = np.maximum([*chosen, *rejected], 1)
        edges = np.geomspace(lengths.min() / 1.05, lengths.max() * 1.05, 31)
        outlines(axes, edges, np.maximum(chosen, 1), np.maximum(rejected, 1))
        axes.set(xscale="log", xlabel="characters")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if lengths.max() > 10 * lengths.min():
            axes.xaxis.set_minor_formatter(NullFormatter())
        return as_address(figure)


def outlines(axes: Axes, edges: np.ndarray, chosen: Sequence[float], rejected: Sequence[float]) -> None:
    for values, colour in ((chosen, CHOSEN), (rejected, REJECTED)):
        if len(values):
            axes.hist(values, edges, histtype="step", color=colour, linewidth=1.6)


def new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    return figure, figure.subplots(gridspec_kw=MARGINS)


def as_address(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
