"""One setting varied at a time: what an attacker who searches reaches, and what is still right."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..attackers import asr
from ..evaluation import Rate, together
from .canvas import drawable, dress, sheet
from .palette import INK, MARKER, PALETTE, PAPER
from .rates import draw_points, percent, trials, whiskers


def ablation(rows: Sequence[Mapping]) -> Figure:
    """GCG's success and right answers under fixed attacks, a line for every value of each setting.

    `rows`: those of `data/attackers/ablation.json`, the base first: `settings` (name in words to
    value), `gcg` (an `attackers.summary`, read at the largest budget that all rows have) and
    `right` (a place to the fields of a Rate). Filled marks and dashed lines are the base. Raises
    ValueError for no rows.
    """
    if not rows:
        raise ValueError("ablation: no rows; pass at least that of the base.")
    lines, base = _lines(rows), rows[0]
    reach = min(row["gcg"]["allowed"] for row in rows)
    measures = {
        f"obeyed within {reach} steps of GCG":
            (PALETTE["injection"], "s", lambda row: asr(row["gcg"], reach)),
        "right under the fixed attacks":
            (PALETTE["chosen"], MARKER["chosen"],
             lambda row: together(Rate(**rate) for rate in row["right"].values())),
    }
    fig, panels = sheet(9, 0.24 * lines[-1][0] + 1.3, 2, sharey=True)
    for axes, (title, (color, marker, read)) in zip(panels, measures.items(), strict=True):
        for y, _, row in lines:
            found, fill = [read(row)], color if row is base else PAPER
            axes.errorbar(percent(found)[0], [y], xerr=whiskers(found), color=INK, capsize=3,
                          linewidth=1.2, linestyle="", zorder=2)
            draw_points(axes, percent(found)[0], [y], {"color": color, "fill": fill,
                                                       "marker": marker}, 7, zorder=3)
        axes.axvline(100 * read(base).value, color=color, linestyle="--", linewidth=1.2, zorder=1)
        axes.set_xlim(-3, 103)
        dress(axes, title, f"% with 95% intervals ({trials(read(row) for row in rows)})", "")
    panels[0].set_yticks([y for y, *_ in lines], [label for _, label, _ in lines],
                         parse_math=False)
    panels[0].set_ylim(lines[-1][0] + 0.7, -0.7)
    return fig


def _lines(rows: Sequence[Mapping]) -> list[tuple[float, str, Mapping]]:
    """Height, words and row of every value of every setting; values of one stand together."""
    base, lines, y = rows[0], [], 0.0
    for name, usual in base["settings"].items():
        group = [row for row in rows if row["settings"] == base["settings"] | {
            name: row["settings"][name]}]
        if isinstance(usual, (int, float)):
            group.sort(key=lambda row: row["settings"][name])
        for k, row in enumerate(group):
            value = row["settings"][name]
            said = f"{value:g}" if isinstance(value, (int, float)) else drawable(value, 30)
            lines.append((y, f"{'' if k else f'{drawable(name, 40)}: '}{said}"
                             f"{' (base)' if row is base else ''}", row))
            y += 1
        y += 0.5
    return lines
