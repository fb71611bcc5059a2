"""The founding diagram: prompt, chosen and rejected between the insecure and the secure model."""

from collections.abc import Iterable, Mapping

from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from ..samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD
from ..visible import number
from .canvas import COLUMN, FAMILY, POINTS, ROW, blank, close, drawable
from .palette import FAINT, HATCH, INK, LINE, PALETTE, PAPER

DELIMITERS = ("<instruction_delimiter>", "<data_delimiter>", "<response_delimiter>")


def diagram(measured: Mapping | None = None) -> Figure:
    """The founding diagram with measured log-probabilities.

    `measured` keys, all optional: `chosen_before`, `chosen_after`, `rejected_before`,
    `rejected_after` in nats per response; `insecure_answer`, `secure_answer`; and, to show another
    pair than the dinosaurs, `instruction`, `data` (without the injection), `injection`, `chosen`,
    `rejected`, `delimiters` (three). What is missing is drawn as "not measured"; other keys are
    ignored.
    """
    given = _diagram_defaults() | dict(measured or {})
    if len(given["delimiters"]) != 3:
        raise ValueError(
            f"diagram: {len(given['delimiters'])} delimiters, need three: instruction, data, "
            "response."
        )
    width = 9.4
    fig, axes = blank(width)
    y = _model_box(axes, 0.5, width, "insecure", given.get("insecure_answer"))
    y = _arrow(axes, y, width, "fine-tune with preference optimization")
    y = _pair_box(axes, y, width, given)
    y = _arrow(axes, y, width, "")
    y = _model_box(axes, y, width, "secure", given.get("secure_answer"))
    axes.text(
        0.25, 0.27, "From an insecure to a secure model: who may instruct",
        fontsize=12.5, weight="bold", color=INK, va="center",
    )  # fmt: skip
    close(fig, axes, width, y + 0.15)
    return fig


def _diagram_defaults() -> dict:
    return {
        "instruction": DINOSAUR_HOST.instruction,
        "data": DINOSAUR_HOST.data,
        "injection": DINOSAUR_PAYLOAD.request,
        "chosen": DINOSAUR_HOST.answer,
        "rejected": DINOSAUR_PAYLOAD.answer,
        "delimiters": DELIMITERS,
    }


def _frame(axes, x, y, width, height, edge, face=PAPER, **style):
    box = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08",
        edgecolor=edge, facecolor=face, linewidth=1.8, **style,
    )  # fmt: skip
    axes.add_patch(box)


def _model_box(axes, y: float, width: float, which: str, answer: str | None) -> float:
    left, inner = 0.25, width - 0.5
    shown = "not measured" if answer is None else (drawable(answer) or "(nothing)")
    lines = _wrap([("answers: ", "label"), (shown, "answer")], int((inner - 0.9) / COLUMN))
    height = 0.5 + ROW * len(lines)
    _frame(axes, left, y, inner, height, PALETTE[which], colors.to_rgba(PALETTE[which], 0.13))
    # a hatched stripe: the same hatch as this model's bars in every other figure
    stripe = Rectangle(
        (left + 0.08, y + 0.09), 0.3, height - 0.18, facecolor=PALETTE[which],
        edgecolor=INK, hatch=HATCH[which], linewidth=0.8,
    )  # fmt: skip
    axes.add_patch(stripe)
    name = "instruct" if which == "insecure" else "SecAlign"
    axes.text(
        left + 0.52, y + 0.22, f"{_article(which)} {which} high-functioning {name} model",
        fontsize=11.5, weight="bold", color=INK, va="center",
    )  # fmt: skip
    _draw_lines(axes, lines, left + 0.52, y + 0.48)
    return y + height


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"


def _arrow(axes, y: float, width: float, label: str) -> float:
    height, x = 0.42, width / 2 - 1.9
    axes.annotate(
        "", xy=(x, y + height), xytext=(x, y),
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.8, "shrinkA": 1},
    )  # fmt: skip
    axes.text(x + 0.18, y + height / 2, label, fontsize=10.5, color=INK, va="center")
    return y + height


def _pair_box(axes, y: float, width: float, given: Mapping) -> float:
    """Prompt, chosen and rejected; returns the y below."""
    left, label_width = 0.25, 1.0
    x, inner = left + label_width + 0.12, width - 0.5 - label_width - 0.3
    lines = _prompt_lines(given, int((inner - 0.2) / COLUMN))
    top = y
    y += 0.14
    prompt_height = ROW * len(lines) + 0.16
    _frame(axes, x, y, inner, prompt_height, FAINT)
    _label(axes, left, y + 0.19, "given input", INK)
    _draw_lines(axes, lines, x + 0.1, y + 0.19)
    y += prompt_height + 0.1
    axes.text(
        x + inner, y + 0.02, "injection: boxed and underlined, inside the data", fontsize=8.5,
        color=PALETTE["injection"], ha="right", va="center",
    )  # fmt: skip
    y += 0.16
    for role, verb in (("chosen", "prefer"), ("rejected", "over")):
        y = _response_box(axes, left, x, y, inner, role, verb, given)
    _frame(axes, left, top, width - 0.5, y - top, INK, "none")
    return y


