"""The log-probs of one answer, token by token."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib import colors
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..visible import arrow, number, token_text
from .canvas import COLUMN, FAMILY, POINTS, WIDTH, blank, close, drawable, write
from .palette import INK, PALETTE, PAPER


def token_strip(tokens: Sequence[str], before: Sequence[float], after: Sequence[float],
                title: str = "Change per token") -> Figure:
    """One box per token, coloured and labelled by the change of its log-probability (nats).

    `before`, `after`: log p of each token in nats, as long as `tokens`. Brown and a down-triangle
    mean less likely after training, teal and an up-triangle more likely.
    """
    changes = _token_changes(tokens, before, after)
    limit = max(0.5, *(abs(change) for change in changes))
    shade = ScalarMappable(colors.Normalize(-limit, limit), matplotlib.colormaps["BrBG"])
    fig, axes = blank()
    x, y = 0.25, 0.62
    for token, change in zip(tokens, changes, strict=True):
        shown = drawable(token_text(token), 60)
        size = max(len(shown), 6) * COLUMN + 0.14
        if x + size > WIDTH - 0.25 and x > 0.25:
            x, y = 0.25, y + 0.62
        _token_box(axes, x, y, size, shown, change, shade.to_rgba(change))
        x += size + 0.04
    _strip_heading(axes, title, sum(changes))
    height = y + 0.66 + 0.62
    close(fig, axes, height)
    _strip_scale(fig, shade, height)
    return fig


def role_strip(parts: Sequence[tuple[str, str]], title: str = "Whose text") -> Figure:
    """(role, text) parts in a row, as boxes in the colour of their role, broken into lines.

    A role is delimiter or a name of the palette. The first of neighbours with one role says it in
    words below; an injection's box has a thick dashed edge. Raises ValueError for no part, or for
    another role.
    """
    unknown = [role for role, _ in parts if role != "delimiter" and role not in PALETTE]
    if not parts or unknown:
        raise ValueError(f"role_strip: roles {unknown} are unknown, or no part is given; pass "
                         f"(role, text) with delimiter, {', '.join(PALETTE)}.")
    fig, axes = blank()
    write(axes, 0.25, 0.25, drawable(title, 90), 11.5, weight="bold")
    x, y, before = 0.25, 0.45, ""
    for place, (role, text) in enumerate(parts):
        shown = drawable(text if " " in text.strip() else token_text(text), 104)
        size = len(shown) * COLUMN + 0.14
        if x + size > WIDTH - 0.25 and x > 0.25:
            x, y = 0.25, y + 0.56
        color = PALETTE.get(role, INK)
        risky = role == "injection"
        axes.add_patch(Rectangle((x, y), size, 0.3, facecolor=(*colors.to_rgb(color), 0.14),
                                 edgecolor=color, linewidth=1.8 if risky else 0.9,
                                 linestyle="--" if risky else "-"))
        write(axes, x + size / 2, y + 0.15, shown, POINTS, family=FAMILY, ha="center",
              weight="bold" if role == "delimiter" else "normal")
        if role != before or x == 0.25:
            write(axes, x, y + 0.39, role, 8, color=color)
        alone = role != before and role not in [role for role, _ in parts[place + 1 : place + 2]]
        x, before = x + max(size, 0.07 * len(role) if alone else 0) + 0.05, role  # room for words
    close(fig, axes, y + 0.6)
    return fig


def _token_changes(tokens, before, after) -> list[float]:
    if not len(tokens) or not len(tokens) == len(before) == len(after):
        raise ValueError(
            f"token_strip: {len(tokens)} tokens, {len(before)} before, {len(after)} after; "
            "pass one number per token in each."
        )
    changes = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    bad = [i for i, change in enumerate(changes) if not math.isfinite(change)]
    if bad:
        raise ValueError(f"token_strip: token {bad[0]} has no finite change; leave it out.")
    return changes


def _strip_heading(axes, title: str, total: float) -> None:
    write(axes, 0.25, 0.25, drawable(title, 90), 11.5, weight="bold")
    write(axes, 0.25, 0.48, f"after \u2212 before, in nats; sum {number(total, sign='+')}; \u25b2 "
          "likelier, \u25bc less likely; \u00b7 is a space, \u21b5 a newline", 8.5)


def _token_box(axes, x, y, size, shown, change, face) -> None:
    axes.add_patch(Rectangle((x, y), size, 0.56, facecolor=face, edgecolor=INK, linewidth=0.7))
    red, green, blue = face[:3]
    ink = INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else PAPER
    for dy, text, points in ((0.18, shown, POINTS), (0.4, arrow(change), 8)):
        write(axes, x + size / 2, y + dy, text, points, family=FAMILY, color=ink, ha="center")


def _strip_scale(fig: Figure, shade: ScalarMappable, height: float) -> None:
    bar = fig.add_axes((0.03, 0.4 / height, 0.35, 0.12 / height))
    fig.colorbar(shade, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7.5, length=2)
    bar.set_xlabel("change of log p (nats per token)", fontsize=8, labelpad=1)
