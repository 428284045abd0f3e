"""What annotate made, as text and as one picture: scores, margins, lengths, counts."""

from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY = "#2a6fbb", "#d9822b", "#8a8f98"


def write_summary(folder: Path, rows: list[dict[str, Any]], pairs: list[dict[str, Any]], counts: Counter[str]) -> str:
    """Write annotate_summary.txt and annotate_summary.png; return the text.

    Args:
        rows: all scored prompts, with all_rm_scores.
        pairs: the kept ones, with chosen_index and rejected_index.
        counts: prompts, responses and pairs by what became of them.
    """
    ranks = scores_by_rank(rows)
    margins = np.array([score_of(pair, "chosen") - score_of(pair, "rejected") for pair in pairs])
    lengths = {side: np.array([len(answer(pair, side)) for pair in pairs]) for side in ("chosen", "rejected")}
    text = describe(rows, ranks, margins, lengths, counts)
    (folder / "annotate_summary.txt").write_text(text + "\n", encoding="utf-8")
    draw(folder / "annotate_summary.png", ranks, margins, lengths, counts)
    return text


def scores_by_rank(rows: list[dict[str, Any]]) -> list[np.ndarray]:
    """Scores of each prompt's best response, of its second best, and so on: one array per rank."""
    ordered = [sorted((s for s in row["all_rm_scores"] if s is not None), reverse=True) for row in rows]
    most = max(map(len, ordered))
    return [np.array([scores[rank] for scores in ordered if len(scores) > rank]) for rank in range(most)]


def answer(pair: dict[str, Any], side: str) -> str:
    return pair["all_generated_responses"][pair[f"{side}_index"]]


def score_of(pair: dict[str, Any], side: str) -> float:
    return pair["all_rm_scores"][pair[f"{side}_index"]]


def describe(
    rows: list[dict[str, Any]],
    ranks: list[np.ndarray],
    margins: np.ndarray,
    lengths: dict[str, np.ndarray],
    counts: Counter[str],
) -> str:
    low, middle, high = np.quantile(margins, [0.1, 0.5, 0.9])
    chosen, rejected = lengths["chosen"], lengths["rejected"]
    lines = [
        f"{len(rows)} prompts, {sum(map(len, ranks))} responses scored",
        *(f"{count} {what}" for what, count in counts.items()),
        "median score by rank, best first: " + ", ".join(f"{np.median(scores):.4g}" for scores in ranks),
        f"margin chosen - rejected: median {middle:.4g}, 10 % below {low:.4g}, 10 % above {high:.4g}",
        f"length in characters: chosen median {np.median(chosen):.0f}, rejected median {np.median(rejected):.0f}; "
        f"the chosen response is the longer one in {100 * np.mean(chosen > rejected):.0f} % of the pairs, "
        f"as long in {100 * np.mean(chosen == rejected):.0f} %",
    ]
    return "\n".join(lines)


def draw(
    path: Path, ranks: list[np.ndarray], margins: np.ndarray, lengths: dict[str, np.ndarray], counts: Counter[str]
) -> None:
    figure, ((scores, margin), (length, kept)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.2, w_pad=0.1)
    figure.suptitle(f"{len(margins)} preference pairs by reward-model score", fontsize=15)

    scores.boxplot(
        ranks,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "#cfe0f3", "edgecolor": BLUE},
        medianprops={"color": ORANGE, "linewidth": 2},
    )
    scores.set(
        title="Score by rank",
        xlabel="rank within the prompt (1 = best)",
        ylabel="score (box: quartiles, whiskers: 5-95 %)",
    )

    margin.hist(margins, bins=40, color=BLUE)
    margin.axvline(np.median(margins), color=ORANGE, linewidth=2, label=f"median {np.median(margins):.3g}")
    margin.set(title="Margin", xlabel="score of chosen - score of rejected", ylabel="pairs")
    margin.legend(frameon=False)

    chosen, rejected = (np.maximum(lengths[side], 1) for side in ("chosen", "rejected"))
    limits = [min(chosen.min(), rejected.min()) * 0.8, max(chosen.max(), rejected.max()) * 1.25]
    length.scatter(rejected, chosen, s=10, alpha=0.5, color=BLUE, linewidths=0)
    length.plot(limits, limits, color=GREY, linewidth=1, label="equal length")
    length.set(
        xscale="log",
        yscale="log",
        xlim=limits,
        ylim=limits,
        title=f"Length: the chosen response is longer in {100 * np.mean(chosen > rejected):.0f} % of the pairs",
        xlabel="rejected, characters",
        ylabel="chosen, characters",
    )
    length.legend(frameon=False, loc="upper left")

    shown = list(counts.items())[::-1]
    bars = kept.barh([what.replace(": ", ":\n") for what, _ in shown], [n for _, n in shown], height=0.5, color=BLUE)
    kept.bar_label(bars, padding=4)
    kept.margins(x=0.15)
    kept.set_ylim(-0.6, len(shown) - 0.4)
    kept.set(title="Kept and dropped", xlabel="number")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
