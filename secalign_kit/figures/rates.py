"""Rates with their intervals, over anything that was varied.

A rate is an `evaluation.Rate`: a share, its n, and the ends of its 95% interval.
"""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from ..evaluation import Rate
from .canvas import drawable, dress, legend_below, sheet
from .palette import INK, PAPER, looks


def percent(rates: Sequence[Rate]) -> list[list[float]]:
    """[values, lower ends, upper ends], each in percent."""
    return [[100 * getattr(rate, end) for rate in rates] for end in ("value", "low", "high")]


def whiskers(rates: Sequence[Rate]) -> list[list[float]]:
    """How far the intervals reach below and above their values, for `errorbar`."""
    values, lows, highs = percent(rates)
    # an end may be a rounding error beyond its value, which matplotlib refuses
    return [[max(0.0, v - low) for v, low in zip(values, lows, strict=True)],
            [max(0.0, high - v) for v, high in zip(values, highs, strict=True)]]


def trials(rates: Iterable[Rate]) -> str:
    """How many trials stand behind the rates: "n = 40", "n = 40 / 50" or "n = 40 to 90"."""
    known = list(dict.fromkeys(rate.n for rate in rates))
    if len(known) > 3:
        known = [f"{min(known)} to {max(known)}"]
    return f"n = {' / '.join(map(str, known)) or 0}"


def draw_points(axes, x, y, look: Mapping, size: float = 8, line: str = "", **more) -> None:
    """Markers with a dark edge; an open one keeps its colour as a thick edge."""
    open_ = look["fill"] == PAPER
    axes.plot(x, y, color=look["color"], linestyle=line, linewidth=1.8, marker=look["marker"],
              markersize=size, markerfacecolor=look["fill"],
              markeredgecolor=look["color"] if open_ else INK,
              markeredgewidth=1.7 if open_ else 0.8, **more)


def rate_curves(curves: Mapping[str, Sequence[tuple]], xlabel: str,
                title: str = "Rates with 95% intervals", log_x: bool = False) -> Figure:
    """Rates against one number that was varied, such as pairs or learning rate.

    `curves`: name to `[(x, Rate), ...]`, drawn in the order of x; `log_x` spaces factors evenly.
    Names that begin with insecure, secure, SecAlign, attack success (or ASR) or utility take their
    colours. Raises ValueError for no point, or x <= 0 with `log_x`.
    """
    if not curves or not all(curves.values()):
        raise ValueError("rate_curves: a curve without points; pass at least one (x, rate) each.")
    xs = sorted({float(x) for points in curves.values() for x, _ in points})
    if log_x and xs[0] <= 0:
        raise ValueError(f"rate_curves: x is {xs[0]:g}; a log axis needs numbers above 0.")
    fig, axes = sheet(7.6, 4.2)
    axes.set_xscale("log" if log_x else "linear")
    for (name, points), look in zip(curves.items(), looks(list(curves)), strict=True):
        x, rates = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        values, lows, highs = percent(rates)
        axes.fill_between(x, lows, highs, color=look["color"], alpha=0.13, linewidth=0)
        axes.errorbar(x, values, yerr=whiskers(rates), color=INK, capsize=3, linewidth=1,
                      linestyle="", zorder=2.5)
        draw_points(axes, x, values, look, 7, look["line"], zorder=3,
                    label=f"{drawable(name, 60)}, {trials(rates)}")
    dress(axes, title, xlabel, "% of samples")
    axes.set_ylim(-3, 103)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_xticks([], minor=True)
    legend_below(fig, [axes], 2)
    return fig


def strength_dial(rows: Sequence[Mapping]) -> Figure:
    """ASR, utility and preference against the strength of the adapter.

    `rows`: `strength` (0 is insecure, 1 as trained), `asr` and `utility` (Rates), `attack` (the
    name of the attack whose rate `asr` is) and `preference` (mean log p(chosen) -
    log p(rejected), nats). Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("strength_dial: no rows; evaluate at least one strength.")
    fig, (rates, shift) = sheet(9, 4, 2)
    strengths = [row["strength"] for row in rows]
    attacks = " or ".join(dict.fromkeys(row["attack"] for row in rows)).replace("_", "-")
    words = {"asr": drawable(f"attack success rate ({attacks})", 90), "utility": "clean utility"}
    for key, look in zip(words, looks(list(words)), strict=True):
        measured = [row[key] for row in rows]
        values, lows, highs = percent(measured)
        draw_points(rates, strengths, values, look, 6, look["line"],
                    label=f"{words[key]}, {trials(measured)}")
        rates.fill_between(strengths, lows, highs, color=look["color"], alpha=0.15, linewidth=0)
    shift.plot(strengths, [row["preference"] for row in rows], color=INK, marker="D",
               linewidth=1.8)
    shift.axhline(0, color=INK, linestyle=":", linewidth=1.2)
    rates.set_ylim(-3, 103)
    for axes in (rates, shift):
        axes.axvline(1, color=INK, linestyle="-.", linewidth=1, label="as trained")
    dress(rates, "Rates with 95% intervals", "adapter strength", "% of samples")
    dress(shift, "Preference", "adapter strength", "log p(chosen) \u2212 log p(rejected) (nats)")
    legend_below(fig, [rates], 3 if len(words["asr"]) < 50 else 1)
    return fig
