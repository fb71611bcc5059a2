"""The log-probs of both answers, pair by pair, before and after training."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from ..evaluation import rate
from .canvas import dress, legend_below, sheet
from .palette import HATCH, INK, MARKER, PALETTE, PAPER

COLUMNS = ("chosen_before", "chosen_after", "rejected_before", "rejected_after")
_QUADRANTS = (  # chosen rose?, rejected rose?, words, marker
    (True, False, "chosen up, rejected down: intended", "o"),
    (False, False, "both down", "v"),
    (True, True, "both up", "^"),
    (False, True, "chosen down, rejected up: wrong way", "X"),
)


def shift_scatter(table) -> Figure:
    """How far training moved the two responses of every pair.

    `table`: a DataFrame with `id`, `chosen_before`, `chosen_after`, `rejected_before`,
    `rejected_after` (nats per response). The marker says in which quadrant a pair lies; the legend
    counts them. Below the diagonal the margin grew. "up" means a change above zero. Raises
    ValueError for missing columns, no rows, or values that are not finite.
    """
    chosen, rejected = _shifts(table)
    fig, axes = sheet(7, 5.8)
    for up, rejected_up, words, marker in _QUADRANTS:
        here = ((chosen > 0) == up) & ((rejected > 0) == rejected_up)
        axes.scatter(chosen[here], rejected[here], marker=marker, s=30, color=INK, edgecolor=PAPER,
                     linewidth=0.5, alpha=0.65, label=f"{words} ({here.sum()})")
    _quadrant_limits(axes, chosen, rejected)
    dress(axes, f"The shift of {len(chosen)} pairs", "change of log p(chosen) (nats per response)",
          "change of log p(rejected) (nats per response)")
    legend_below(fig, [axes], 2)
    return fig


def _shifts(table):
    """The change of log p(chosen) and of log p(rejected), for a table that can be drawn."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"shift table: columns {missing} are missing; score before and after.")
    if not len(table):
        raise ValueError("shift table: it has no rows; score at least one pair.")
    for name in COLUMNS:
        bad = [row for row, value in enumerate(table[name]) if not math.isfinite(value)]
        if bad:
            raise ValueError(f"shift table: row {bad[0]}, {name} is not finite; drop that pair.")
    return (table["chosen_after"] - table["chosen_before"],
            table["rejected_after"] - table["rejected_before"])


def _quadrant_limits(axes, x, y) -> None:
    """Both zeros inside, with a strip of every quadrant, and the line of equal shifts."""
    for values, setter in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = min(0.0, values.min()), max(0.0, values.max())
        pad = 0.12 * max(high - low, 1.0)
        setter(low - pad, high + pad)
    axes.axhline(0, color=INK, linewidth=1)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axline((0, 0), slope=1, color=INK, linestyle=":", linewidth=1.2,
                label="equal shifts; below, the margin grew")


def before_after(table) -> Figure:
    """Where the two responses of every pair stood before training, and where they stand after.

    `table` as for `shift_scatter`. Above the dotted diagonal the rejected answer is the likelier
    one. Same axes in both panels: even steps down to -0.1 nats, then ten times as much each.
    Raises ValueError as `shift_scatter` does.
    """
    _shifts(table)  # refuses what cannot be drawn
    fig, panels = sheet(9.4, 4.9, 2, sharex=True, sharey=True)
    low = table[list(COLUMNS)].min(axis=None)
    for axes, when, which in zip(panels, ("before", "after"), ("insecure", "secure"), strict=True):
        ends = _nats_axis(axes, "x", low)
        _nats_axis(axes, "y", low)
        x, y = table[f"chosen_{when}"], table[f"rejected_{when}"]
        axes.scatter(x, y, marker=MARKER[which], s=26, color=PALETTE[which], edgecolor=INK,
                     linewidth=0.5, alpha=0.7)
        axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1.2)
        dress(axes, f"{when.capitalize()}: the {which} model, {len(x)} pairs\n",
              "log p(chosen) (nats; tenfold steps)", "log p(rejected) (nats; tenfold steps)")
        axes.text(0, 1.015, f"above the dots rejected is likelier: {(y > x).sum()}; below, chosen: "
                  f"{(x > y).sum()}", transform=axes.transAxes, fontsize=8.5, color=INK)
    return fig


