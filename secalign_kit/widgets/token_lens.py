"""The token lens: how training moved every token of both responses."""

from types import SimpleNamespace

import ipywidgets
import pandas as pd

from .. import evaluation, logprobs
from ..figures import INK
from ..models import Bundle
from ..visible import arrow, number, one_line, token_text
from ..visible import escape_hostile as escape
from .html import BOX, TEXT, message_html, table_html
from .inputs import check_length, check_texts
from .view import View, answering, common, text_field, wide


def tokens_html(tokens: pd.DataFrame, selected: int = -1) -> str:
    """Tokens of one response in boxes that can be hovered and reached by the tab key.

    `tokens`: rows of `logprobs.token_table` for one response. Shade, triangle and number under a
    token give its change; its title gives both log-probs in nats.
    """
    limit = max(0.5, *tokens["difference"].abs())
    boxes = []
    for place, row in enumerate(tokens.itertuples()):
        green, strong = row.difference >= 0, abs(row.difference) / limit
        shade = f"rgba({'1,102,94' if green else '140,81,10'},{0.45 * strong:.2f})"
        edge = f"{3 if place == selected else 1}px solid {INK}"
        words = escape(token_words(row))
        boxes.append(
            f'<span tabindex="0" title="{words}" aria-label="{words}" style="display:inline-block;'
            f'border:{edge};background:{shade};padding:.1em .3em;margin:.1em;text-align:center">'
            f"{escape(token_text(row.token))}<br><small>{arrow(row.difference)}</small></span>"
        )
    return f'<div role="group" aria-label="tokens" style="{BOX};{TEXT}">{"".join(boxes)}</div>'


def token_words(row) -> str:
    """One token as a sentence: its log-prob under both models (nats) and the difference."""
    return (f"token {one_line(row.token)!r}: log p {number(row.before)} insecure, "
            f"{number(row.after)} secure, difference {number(row.difference, sign='+')} nats")


def lens_table(tokens: pd.DataFrame) -> str:
    """Every token of both responses with both log-probs (nats) and the difference, as a table."""
    rows = [(row.response, str(row.position), token_text(row.token), number(row.before),
             number(row.after), arrow(row.difference)) for row in tokens.itertuples()]
    head = ("response", "position", "token", "insecure", "secure", "difference")
    return table_html(head, rows, "log p per token in nats")


def token_lens(bundle: Bundle) -> View:
    """Tokens of chosen or rejected; hover one, or choose it with the slider.

    Parts: instruction, data, chosen, rejected, response, token (slider), tokens, detail, message,
    progress.
    """
    item = evaluation.diagram_item()
    parts = SimpleNamespace(
        instruction=text_field("instruction", item.instruction), data=text_field("data", item.data),
        chosen=text_field("chosen", item.expected), rejected=text_field("rejected", item.witness),
        response=wide(ipywidgets.Dropdown, "response", options=["chosen", "rejected"]),
        token=wide(ipywidgets.IntSlider, "token", max=1), tokens=ipywidgets.HTML(),
        detail=ipywidgets.HTML(), **common(),
    )
    fields = (parts.instruction, parts.data, parts.chosen, parts.rejected)
    state: dict = {"table": None}

    def measure(_=None) -> None:
        state["table"] = None
        with answering(parts, "tokens", "detail") as progress:
            texts = {field.description: field.value for field in fields}
            check_texts(**texts)
            longest = max(texts["chosen"], texts["rejected"], key=len)
            check_length(bundle, texts["instruction"], texts["data"] + longest)
            for _step in progress(("log-probs",)):
                state["table"] = logprobs.token_table(bundle, *texts.values())
            show()

    def show(_=None) -> None:
        if state["table"] is None:
            return
        rows = state["table"][state["table"]["response"] == parts.response.value]
        parts.token.max = max(1, len(rows) - 1)  # a slider from 0 to 0 is an error in the browser
        chosen = min(parts.token.value, len(rows) - 1)
        parts.tokens.value = tokens_html(rows, chosen)
        parts.detail.value = message_html(token_words(next(rows[chosen:].itertuples())))

    def twin() -> dict:
        table = state["table"]
        return {"text/html": parts.message.value if table is None else lens_table(table)}

    for field in fields:
        field.observe(measure, "value")
    for control in (parts.response, parts.token):
        control.observe(show, "value")
    measure()
    return View("Token lens", [*fields, parts.progress, parts.message, parts.response, parts.token,
                               parts.detail, parts.tokens], parts, twin)
