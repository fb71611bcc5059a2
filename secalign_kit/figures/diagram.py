"""The founding diagram: prompt, chosen and rejected between the insecure and the secure model."""

import re
from collections.abc import Iterable, Mapping

from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from ..prompts import FORMATS
from ..samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD
from ..visible import number
from .canvas import COLUMN, FAMILY, POINTS, ROW, WIDTH, blank, close, drawable, write
from .palette import FAINT, HATCH, INK, LINE, PALETTE

_LEFT, _INNER = 0.25, WIDTH - 0.5  # inches: where the frames begin, and their width
_MODELS = {"insecure": "An insecure high-functioning instruct model",
           "secure": "A secure high-functioning SecAlign model"}
_DINOSAURS = {
    "instruction": DINOSAUR_HOST.instruction, "data": DINOSAUR_HOST.data,
    "injection": DINOSAUR_PAYLOAD.request, "chosen": DINOSAUR_HOST.answer,
    "rejected": DINOSAUR_PAYLOAD.answer, "delimiters": FORMATS["toy"].delimiters,
}  # fmt: skip


def diagram(measured: Mapping) -> Figure:
    """The founding diagram with measured log-probabilities.

    `measured` keys, all optional: `chosen_before`, `chosen_after`, `rejected_before`,
    `rejected_after` in nats per response; `insecure_answer`, `secure_answer`; and, to show another
    pair than the dinosaurs, `instruction`, `data` (without the injection), `injection`, `chosen`,
    `rejected`, `delimiters` (three). What is missing is drawn as "not measured"; other keys are
    ignored.
    """
    given = _DINOSAURS | dict(measured)
    if len(given["delimiters"]) != 3:
        raise ValueError(
            f"diagram: {len(given['delimiters'])} delimiters, need three: instruction, data, "
            "response."
        )
    fig, axes = blank()
    y = _model_box(axes, 0.5, "insecure", given.get("insecure_answer"))
    y = _arrow(axes, y, "fine-tune with preference optimization")
    y = _pair_box(axes, y, given)
    y = _arrow(axes, y, "")
    y = _model_box(axes, y, "secure", given.get("secure_answer"))
    write(axes, _LEFT, 0.27, "From an insecure to a secure model: who may instruct", 12.5,
          weight="bold")
    close(fig, axes, y + 0.15)
    return fig


def _frame(axes, x, y, width, height, edge, face="none", **style) -> None:
    axes.add_patch(FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", edgecolor=edge,
        facecolor=face, linewidth=1.8, **style))


def _model_box(axes, y: float, which: str, answer: str | None) -> float:
    color, x = PALETTE[which], _LEFT + 0.52
    shown = "not measured" if answer is None else (drawable(answer) or "(nothing)")
    lines = _wrap([("answers: ", "label"), (shown, "answer")], int((_INNER - 0.9) / COLUMN))
    height = 0.5 + ROW * len(lines)
    _frame(axes, _LEFT, y, _INNER, height, color, colors.to_rgba(color, 0.13))
    # a hatched stripe: the same hatch as this model's bars in every other figure
    axes.add_patch(Rectangle((_LEFT + 0.08, y + 0.09), 0.3, height - 0.18, facecolor=color,
                             edgecolor=INK, hatch=HATCH[which], linewidth=0.8))
    write(axes, x, y + 0.22, _MODELS[which], 11.5, weight="bold")
    _draw_lines(axes, lines, x, y + 0.48)
    return y + height


def _arrow(axes, y: float, label: str) -> float:
    height, x = 0.42, WIDTH / 2 - 1.9
    axes.annotate("", xy=(x, y + height), xytext=(x, y), arrowprops={
        "arrowstyle": "-|>", "color": INK, "linewidth": 1.8, "shrinkA": 1})
    write(axes, x + 0.18, y + height / 2, label)
    return y + height


