"""The DPO loss and its gradient, as functions of one number."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from .canvas import dress, sheet
from .palette import INK, STYLE


def loss_curve(betas: Sequence[float] = (0.1,)) -> Figure:
    """The DPO loss and its pull against the shift of a pair, for each beta (at most three).

    The shift (nats) is how much more chosen than rejected gained; the loss is
    -log sigmoid(beta * shift) in nats, the pull beta * sigmoid(-beta * shift) is the size of its
    gradient by either log-probability. Raises ValueError for no, more than three, or bad betas.
    """
    if not 0 < len(betas) <= len(STYLE) or min(betas) <= 0:
        raise ValueError(f"loss_curve: betas {tuple(betas)}; give one to three numbers above 0.")
    fig, (loss, pull) = sheet(9, 3.4, 2)
    shifts = [x / 2 for x in range(-40, 81)]
    for beta, (color, line, marker) in zip(betas, STYLE, strict=False):
        margins = [beta * shift for shift in shifts]
        style = {"color": color, "linestyle": line, "marker": marker, "markevery": 20,
                 "markersize": 5, "linewidth": 1.8, "label": f"beta {beta:g}"}
        loss.plot(shifts, [max(-m, 0) + math.log1p(math.exp(-abs(m))) for m in margins], **style)
        pull.plot(shifts, [beta * (0.5 - 0.5 * math.tanh(m / 2)) for m in margins], **style)
    loss.plot([0], [math.log(2)], marker="o", color=INK, markersize=6, linestyle="")
    loss.annotate("log 2: nothing learned yet", (0, math.log(2)), xytext=(8, 12), fontsize=8.5,
                  textcoords="offset points", color=INK)
    x = "shift of the pair (nats): gain of chosen \u2212 gain of rejected"
    dress(loss, "Loss", x, "DPO loss (nats)")
    dress(pull, "Pull on each log-prob", x, "beta \u00d7 sigmoid(\u2212margin)")
    for axes in (loss, pull):
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.legend(frameon=False, fontsize=9, handlelength=4)
    return fig
