"""Security beside utility."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..evaluation import Rate
from .canvas import drawable, dress, sheet
from .palette import INK, looks
from .rates import draw_points, percent, trials, whiskers


def tradeoff(points: Mapping[str, Mapping[str, Rate]]) -> Figure:
    """Utility against attack success rate, one named point with two 95% intervals per defense.

    `points`: name to `{"asr": Rate, "utility": Rate}`. Names that begin with insecure, secure or
    SecAlign take their colours. Upper left is best. Raises ValueError for no point.
    """
    if not points:
        raise ValueError("tradeoff: no points; evaluate at least one model.")
    fig, axes = sheet(8.2, 5)
    asr, utility = ([point[key] for point in points.values()] for key in ("asr", "utility"))
    places = list(zip(percent(asr)[0], percent(utility)[0], strict=True))
    axes.errorbar(*zip(*places, strict=True), xerr=whiskers(asr), yerr=whiskers(utility),
                  color=INK, capsize=3, linewidth=1.1, linestyle="", zorder=2)
    for k, ((x, y), look) in enumerate(zip(places, looks(list(points)), strict=True)):
        below = sum(math.dist((x, y), other) < 2 for other in places[:k])
        draw_points(axes, [x], [y], look, max(4, 11 - 3.5 * below), zorder=3 + below)
    axes.set_xlim(-4, 104)
    axes.margins(y=0.22)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
    axes.set_ylim(low, high)
    dress(axes, "Security and utility (upper left is best)",
          f"attack success rate of the strongest attack (%; {trials(asr)})",
          f"clean utility (%; {trials(utility)})")
    fig.draw_without_rendering()  # places of points are known only in the final layout
    taken = [bar for pair in zip(asr, utility, strict=True) for bar in _bars(axes, *pair)]
    _write_names(axes, list(points), places, taken)
    return fig


def _bars(axes, asr: Rate, utility: Rate) -> list[Bbox]:
    """What a point with its intervals covers, in pixels: two bars with room for the marker."""
    ends = (((asr.low, utility.value), (asr.high, utility.value)),
            ((asr.value, utility.low), (asr.value, utility.high)))
    places = [[(100 * x, 100 * y) for x, y in pair] for pair in ends]
    return [Bbox(axes.transData.transform(pair)).padded(7) for pair in places]


_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def _write_names(axes, names: Sequence[str], places: Sequence, taken: list[Bbox]) -> None:
    """Each name near its point, where it covers no other name and nothing of `taken` (pixels)."""
    per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent().padded(-4)
    for name, place in zip(names, places, strict=True):
        label = axes.annotate(drawable(name, 40), place, (0, 0), textcoords="offset points",
                              ha="center", va="center", fontsize=9, color=INK, parse_math=False,
                              zorder=6)
        label.set_in_layout(False)
        size = label.get_window_extent()
        half = size.width / per_point / 2, size.height / per_point / 2
        ways = [(h, v, far) for far in (9, 18, 30, 44) for h, v in _AROUND]
        moves = [(h * (half[0] + far), v * (half[1] + far)) for h, v, far in ways]
        boxes = [size.translated(dx * per_point, dy * per_point) for dx, dy in moves]
        costs = [sum(_shared(box, other) for other in taken)
                 + _shared(box, box) - _shared(box, inside) for box in boxes]
        best = costs.index(min(costs))  # the nearest of the best
        label.set_position(moves[best])
        taken.append(boxes[best].padded(2))
        h, v, far = ways[best]
        if far > 18:  # so far away that a line must say whose name it is
            end = h * (far - 2), v * (far - 2)
            line = axes.annotate("", place, end, textcoords="offset points", zorder=2.5,
                                 arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6})
            line.set_in_layout(False)


def _shared(one: Bbox, other: Bbox) -> float:
    """The area that both boxes cover."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height
