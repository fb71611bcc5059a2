"""Attack success rates: models beside each other, attack by attack."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .canvas import drawable, dress, legend_below
from .palette import FAINT, HATCH, INK, PALETTE, PAPER, looks
from .rates import draw_points, percent, trials, whisker


def asr_bars(summary: Mapping) -> Figure:
    """Attack success rate per attack, insecure beside secure, with 95% Wilson intervals and n.

    `summary`: `{"insecure": {"asr": {attack: rate}, "clean_utility": rate}, "secure": ...}`; a rate
    has `value`, `n`, `low`, `high` (fractions), as a mapping or an object. `clean_utility` may be
    absent; where it is there, it stands apart on the right. What was measured on one model only
    shows "not measured" for the other. Raises ValueError for no attack.
    """
    asr = {which: summary.get(which, {}).get("asr", {}) for which in ("insecure", "secure")}
    attacks = list(dict.fromkeys([*asr["insecure"], *asr["secure"]]))
    if not attacks:
        raise ValueError("asr_bars: no attack in summary['insecure' or 'secure']['asr'].")
    groups = [(k, a, {w: asr[w].get(a) for w in asr}) for k, a in enumerate(attacks)]
    clean = {which: summary.get(which, {}).get("clean_utility") for which in asr}
    split = len(attacks) - 0.2  # where utility, for which high is good, is set apart
    if any(rate is not None for rate in clean.values()):
        groups.append((len(attacks) + 0.6, "clean utility", clean))
    fig = Figure(figsize=(max(6.6, 1.45 * len(groups) + 1.6), 4), layout="constrained",
                 facecolor=PAPER)
    axes = fig.subplots()
    for which, offset in (("insecure", -0.2), ("secure", 0.2)):
        for place, _, rates in groups:
            _bar(axes, place + offset, rates[which], which)
    labels = [(drawable(name, 40) + trials(r.values(), "\n")).replace("_", " ")
              for _, name, r in groups]
    axes.set_xticks([place for place, _, _ in groups], labels, parse_math=False)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.6, groups[-1][0] + 0.6)
    title, x = "Attack success rate (lower is safer)", "attack"
    y = "attacks obeyed (% of samples)"
    if len(groups) > len(attacks):
        title, x, y = "Security and utility", "attack, and without attack", "% of samples"
        axes.axvline(split, color=INK, linewidth=1.2)
        for place, words in (((len(attacks) - 1) / 2, "attacks obeyed:\nlower is better"),
                             (groups[-1][0], "right answers:\nhigher is better")):
            axes.text(place, 135, words, ha="center", va="top", fontsize=9, color=INK)
        axes.set_ylim(0, 136)
    dress(axes, title, x, y)
    axes.grid(False, axis="x")
    keys = [Rectangle((0, 0), 1, 1, label=w, **_bar_style(w)) for w in ("insecure", "secure")]
    axes.legend(handles=keys, frameon=False, ncols=2, loc="lower right", fontsize=9.5,
                bbox_to_anchor=(1, 1), borderaxespad=0.1)
    return fig


def _bar_style(which: str) -> dict:
    return {"facecolor": PALETTE[which], "edgecolor": INK, "hatch": HATCH[which], "linewidth": 0.8}


def _bar(axes, x: float, rate, which: str) -> None:
    if rate is None:
        axes.text(x, 2, "not measured", rotation=90, ha="center", va="bottom", fontsize=8)
        return
    value, low, high = percent(rate)
    axes.bar(x, value, 0.36, **_bar_style(which))
    axes.errorbar(x, value, yerr=whisker(rate), color=INK, capsize=4, linewidth=1.4)
    axes.text(x, max(value, high) + 1.5, f"{value:.0f}%", ha="center", va="bottom", fontsize=9)


def attack_bars(rates: Mapping[str, Mapping],
                title: str = "Attacks obeyed (left is safer)") -> Figure:
    """Attack success rate of every attack on several models: points with 95% intervals.

    `rates`: model to `{attack: rate}` (at most six models; rates as in `tradeoff`); names take
    their colours as there. An attack that was not measured on a model has no point for it. Raises
    ValueError for no attack or too many models.
    """
    attacks = list(dict.fromkeys(attack for found in rates.values() for attack in found))
    if not attacks or len(rates) > 6:
        raise ValueError(f"attack_bars: {len(rates)} models, {len(attacks)} attacks; pass one to "
                         "six models and at least one attack.")
    share = 0.72 / len(rates)
    row = max(0.3, 0.1 * len(rates))  # inches per attack
    fig = Figure(figsize=(8.6, 1.5 + row * len(attacks)), layout="constrained", facecolor=PAPER)
    axes = fig.subplots()
    for k in range(1, len(attacks), 2):
        axes.axhspan(k - 0.5, k + 0.5, color=FAINT, alpha=0.45, linewidth=0)
    for number, (model, look) in enumerate(zip(rates, looks(list(rates)), strict=True)):
        places = [attacks.index(attack) + (number - (len(rates) - 1) / 2) * share
                  for attack in rates[model]]
        found = list(rates[model].values())
        for place, rate in zip(places, found, strict=True):
            axes.errorbar(percent(rate)[0], place, xerr=whisker(rate), color=INK, capsize=2,
                          linewidth=1, zorder=2)
        draw_points(axes, [percent(rate)[0] for rate in found], places, look, 5.5, zorder=3,
                clip_on=False, label=drawable(model, 40) + trials(found, ", "))
    axes.set_xlim(-1.5, 101.5)
    axes.set_ylim(len(attacks) - 0.5, -0.5)
    axes.set_yticks(range(len(attacks)), [drawable(a, 40).replace("_", " ") for a in attacks],
                    parse_math=False)
    every = [rate for found in rates.values() for rate in found.values()]
    dress(axes, title,
           f"attack success rate (%), 95% intervals{trials(every)} per attack", "attack")
    axes.grid(False, axis="y")
    legend_below(fig, [axes], 2 if len(rates) == 4 else 3)
    return fig
