"""Rates with their intervals, over anything that was varied."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from .canvas import drawable, dress, legend_below
from .palette import INK, PAPER, looks


def field(rate, name: str) -> float:
    """One field of a rate that may be a mapping (read from json) or an object."""
    return rate[name] if isinstance(rate, Mapping) else getattr(rate, name)


def percent(rate) -> tuple[float, float, float]:
    """(value, low, high) in percent; a plain number has no interval."""
    if isinstance(rate, int | float):
        return (100.0 * rate,) * 3
    return tuple(100 * field(rate, name) for name in ("value", "low", "high"))


def whisker(rate) -> list[list[float]]:
    value, low, high = percent(rate)
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def trials(rates: Iterable, before: str = "; ") -> str:
    """How many trials stand behind the rates: `before` and "n = 40" or "n = 40 / 50", or ""."""
    known = [r.get("n") if isinstance(r, Mapping) else getattr(r, "n", None) for r in rates]
    known = list(dict.fromkeys(n for n in known if n is not None))
    if len(known) > 3:
        known = [f"{min(known)} to {max(known)}"]
    return f"{before}n = {' / '.join(map(str, known))}" if known else ""


def draw_points(axes, x, y, look: Mapping, size: float = 8, line: str = "", **more) -> None:
    """Markers with a dark edge; an open one keeps its colour as a thick edge."""
    open_ = look["fill"] == PAPER
    axes.plot(
        x, y, color=look["color"], linestyle=line, marker=look["marker"], markersize=size,
        markerfacecolor=look["fill"], markeredgecolor=look["color"] if open_ else INK,
        markeredgewidth=1.7 if open_ else 0.8, linewidth=1.8, **more,
    )  # fmt: skip


def strength_dial(rows: Sequence[Mapping], title: str = "") -> Figure:
    """ASR, utility and margin against the strength of the adapter.

    `rows`: `strength` (0 is insecure, 1 as trained), `asr` and `utility` (rates as in `tradeoff`),
    `margin` (mean log p(chosen) - log p(rejected), nats), and maybe `attack`, the name of the
    attack whose rate `asr` is. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("strength_dial: no rows; evaluate at least one strength.")
    fig = Figure(figsize=(9, 4), layout="constrained", facecolor=PAPER)
    if title:
        fig.suptitle(drawable(title, 90), x=0.01, ha="left", fontsize=11, parse_math=False)
    rates, margin = fig.subplots(1, 2)
    x = [row["strength"] for row in rows]
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row.get("attack")))
    asr = "attack success rate" + (f" ({' or '.join(attacks)})" if attacks else "")
    words = {"asr": drawable(asr.replace("_", "-"), 90), "utility": "clean utility"}
    for key, look in zip(words, looks(list(words)), strict=True):
        low, high = zip(*(percent(row[key])[1:] for row in rows), strict=True)
        draw_points(rates, x, [percent(row[key])[0] for row in rows], look, 6, look["line"],
                label=words[key] + trials((row[key] for row in rows), ", "))
        rates.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    margin.plot(x, [row["margin"] for row in rows], color=INK, marker="D", linewidth=1.8)
    margin.axhline(0, color=INK, linestyle=":", linewidth=1.2)
    rates.set_ylim(-3, 103)
    for axes in (rates, margin):
        axes.axvline(1, color=INK, linestyle="-.", linewidth=1, label="as trained")
    dress(rates, "Rates with 95% intervals", "adapter strength", "% of samples")
    dress(margin, "Preference", "adapter strength", "log p(chosen) \u2212 log p(rejected) (nats)")
    legend_below(fig, [rates], 3 if len(words["asr"]) < 50 else 1)
    return fig


def rate_curves(curves: Mapping[str, Sequence[tuple]], xlabel: str, ylabel: str = "% of samples",
                title: str = "Rates with 95% intervals", log_x: bool = False) -> Figure:
    """Rates against one number that was varied, such as pairs or learning rate.

    `curves`: name to `[(x, rate), ...]` (rates as in `tradeoff`), drawn in the order of x; `log_x`
    spaces factors evenly. Names that begin with insecure, secure, SecAlign, attack success (or ASR)
    or utility take their colours. Raises ValueError for no point, or x <= 0 with `log_x`.
    """
    if not curves or not all(curves.values()):
        raise ValueError("rate_curves: a curve without points; pass at least one (x, rate) each.")
    xs = sorted({float(x) for points in curves.values() for x, _ in points})
    if log_x and xs[0] <= 0:
        raise ValueError(f"rate_curves: x is {xs[0]:g}; a log axis needs numbers above 0.")
    fig = Figure(figsize=(7.6, 4.2), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    if log_x:
        axes.set_xscale("log")
    for (name, points), look in zip(curves.items(), looks(list(curves)), strict=True):
        x, rates = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        value, low, high = zip(*map(percent, rates), strict=True)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
        for place, rate in zip(x, rates, strict=True):
            axes.errorbar(place, percent(rate)[0], yerr=whisker(rate), color=INK, capsize=3,
                          linewidth=1, zorder=2.5)
        draw_points(axes, x, value, look, 7, look["line"], zorder=3,
                label=drawable(name, 60) + trials(rates, ", "))
    dress(axes, title, xlabel, ylabel)
    axes.set_ylim(-3, 103)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_xticks([], minor=True)
    legend_below(fig, [axes], 2)
    return fig
