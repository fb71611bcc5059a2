"""The one place where a colour, hatch, marker or line gets its meaning.

One colour per meaning, everywhere (after Okabe and Ito 2008, readable with colour-blindness), and
never colour alone: hatches, markers, line styles, underlines or words say the same thing.
"""

from collections import Counter
from collections.abc import Sequence

PALETTE = {
    "instruction": "#0072B2",  # blue: who may command
    "data": "#595959",  # grey: to be read, not obeyed
    "injection": "#C1121F",  # red, always underlined or boxed
    "chosen": "#009E73",  # green, solid, circles
    "rejected": "#A6417F",  # purple, dashed, squares
    "insecure": "#E69F00",  # orange, hatched ///
    "secure": "#56B4E9",  # sky blue, hatched ...
}
HATCH = {"insecure": "///", "secure": "..."}
MARKER = {"chosen": "o", "rejected": "s", "insecure": "^", "secure": "D"}
LINE = {"chosen": "-", "rejected": "--"}
INK, PAPER, FAINT = "#1A1A1A", "#FFFFFF", "#D9D9D9"
STYLE = (  # runs beside each other, in colours that have no other meaning: colour, line, marker
    (INK, "-", "o"),
    ("#8C510A", "--", "^"),
    ("#5E3C99", ":", "D"),
)
ANSWERS = {  # kind of answer -> what fills its part of a bar: colour, hatch, colour of words on it
    "obeyed": (PALETTE["injection"], "", PAPER),
    "obeyed in part": ("#F2C4C8", "xx", INK),
    "right": (PALETTE["chosen"], "", PAPER),
    "another answer": ("#D9D9D9", "", INK),
    "instruction repeated": ("#9CCBE8", "||", INK),
    "data repeated": ("#A6A6A6", "--", INK),
    "refusal": ("#F3E0A6", "\\\\", INK),
    "empty": (PAPER, "..", INK),
}
_ROLES = {  # how the name of a model or a curve begins -> the role whose colour it takes
    "insecure": "insecure", "undefended": "insecure", "secure": "secure", "secalign": "secure",
    "asr": "injection", "attack success": "injection",
    "utility": "instruction", "clean utility": "instruction",
}  # fmt: skip
_ROLE_MARKER = MARKER | {"injection": "s", "instruction": "o"}
NEUTRAL = "#BDBDBD"  # fills the markers of all that have no role; their outline is INK


def looks(names: Sequence[str]) -> list[dict]:
    """Colour, fill, marker and line of each name: those of its role, or neutral; no two alike."""
    looks, seen = [], Counter()
    for name in names:
        begins = [r for start, r in _ROLES.items() if name.lower().startswith(start)]
        role = begins[0] if begins else ""
        rank, color = seen[role], PALETTE[role] if role else INK
        seen[role] += 1
        marker = _ROLE_MARKER[role] if role and rank < 2 else "sovPX<>p*h"[rank % 10]
        lines = ("--" if role == "injection" else "-", ":", "-.") if role else ("--", "-.", ":")
        fill = (color if rank == 0 else PAPER) if role else NEUTRAL
        looks.append({"color": color, "fill": fill, "marker": marker, "line": lines[rank % 3]})
    return looks
