"""Attacks that search: their loss step by step, what a budget buys, how far embeddings move."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..evaluation import rate
from .canvas import drawable, dress, legend_below, sheet, write
from .palette import INK, PALETTE, looks
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


def embedding_moves(tokens: Sequence[Mapping]) -> Figure:
    """How far an attacker moved embeddings, and where the nearest other tokens lie.

    `tokens`: those of `adversary.portrait`, a line for each. A line names the token and, behind the
    arrow, the one that is nearest after the moves. Raises ValueError for no tokens.
    """
    if not tokens:
        raise ValueError("embedding_moves: no tokens; pass those of adversary.portrait.")
    fig, axes = sheet(7.6, 0.42 * len(tokens) + 1.5)
    color = PALETTE["injection"]
    for y, told in enumerate(tokens):
        axes.annotate("", (told["went"], y), (0, y),
                      arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.8})
        axes.plot(told["gap"], y, marker="|", markersize=11, color=INK)
        write(axes, told["gap"], y - 0.3, _dotted(told["neighbour"]), 8.5, ha="center")
    names = [f"{_dotted(told['token'])} \u2192 {_dotted(told['nearest'])}" for told in tokens]
    axes.set_yticks(range(len(tokens)), names, parse_math=False)
    axes.set_ylim(len(tokens) - 0.5, -0.7)
    axes.set_xlim(0, 1.3 * max(max(told["gap"], told["went"]) for told in tokens))
    axes.plot([], [], marker=">", color=color, label="moved so far")
    axes.plot([], [], marker="|", color=INK, linestyle="", markersize=11,
              label="the nearest other token")
    dress(axes, "How far the embeddings were moved",
          "distance from the token's own embedding (lengths of an ordinary one)",
          "token \u2192 nearest after the moves")
    legend_below(fig, [axes], 2)
    return fig


def _dotted(token: str) -> str:
    """A token with its spaces as dots: " stone" and "stone" are two."""
    return drawable(token, 16).replace(" ", "\u00b7")