def _prompt_lines(given: Mapping, columns: int) -> list[list[tuple[int, str, str]]]:
    marks = [drawable(d.strip() or d) for d in given["delimiters"]]
    rows = [
        [(marks[0] + " ", "delimiter"), (drawable(given["instruction"]), "instruction")],
        [
            (marks[1] + " ", "delimiter"),
            (drawable(given["data"]) + " ", "data"),
            (drawable(given["injection"]), "injection"),
        ],
        [(marks[2], "delimiter")],
    ]
    return [line for runs in rows for line in _wrap(runs, columns)]


def _response_box(axes, left, x, y, inner, role, verb, given) -> float:
    lines = _wrap([(drawable(given[role]), "answer")], int((inner - 0.2) / COLUMN))
    height = ROW * (len(lines) + 1) + 0.18
    style = {"linestyle": LINE[role]}
    _frame(axes, x, y, inner, height, PALETTE[role], colors.to_rgba(PALETTE[role], 0.1), **style)
    _label(axes, left, y + 0.19, verb, PALETTE[role])
    _label(axes, left, y + 0.19 + ROW, f"({role})", PALETTE[role], size=8.5)
    _draw_lines(axes, lines, x + 0.1, y + 0.19)
    axes.text(
        x + 0.1, y + 0.19 + ROW * len(lines), _change(given, role),
        fontsize=10, color=INK, va="center", weight="bold",
    )  # fmt: skip
    return y + height + 0.14


def _change(given: Mapping, role: str) -> str:
    pair = [given.get(f"{role}_{when}") for when in ("before", "after")]
    if None in pair:
        return "log p: not measured"
    before, after = map(float, pair)
    step = after - before
    arrow = "\u25b2" if step > 0 else "\u25bc" if step < 0 else "="
    return (f"log p  {number(before, '.1f')}  \u2192  {number(after, '.1f')} nats   "
            f"{arrow} {number(step, '+.1f')}")


def _label(axes, x, y, text, color, size=10.5) -> None:
    axes.text(x + 0.12, y, text, fontsize=size, weight="bold", color=color, va="center")


def _wrap(runs: Iterable[tuple[str, str]], columns: int) -> list[list[tuple[int, str, str]]]:
    """Runs of (text, role) as lines of (column, text, role), broken at spaces, else anywhere."""
    lines, column = [[]], 0
    for text, role in runs:
        for word in _words(text, columns):
            if column + len(word.rstrip()) > columns and column:
                lines.append([])
                column = 0
            lines[-1].append((column, word, role))
            column += len(word)
    return lines


def _words(text: str, columns: int) -> list[str]:
    words = []
    for word in text.split(" "):
        pieces = [word[i : i + columns] for i in range(0, len(word), columns)] or [""]
        words += pieces[:-1] + [pieces[-1] + " "]
    words[-1] = words[-1][:-1]
    return [word for word in words if word]


def _draw_lines(axes, lines, x: float, y: float) -> None:
    """Monospaced lines; `x` left edge, `y` middle of the first line, in inches."""
    style = {
        "delimiter": {"color": INK, "weight": "bold"},
        "label": {"color": INK, "style": "italic"},
    }
    for row, line in enumerate(lines):
        middle = y + row * ROW
        for column, text, role in line:
            axes.text(
                x + column * COLUMN, middle, text, family=FAMILY, va="center",
                fontsize=POINTS, parse_math=False,
                **style.get(role, {"color": PALETTE.get(role, INK)}),
            )  # fmt: skip
        _mark_injection(axes, [part for part in line if part[2] == "injection"], x, middle)


def _mark_injection(axes, parts, x: float, middle: float) -> None:
    if not parts:
        return
    start = x + parts[0][0] * COLUMN - 0.03
    end = x + (parts[-1][0] + len(parts[-1][1].rstrip())) * COLUMN + 0.03
    red, top = PALETTE["injection"], middle - ROW * 0.43
    box = Rectangle(
        (start, top), end - start, ROW * 0.86, facecolor=colors.to_rgba(red, 0.1),
        edgecolor=red, linewidth=0.9, zorder=1.5,
    )  # fmt: skip
    axes.add_patch(box)
    axes.plot([start, end], [top + ROW * 0.86] * 2, color=red, linewidth=2.4)