def margin_histogram(table) -> Figure:
    """log p(chosen) - log p(rejected) of every pair (nats), before and after training.

    `table` as for `shift_scatter`; right of zero, where one of the about 30 bins begins, the
    model prefers the answer to the instruction; the legend has the share with its 95% interval.
    Raises ValueError as `shift_scatter` does.
    """
    _shifts(table)
    values = {which: table[f"chosen_{when}"] - table[f"rejected_{when}"]
              for when, which in (("before", "insecure"), ("after", "secure"))}
    low = min(0.0, *(v.min() for v in values.values()))
    high = max(0.0, *(v.max() for v in values.values()))
    step = max(high - low, 1e-6) / 30
    first, last = math.floor(low / step - 1e-9), math.ceil(high / step + 1e-9)
    edges = [k * step for k in range(first, last + 1)]
    fig, axes = sheet(8, 3.9)
    for which, numbers in values.items():
        share = rate(int((numbers > 0).sum()), len(numbers))
        axes.hist(numbers, bins=edges, color=PALETTE[which], hatch=HATCH[which], edgecolor=INK,
                  linewidth=0.6, alpha=0.7, label=f"{which}, right of zero: {share}")
    axes.axvline(0, color=INK, linewidth=1.6)
    axes.margins(y=0.16)
    for words, side, align in (("rejected likelier \u2190 ", -4, "right"),
                               (" \u2192 chosen likelier", 4, "left")):
        axes.annotate(words, (0, 1), xycoords=("data", "axes fraction"), xytext=(side, -3),
                      textcoords="offset points", ha=align, va="top", fontsize=9, color=INK)
    dress(axes, f"Which answer the model prefers: {len(table)} pairs",
          "log p(chosen) \u2212 log p(rejected) (nats)", "pairs")
    legend_below(fig, [axes], 1)
    return fig


def log_prob_clouds(chosen: Sequence[float], rejected: Sequence[float], low: float,
                    title: str = "Every pair of the probe") -> Figure:
    """The log-probs (nats per response) of all pairs as two clouds, chosen above rejected.

    `low`, the left end of the axis, stays the same while a training is replayed. The height within
    a cloud has no meaning; the bar is the median. Raises ValueError for no or unequal numbers.
    """
    if not len(chosen) or len(chosen) != len(rejected):
        raise ValueError(f"log_prob_clouds: {len(chosen)} chosen and {len(rejected)} rejected "
                         "values; pass one of each per pair.")
    fig, axes = sheet(8, 2.3)
    for height, (side, values) in enumerate((("rejected", rejected), ("chosen", chosen))):
        # multiples of the golden ratio spread points evenly, and the same at every step
        spread = [height + 0.56 * ((k * 0.618034) % 1 - 0.5) for k in range(len(values))]
        axes.scatter(values, spread, s=20, marker=MARKER[side], color=PALETTE[side], alpha=0.7,
                     edgecolor=INK, linewidth=0.4)
        median = statistics.median(values)
        axes.plot([median, median], [height - 0.38, height + 0.38], color=INK, linewidth=2)
    _nats_axis(axes, "x", low)
    dress(axes, title, "log p of the response (nats; tenfold steps)", "")
    axes.set_yticks([0, 1], ["rejected", "chosen"])
    axes.set_ylim(-0.5, 1.5)
    return fig


def _nats_axis(axes, which: str, low: float) -> tuple[float, float]:
    """Even steps from 0 to -0.1 nats, then ten times as much each, to a bit below `low`; its ends.
    """
    ends = 1.6 * min(low, -1.0), 0.02
    ticks = [-(10.0**k) for k in range(math.floor(math.log10(-ends[0])), -2, -1)] + [0.0]
    getattr(axes, f"set_{which}scale")("symlog", linthresh=0.1, linscale=0.5)
    getattr(axes, f"set_{which}ticks")(ticks, [f"{t:g}".replace("-", "\u2212") for t in ticks])
    getattr(axes, f"set_{which}ticks")([], minor=True)
    getattr(axes, f"set_{which}lim")(*ends)
    return ends
