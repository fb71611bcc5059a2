"""What models answered instead: the kinds of their answers as parts of a whole."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from ..evaluation import Rate
from .canvas import drawable, dress, legend_below, sheet
from .palette import ANSWERS, INK
from .rates import trials

WIDE = 4.0  # percent of a bar that hold a number
LETTER = 0.95  # percent of a bar that hold a letter


def answer_kinds(models: Mapping[str, Mapping[str, Rate]]) -> Figure:
    """A bar for each model, divided into what it answered; the shares stand in the parts.

    `models`: name to `evaluation.kinds_of_answers`. Kinds that nobody gave are not drawn, and parts
    of less than 4% have no number; large ones are named too. Raises ValueError for no
    model, or an unknown kind.
    """
    found = list(dict.fromkeys(kind for kinds in models.values() for kind in kinds))
    if unknown := sorted(set(found) - set(ANSWERS)):
        raise ValueError(f"answer_kinds: {unknown[0]!r} is no kind of answer.")
    if not found:
        raise ValueError("answer_kinds: no answers; pass evaluation.kinds_of_answers(records).")
    fig, axes = sheet(9.4, 1.9 + 0.55 * len(models))
    reached = [0.0] * len(models)
    for kind in ANSWERS:
        rates = [kinds.get(kind) for kinds in models.values()]
        if any(rate and rate.value for rate in rates):
            _parts(axes, kind, [100 * rate.value if rate else 0.0 for rate in rates], reached)
    labels = [f"{drawable(name, 40)}\n{trials(kinds.values())}" for name, kinds in models.items()]
    axes.set_yticks(range(len(models)), labels, parse_math=False)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    dress(axes, "What was answered", "% of responses", "model")
    axes.grid(False)
    legend_below(fig, [axes], 4)
    return fig


def _parts(axes, kind: str, shares: list[float], reached: list[float]) -> None:
    """The parts of one kind in every bar; moves on how far the bars have reached."""
    color, hatch, ink = ANSWERS[kind]
    axes.barh(range(len(shares)), shares, 0.62, left=reached, facecolor=color, edgecolor=INK,
              hatch=hatch, linewidth=0.8, label=kind)
    for number, share in enumerate(shares):
        if share >= WIDE:
            plate = {"facecolor": color, "edgecolor": "none", "pad": 1.5} if hatch else None
            named = f"{kind} {share:.1f}"
            axes.text(reached[number] + share / 2, number,
                      named if share >= LETTER * len(named) else f"{share:.1f}", color=ink,
                      bbox=plate, ha="center", va="center", fontsize=9)
        reached[number] += share
