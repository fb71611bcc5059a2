"""Attack success rates: models beside each other, attack by attack."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..evaluation import Rate
from ..injections import POSITIONS
from .canvas import drawable, dress, legend_below, sheet
from .palette import FAINT, HATCH, INK, PALETTE, looks
from .rates import draw_points, percent, trials, whiskers


def asr_bars(summary: Mapping) -> Figure:
    """Attack success rate per attack, insecure beside secure, with 95% Wilson intervals and n.

    `summary`: `{"insecure": {"asr": {attack: Rate}, "clean_utility": Rate}, "secure": ...}`, as
    `evaluation.summarize` gives for each. `clean_utility` may be absent; where it is there, it
    stands apart on the right. What was measured on one model only shows "not measured" for the
    other. Raises ValueError for no attack.
    """
    models = {which: summary.get(which, {}) for which in ("insecure", "secure")}
    attacks = list(dict.fromkeys(a for model in models.values() for a in model.get("asr", {})))
    if not attacks:
        raise ValueError("asr_bars: no attack in summary['insecure' or 'secure']['asr'].")
    groups = [(place, attack, {w: m.get("asr", {}).get(attack) for w, m in models.items()})
              for place, attack in enumerate(attacks)]
    clean = {which: model.get("clean_utility") for which, model in models.items()}
    if any(clean.values()):
        groups.append((len(attacks) + 0.6, "clean utility", clean))
    fig, axes = sheet(max(6.6, 1.45 * len(groups) + 1.6), 4)
    for which, offset in (("insecure", -0.2), ("secure", 0.2)):
        for place, _, rates in groups:
            _bar(axes, place + offset, rates[which], which)
    labels = [f"{drawable(name, 40)}\n{trials(filter(None, rates.values()))}".replace("_", " ")
              for _, name, rates in groups]
    axes.set_xticks([place for place, _, _ in groups], labels, parse_math=False)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlim(-0.6, groups[-1][0] + 0.6)
    dress(axes, "Attack success rate (lower is safer)", "attack", "attacks obeyed (% of samples)")
    if any(clean.values()):
        _set_apart(axes, len(attacks), groups[-1][0])
    axes.grid(False, axis="x")
    keys = [Rectangle((0, 0), 1, 1, label=which, **_bar_style(which)) for which in models]
    axes.legend(handles=keys, frameon=False, ncols=2, loc="lower right", fontsize=9.5,
                bbox_to_anchor=(1, 1), borderaxespad=0.1)
    return fig


def _set_apart(axes, attacks: int, utility: float) -> None:
    """A line between the attacks and utility, for which high is good, and words that say so."""
    dress(axes, "Security and utility", "attack, and without attack", "% of samples")
    axes.axvline(attacks - 0.2, color=INK, linewidth=1.2)
    for place, words in (((attacks - 1) / 2, "attacks obeyed:\nlower is better"),
                         (utility, "right answers:\nhigher is better")):
        axes.text(place, 135, words, ha="center", va="top", fontsize=9, color=INK)
    axes.set_ylim(0, 136)


def _bar_style(which: str) -> dict:
    return {"facecolor": PALETTE[which], "edgecolor": INK, "hatch": HATCH[which], "linewidth": 0.8}


def _bar(axes, x: float, rate: Rate | None, which: str) -> None:
    if rate is None:
        axes.text(x, 2, "not measured", rotation=90, ha="center", va="bottom", fontsize=8)
        return
    axes.bar(x, 100 * rate.value, 0.36, **_bar_style(which))
    axes.errorbar(x, 100 * rate.value, yerr=whiskers([rate]), color=INK, capsize=4, linewidth=1.4)
    # 99.8% is not 100%: a decimal, unless it is a zero
    axes.text(x, 100 * rate.high + 1.5, f"{100 * rate.value:.1f}".removesuffix(".0") + "%",
              ha="center", va="bottom", fontsize=9)


def attack_bars(rates: Mapping[str, Mapping[str, Rate]],
                title: str = "Attacks obeyed (left is safer)",
                measure: str = "attack success rate") -> Figure:
    """Attack success rate of every attack on several models: points with 95% intervals.

    With another title and measure, another rate of each attack, such as right answers.

    `rates`: model to `{attack: Rate}` (at most six models); names take their colours as in
    `tradeoff`. An attack that was not measured on a model has no point for it. Raises ValueError
    for no attack or too many models.
    """
    attacks = list(dict.fromkeys(attack for found in rates.values() for attack in found))
    if not attacks or len(rates) > 6:
        raise ValueError(f"attack_bars: {len(rates)} models, {len(attacks)} attacks; pass one to "
                         "six models and at least one attack.")
    fig, axes = sheet(8.6, _height(rates, attacks))
    _points_by_attack(axes, rates, attacks)
    every = trials(rate for found in rates.values() for rate in found.values())
    dress(axes, title, f"{measure} (%), 95% intervals; {every} per attack", "attack")
    axes.grid(False, axis="y")
    legend_below(fig, [axes], 2 if len(rates) == 4 else 3)
    return fig


def attack_places(models: Mapping[str, Mapping[str, Mapping]]) -> Figure:
    """`attack_bars` for each place in the data, side by side.

    `models`: model to `evaluation.by_place`. Raises ValueError for no place or too many models.
    """
    places = list(dict.fromkeys(place for found in models.values() for place in found))
    attacks = list(dict.fromkeys(attack for found in models.values() for place in found.values()
                                 for attack in place["asr"]))
    if not attacks or len(models) > 6:
        raise ValueError(f"attack_places: {len(models)} models, {len(attacks)} attacks; pass "
                         "evaluation.by_place(records) of one to six models.")
    fig, panels = sheet(9.4, _height(models, attacks), len(places), sharey=True, squeeze=False)
    for number, (axes, place) in enumerate(zip(panels[0], places, strict=True)):
        rates = {model: found[place]["asr"] for model, found in models.items() if place in found}
        _points_by_attack(axes, rates, attacks)
        every = trials(rate for found in rates.values() for rate in found.values())
        dress(axes, POSITIONS[place], f"obeyed (%), {every} each", "" if number else "attack")
        axes.grid(False, axis="y")
    legend_below(fig, [panels[0][0]], 3)
    return fig


def _height(models: Mapping, attacks: Sequence) -> float:
    return 1.5 + max(0.3, 0.1 * len(models)) * len(attacks)


def _points_by_attack(axes, rates: Mapping[str, Mapping[str, Rate]], attacks: list[str]) -> None:
    """A row for each attack, in it a point with its interval for each model."""
    for k in range(1, len(attacks), 2):
        axes.axhspan(k - 0.5, k + 0.5, color=FAINT, alpha=0.45, linewidth=0)
    for number, (model, look) in enumerate(zip(rates, looks(list(rates)), strict=True)):
        shift = (number - (len(rates) - 1) / 2) * 0.72 / len(rates)
        places = [attacks.index(attack) + shift for attack in rates[model]]
        found = list(rates[model].values())
        values = percent(found)[0]
        axes.errorbar(values, places, xerr=whiskers(found), color=INK, capsize=2, linewidth=1,
                      linestyle="", zorder=2)
        draw_points(axes, values, places, look, 5.5, zorder=3, clip_on=False,
                    label=f"{drawable(model, 40)}, {trials(found)}")
    axes.set_xlim(-1.5, 101.5)
    axes.set_ylim(len(attacks) - 0.5, -0.5)
    axes.set_yticks(range(len(attacks)), [drawable(a, 40).replace("_", " ") for a in attacks],
                    parse_math=False)
