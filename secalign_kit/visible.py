"""Text as people should see it: nothing hidden in it, and numbers with true minus signs.

One datum: `visible("a\\u202eb")` is `"a[U+202E]b"`.

Whatever a model, a data set or an attacker wrote goes through `visible` before it is drawn or
printed, and through `escape_hostile` before it becomes HTML.
"""

import html
import re
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}  # Unicode categories
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}  # letters without ink


def visible(text: str) -> str:
    """The text with nothing hidden: a tab as U+21E5, all else invisible as its code point.

    Control, bidi, zero-width and odd space characters, variation selectors and lone surrogates
    become `[U+202E]` and so on; the plain space and line feeds stay. Not HTML-escaped.
    """
    return re.sub(r"[^\n -~]", lambda found: _shown(found[0]), str(text))


def one_line(text: str) -> str:
    """`visible` text in one line: a newline becomes U+21B5.

    (The control picture U+240A is missing from many fonts.) Not HTML-escaped.
    """
    return visible(text).replace("\n", "\u21b5")


def escape_hostile(text: str) -> str:
    """`visible` text that is safe inside HTML, in element content and in quoted attributes."""
    return html.escape(visible(text), quote=True)


def token_text(token: str) -> str:
    """A token in one line: its spaces, which belong to it, as middle dots; an empty one as a sign.
    """
    return one_line(token).replace(" ", "\u00b7") or "\u2205"


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """The number with a true minus sign, and with none before zero; `sign="+"` writes a plus too.
    """
    return f"{value:{sign}z.{digits}f}".replace("-", "\u2212")


def arrow(value: float) -> str:
    """A signed number of two decimals behind a triangle that points where it went."""
    sign = "\u25b2" if value > 0.005 else "\u25bc" if value < -0.005 else ""
    return sign + number(value, sign="+")


def _shown(character: str) -> str:
    if character == "\t":
        return "\u21e5"
    code = ord(character)
    hidden = unicodedata.category(character) in _HIDDEN
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x180B <= code <= 0x180F
    return f"[U+{code:04X}]" if hidden or selector or code in _BLANK else character