def _pair_box(axes, y: float, given: Mapping) -> float:
    """Prompt, chosen and rejected; returns the y below."""
    x, inner, top = _LEFT + 1.12, _INNER - 1.3, y
    columns = int((inner - 0.2) / COLUMN)
    lines = _prompt_lines(given, columns)
    y += 0.14
    height = ROW * len(lines) + 0.16
    _frame(axes, x, y, inner, height, FAINT)
    _label(axes, y + 0.19, "given input", INK)
    _draw_lines(axes, lines, x + 0.1, y + 0.19)
    y += height + 0.12
    write(axes, x + inner, y, "injection: boxed and underlined, inside the data", 8.5,
          color=PALETTE["injection"], ha="right")
    y += 0.14
    for role, verb in (("chosen", "prefer"), ("rejected", "over")):
        color, lines = PALETTE[role], _wrap([(drawable(given[role]), "answer")], columns)
        height = ROW * (len(lines) + 1) + 0.18
        _frame(axes, x, y, inner, height, color, colors.to_rgba(color, 0.1), linestyle=LINE[role])
        _label(axes, y + 0.19, verb, color)
        _label(axes, y + 0.19 + ROW, f"({role})", color, 8.5)
        _draw_lines(axes, lines, x + 0.1, y + 0.19)
        write(axes, x + 0.1, y + 0.19 + ROW * len(lines), _change(given, role), 10,
              weight="bold")
        y += height + 0.14
    _frame(axes, _LEFT, top, _INNER, y - top, INK)
    return y


def _label(axes, y: float, text: str, color: str, size: float = 10.5) -> None:
    write(axes, _LEFT + 0.12, y, text, size, weight="bold", color=color)


def _prompt_lines(given: Mapping, columns: int) -> list[list[tuple[int, str, str]]]:
    marks = [drawable(mark.strip() or mark) for mark in given["delimiters"]]
    rows = (
        [(f"{marks[0]} ", "delimiter"), (drawable(given["instruction"]), "instruction")],
        [(f"{marks[1]} ", "delimiter"), (f"{drawable(given['data'])} ", "data"),
         (drawable(given["injection"]), "injection")],
        [(marks[2], "delimiter")],
    )
    return [line for runs in rows for line in _wrap(runs, columns)]


def _change(given: Mapping, role: str) -> str:
    pair = [given.get(f"{role}_{when}") for when in ("before", "after")]
    if None in pair:
        return "log p: not measured"
    before, after = map(float, pair)
    step = after - before
    arrow = "\u25b2" if step > 0 else "\u25bc" if step < 0 else "="
    return (f"log p  {number(before, 1)}  \u2192  {number(after, 1)} nats   "
            f"{arrow} {number(step, 1, '+')}")


def _wrap(runs: Iterable[tuple[str, str]], columns: int) -> list[list[tuple[int, str, str]]]:
    """Runs of (text, role) as lines of (column, text, role), broken at spaces, else anywhere."""
    lines, column = [[]], 0
    for text, role in runs:
        for word in re.findall(f"[^ ]{{1,{columns}}} ?| ", text):
            if column + len(word.rstrip()) > columns and column:
                lines.append([])
                column = 0
            lines[-1].append((column, word, role))
            column += len(word)
    return lines


def _draw_lines(axes, lines, x: float, y: float) -> None:
    """Monospaced lines; `x` left edge, `y` middle of the first line, in inches."""
    style = {"delimiter": {"weight": "bold"}, "label": {"style": "italic"}}
    for row, line in enumerate(lines):
        middle = y + row * ROW
        for column, text, role in line:
            write(axes, x + column * COLUMN, middle, text, POINTS, family=FAMILY,
                  color=PALETTE.get(role, INK), **style.get(role, {}))
        _mark_injection(axes, [part for part in line if part[2] == "injection"], x, middle)


def _mark_injection(axes, parts, x: float, middle: float) -> None:
    if not parts:
        return
    start = x + parts[0][0] * COLUMN - 0.03
    end = x + (parts[-1][0] + len(parts[-1][1].rstrip())) * COLUMN + 0.03
    red, top, height = PALETTE["injection"], middle - ROW * 0.43, ROW * 0.86
    axes.add_patch(Rectangle((start, top), end - start, height, edgecolor=red, linewidth=0.9,
                             facecolor=colors.to_rgba(red, 0.1), zorder=1.5))
    axes.plot([start, end], [top + height] * 2, color=red, linewidth=2.4)
