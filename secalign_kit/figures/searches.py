"""Attacks that search: their loss step by step, and what a budget buys."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..evaluation import rate
from .canvas import drawable, dress, legend_below, sheet
from .palette import INK, looks
from .rates import percent


def searches(found: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Losses of searches by step, and the share that had succeeded by then, for each model.

    `found`: name of a model to its searches, each with `losses` (nats, one for each step, the first
    before any), `obeyed` and `steps`. A mark ends a search that succeeded. The band is the 95%
    interval. Names that begin with insecure or secure take their colours. Raises ValueError for a
    model without searches.
    """
    if not found or not all(found.values()):
        raise ValueError("searches: a model without searches; pass at least one each.")
    fig, (loss, share) = sheet(9, 3.8, 2)
    last = max(len(one["losses"]) - 1 for group in found.values() for one in group)
    for (name, group), look in zip(found.items(), looks(list(found)), strict=True):
        for one in group:
            loss.plot(range(len(one["losses"])), one["losses"], color=look["color"],
                      linestyle=look["line"], linewidth=1.1, alpha=0.75)
            if one["obeyed"]:
                loss.plot([len(one["losses"]) - 1], one["losses"][-1:], marker=look["marker"],
                          color=look["color"], markeredgecolor=INK, markersize=7, zorder=3)
        rates = [rate(sum(one["obeyed"] and one["steps"] <= step for one in group), len(group))
                 for step in range(last + 1)]
        values, lows, highs = percent(rates)
        share.step(range(last + 1), values, where="post", color=look["color"], linewidth=2,
                   linestyle=look["line"], marker=look["marker"], markevery=max(1, last // 5),
                   markeredgecolor=INK, label=f"{drawable(name, 60)}, n = {len(group)}")
        share.fill_between(range(last + 1), lows, highs, step="post", color=look["color"],
                           alpha=0.15, linewidth=0)
    share.set_ylim(-3, 103)
    dress(loss, "The search (a mark: obeyed)", "step", "\u2212log p of what is wanted (nats)")
    dress(share, "What a budget buys", "steps allowed", "% of samples obeyed")
    legend_below(fig, [share], 2)
    return fig
