"""Security beside utility."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from .canvas import drawable, dress
from .palette import INK, PAPER, looks
from .rates import draw_points, percent, trials, whisker


def tradeoff(points: Mapping[str, Mapping]) -> Figure:
    """Utility against attack success rate, one named point with two 95% intervals per defense.

    `points`: name to `{"asr": rate, "utility": rate}`; a rate has `value`, `low`, `high`
    (fractions) and maybe `n`, as a mapping or an object, or is a plain number. Names that begin
    with insecure, secure or SecAlign take their colours. Upper left is best. Raises ValueError for
    no point.
    """
    if not points:
        raise ValueError("tradeoff: no points; evaluate at least one model.")
    fig = Figure(figsize=(8.2, 5), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    places = [[percent(p[key])[0] for key in ("asr", "utility")] for p in points.values()]
    for k, (point, look) in enumerate(zip(points.values(), looks(list(points)), strict=True)):
        x, y = places[k]
        axes.errorbar(x, y, xerr=whisker(point["asr"]), yerr=whisker(point["utility"]),
                      color=INK, capsize=3, linewidth=1.1, linestyle="", zorder=2)
        below = sum(math.dist(places[k], other) < 2 for other in places[:k])
        draw_points(axes, [x], [y], look, max(4, 11 - 3.5 * below), zorder=3 + below)
    axes.set_xlim(-4, 104)
    axes.margins(y=0.15)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
    axes.set_ylim(low, high)
    dress(axes, "Security and utility (upper left is best)",
           "attack success rate of the strongest attack "
           f"(%{trials(p['asr'] for p in points.values())})",
           f"clean utility (%{trials(p['utility'] for p in points.values())})")
    fig.draw_without_rendering()  # places of points are known only in the final layout
    boxes = [_box(axes, p["asr"], p["utility"]) for p in points.values()]
    _write_names(axes, list(points), places, [box for pair in boxes for box in pair])
    return fig


def _box(axes, across, up) -> list[Bbox]:
    """What a point with its intervals covers, in pixels: two bars with room for the marker."""
    (x, left, right), (y, low, high) = percent(across), percent(up)
    ends = ((left, y), (right, y)), ((x, low), (x, high))
    return [Bbox(axes.transData.transform(pair)).padded(7) for pair in ends]


_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def _write_names(axes, names: Sequence[str], places: Sequence, taken: list[Bbox]) -> None:
    """Each name near its point, where it covers no other name and nothing of `taken` (pixels)."""
    per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent().padded(-4)
    for name, place in zip(names, places, strict=True):
        label = axes.annotate(
            drawable(name, 40), place, (0, 0), textcoords="offset points", ha="center",
            va="center", fontsize=9, color=INK, parse_math=False, zorder=6,
        )  # fmt: skip
        label.set_in_layout(False)
        size = label.get_window_extent()
        half = size.width / per_point / 2, size.height / per_point / 2
        ways = [(h, v, far) for far in (9, 18, 30, 44) for h, v in _AROUND]
        moves = [(h * (half[0] + far), v * (half[1] + far)) for h, v, far in ways]
        boxes = [size.translated(dx * per_point, dy * per_point) for dx, dy in moves]
        costs = [sum(_shared(box, other) for other in taken) + _area(box) - _shared(box, inside)
                 for box in boxes]
        best = costs.index(min(costs))  # the nearest of the best
        label.set_position(moves[best])
        taken.append(boxes[best])
        h, v, far = ways[best]
        if far > 18:  # so far away that a line must say whose name it is
            end = h * (far - 2), v * (far - 2)
            line = axes.annotate("", place, end, textcoords="offset points", zorder=2.5,
                                 arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6})
            line.set_in_layout(False)


def _area(box: Bbox) -> float:
    return box.width * box.height


def _shared(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else _area(both)
