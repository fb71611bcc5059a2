"""Summaries: the demo's result as a table, for the shell and for the documents.

One datum: `clean utility    100.0% [99.4, 100.0] (n=596)    99.8% [99.1, 100.0] (n=596)`, insecure
and secure.
"""

from collections.abc import Iterable, Sequence

from ..evaluation import Rate, together
from ..injections import POSITIONS
from ..markdown import table
from ..samples import DATA

SHIPPED = DATA / "demo"
"""`summary.json` of the demo with seeds 0, 1 and 2, of which the documents' tables are made."""


Row = tuple[str, Rate, list[Rate]]  # words, insecure, secure with every seed


def _rows(summaries: Sequence[dict]) -> list[Row]:
    """Every rate of the demo's table, in its order."""
    first = summaries[0]

    def row(words: str, *keys: str) -> Row:
        return words, _rate(first["insecure"], keys), [_rate(s["secure"], keys) for s in summaries]

    places = first["insecure"]["places"]
    kinds = list(next(iter(places.values()))["obeyed"])
    return [row("clean utility", "clean_utility"), row("retention", "retention"),
            *(row(f"obeyed: {kind}, {place}", "places", place, "obeyed", kind)
              for kind in kinds for place in places),
            row("obeyed: the worst of all", "worst", "rate"),
            *(row(f"right under all attacks, {place}", "places", place, "right")
              for place in places)]


def _rate(found: dict, keys: Iterable[str]) -> Rate:
    for key in keys:
        found = found[key]
    return Rate(**found)


def _shifts(summary: dict) -> list[tuple[str, float, float]]:
    """Words, before and after, in nats, of both sides."""
    return [(f"mean log p({side}), nats", *(summary["logprob"][side][when]
                                            for when in ("before", "after")))
            for side in ("chosen", "rejected")]


def short_markdown(summary: dict) -> str:
    """The README's table: one run, attacks of a kind pooled over all places."""
    models = [summary[which] for which in ("insecure", "secure")]
    rows: list[tuple[str, list[Rate]]] = []

    def add(words: str, *keys: str) -> None:
        rows.append((words, [_rate(model, keys) for model in models]))

    places = list(models[0]["places"])
    for kind, words in {
            "fixed attacks": "five fixed attacks that ask for a fixed word: obeyed",
            "unseen frames": "seven kinds of unseen frames, the same word: obeyed",
            "another sample's request": "all twelve with another sample's request: obeyed"
            }.items():
        rows.append((words, [together(_rate(model, ("places", place, "obeyed", kind))
                                      for place in places) for model in models]))
    add("the most successful of 72 combinations: obeyed", "worst", "rate")
    for place in places:
        add(f"right answer under all attacks, injection {POSITIONS[place]}",
            "places", place, "right")
    add("right answer without attack (*utility*)", "clean_utility")
    add("the attackers' requests given as instructions: followed (*retention*)", "retention")
    cells: list[tuple] = [(words, f"{found[0].n:,}", *(rate.interval() for rate in found))
                          for words, found in rows]
    cells += [(words, summary["logprob_pairs"], f"{before:.2f}", f"{after:.2f}")
              for words, before, after in _shifts(summary)]
    return table(("held-out test", "n", "insecure", "secure"), cells) + "\n"


def table_lines(summary: dict) -> list[str]:
    """The result as text: one line per measure, insecure and secure with n and interval."""
    lines = [f"{'':40} {'insecure':30} secure"]
    lines += [f"{words:40} {before!s:30} {after[0]}" for words, before, after in _rows([summary])]
    lines += [f"{words:40} {before:<30.2f} {after:.2f}"
              for words, before, after in _shifts(summary)]
    worst = (f"{which}: {summary[which]['worst']['attack']}" for which in ("insecure", "secure"))
    return [*lines, f"the worst of all is {'; '.join(worst)}"]


def markdown(summaries: Sequence[dict]) -> str:
    """The first summary as a Markdown table, with the secure models of the others beside it."""
    first, *others = summaries
    rows: list[tuple] = [
        (words, after[0].n, before.interval(), after[0].interval(),
         ", ".join(f"{rate.value:.1%}" for rate in after[1:]))
        for words, before, after in _rows(summaries)]
    for (words, before, after), *rest in zip(*map(_shifts, summaries), strict=True):
        rows.append((words, first["logprob_pairs"], f"{before:.2f}", f"{after:.2f}",
                     ", ".join(f"{later:.2f}" for *_, later in rest)))
    same = ("the same" if o["diagram"] == first["diagram"] else "another" for o in others)
    rows.append(("the diagram's example", 1,
                 *(f"`{first['diagram'][which]}`" for which in ("insecure", "secure")),
                 ", ".join(same)))
    return table(("", "n", "insecure", "secure", "other seeds, secure"), rows) + "\n"
