"""One PNG per scored file: win rate against answer length, or bars by category."""

import re
from pathlib import Path

from published import Point
from records import Row

GREY, NAMED, COLOURS = "#b5b5b5", "#5a5a5a", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LABELLED = re.compile(r"-8B-(SimPO|WPO-HB-v2)$|^gemma-2-9b-it(-SimPO|-WPO-HB)?$")  # published models named in the plot
MOST_MODELS = 6  # models drawn; more would hide each other


def plot_win_rates(path: Path, title: str, scores: dict[str, Row], published: list[Point], unit: str) -> None:
    """Draw the models over grey published ones.

    A model without a known answer length becomes a horizontal line with its interval.

    Args:
        scores: {model: {win_rate, ci_low, ci_high, length_controlled_winrate and avg_length as they apply}}.
        unit: what avg_length counts, for the axis.
    """
    figure, axes = new_figure()
    if published:
        axes.scatter([p.length for p in published], [p.win_rate for p in published], s=14, color=GREY, zorder=1)
        middle = 0.6 * max(point.length for point in published)
        for point in published:
            if LABELLED.search(point.name) and point.name not in scores:
                place, left = (point.length, point.win_rate), point.length < middle
                axes.scatter(*place, s=16, color=NAMED, zorder=2)
                axes.annotate(
                    point.name,
                    place,
                    xytext=(-6 if left else 6, -3),
                    textcoords="offset points",
                    ha="right" if left else "left",
                    fontsize=7,
                    color=NAMED,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.5, "pad": 1},
                )
    for number, (model, score) in enumerate(list(scores.items())[:MOST_MODELS]):
        colour = COLOURS[number]
        main = score.get("length_controlled_winrate")
        kind = "length-controlled" if main is not None else "win rate"
        main = score["win_rate"] if main is None else main
        length = score.get("avg_length")
        label = f"{model}: {main:.1f} ({kind})"
        if length is None:
            label += ", answer length unknown"
            axes.axhline(main, color=colour, linewidth=1.8, zorder=3, label=label)
            axes.axhspan(score["ci_low"], score["ci_high"], color=colour, alpha=0.15, linewidth=0, zorder=2)
            continue
        low, high = score["win_rate"] - score["ci_low"], score["ci_high"] - score["win_rate"]
        raw = {"fmt": "o", "color": colour, "capsize": 3, "markersize": 10, "zorder": 3}
        if main == score["win_rate"]:
            axes.errorbar([length], [main], yerr=[[low], [high]], label=label, **raw)
        else:
            raw_label = f"{model}: {score['win_rate']:.1f} (raw, 95 % interval)"
            axes.errorbar(
                [length], [score["win_rate"]], yerr=[[low], [high]], markerfacecolor="white", label=raw_label, **raw
            )
            axes.scatter([length], [main], color=colour, s=36, marker="D", zorder=4, label=label)
    note = "published models (length-controlled)" if "AlpacaEval" in title else "published models"
    if published:
        axes.scatter([], [], s=14, color=GREY, label=note)
    axes.set(title=title, xlabel=f"mean answer length ({unit})", ylabel="win rate against the baseline (%)")
    axes.set_ylim(bottom=0)
    if not published and all(score.get("avg_length") is None for score in scores.values()):
        axes.set_xticks([])
        axes.set_xlabel("answer length unknown (name the answer file with --answers)")
    finish(figure, axes, path)


def plot_bars(path: Path, title: str, scores: dict[str, dict[str, float | None]]) -> None:
    """Draw groups of bars, one colour per model.

    Args:
        scores: {model: {label: height}}, the same labels for all; the last one is the mean of all.
    """
    figure, axes = new_figure(width=10)
    drawn = list(scores.items())[:MOST_MODELS]
    highest = max((height or 0 for _, bars in drawn for height in bars.values()), default=0)
    for number, (model, bars) in enumerate(drawn):
        width = 0.8 / len(drawn)
        places = [place + (number - (len(drawn) - 1) / 2) * width for place in range(len(bars))]
        heights = [height or 0 for height in bars.values()]
        axes.bar(places, heights, width=width * 0.92, color=COLOURS[number], label=f"{model}: {heights[-1]:.2f}")
        if len(drawn) <= 2:
            for place, height in zip(places, heights, strict=True):
                axes.text(place, height + 0.01 * highest, f"{height:.1f}", ha="center", fontsize=7, color="#444444")
        axes.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right")
    axes.set(title=title, ylabel="score", ylim=(0, 1.05 * highest or 1))
    finish(figure, axes, path)


def new_figure(width: float = 8):
    import matplotlib

    matplotlib.use("Agg")  # draws without a display
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, 5.5))


def finish(figure, axes, path: Path) -> None:
    """Put the legend under the axes, where it hides nothing, and write the file."""
    from matplotlib import pyplot as plt

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, frameon=False, fontsize=9)
    beside = path.with_name(path.name + ".tmp")
    figure.savefig(beside, dpi=150, bbox_inches="tight", format="png")
    plt.close(figure)
    beside.replace(path)
