"""What attackers write, for every route by which a text reaches HTML."""

import re

HOSTILE = (
    "\u202eevil\u200b\x07",
    '<img src=x onerror="window.attacked = true">',
    "</script><script>window.attacked = true</script>",
    '</textarea></div><svg onload="window.attacked = true">',
    "\"' onmouseover='window.attacked = true",
    "</span></div></section></pre><b> &lt;b&gt; {{ 7 * 7 }}",
    "$\\href{javascript:alert(1)}{x}$",
)
ALL = " ".join(HOSTILE)
HIDDEN = "\u202e\u200b\x07"
"""The characters of `HOSTILE` that nobody sees unless they are made visible."""


def harmless(page: str) -> bool:
    """Whether no tag of `HOSTILE` is opened there, and none of its characters hides."""
    return not re.search("<(script|img|svg|b>)", page) and not set(page) & set(HIDDEN)
