"""Summaries: the demo's result as a table, for the shell and for the README.

One datum: `clean utility    100.0% [99.4, 100.0] (n=596)    99.8% [99.1, 100.0] (n=596)`, insecure
and secure.
"""

from collections.abc import Iterable, Sequence

from ..evaluation import Rate
from ..markdown import table
from ..samples import DATA

SHIPPED = DATA / "demo"
"""`summary.json` of the demo with seeds 0, 1 and 2, of which the README's table is made."""


def _measures(summary: dict) -> list[tuple[str, tuple[str, ...]]]:
    """(words, keys below "insecure" and "secure") of every rate, in the order of the table."""
    asr, right = (summary["insecure"][key] for key in ("asr", "accuracy_under_attack"))
    return [("clean utility", ("clean_utility",)), ("retention", ("retention",)),
            *((f"ASR {a.replace('_', '-')}", ("asr", a)) for a in asr),
            *((f"right under {a.replace('_', '-')}", ("accuracy_under_attack", a)) for a in right)]


def _rate(summary: dict, which: str, keys: Iterable[str]) -> Rate:
    value = summary[which]
    for key in keys:
        value = value[key]
    return Rate(**value)


def table_lines(summary: dict) -> list[str]:
    """The result as text: one line per measure, insecure and secure with n and interval."""
    lines = [f"{'':30} {'insecure':36} secure"]
    lines += [f"{name:30} {_rate(summary, 'insecure', keys)!s:36} {_rate(summary, 'secure', keys)}"
              for name, keys in _measures(summary)]
    for side in ("chosen", "rejected"):
        shift = summary["logprob"][side]
        lines.append(f"{f'mean log p({side}), nats':30} {shift['before']:<36.2f} "
                     f"{shift['after']:.2f}")
    return lines


def markdown(summaries: Sequence[dict]) -> str:
    """The first summary as a Markdown table, with the secure models of the others beside it."""
    first, *others = summaries

    rows = []
    for name, keys in _measures(first):
        before, after = (_rate(first, which, keys) for which in ("insecure", "secure"))
        rows.append((name, after.n, before.interval(), after.interval(),
                     ", ".join(f"{_rate(o, 'secure', keys).value:.1%}" for o in others)))
    for side in ("chosen", "rejected"):
        before, after = (first["logprob"][side][when] for when in ("before", "after"))
        rows.append((f"mean log p({side}), nats", first["logprob_pairs"], f"{before:.2f}",
                     f"{after:.2f}", ", ".join(f"{o['logprob'][side]['after']:.2f}"
                                               for o in others)))
    same = ("the same" if o["diagram"] == first["diagram"] else "another" for o in others)
    rows.append(("the diagram's example", 1,
                 *(f"`{first['diagram'][which]}`" for which in ("insecure", "secure")),
                 ", ".join(same)))
    return table(("", "n", "insecure", "secure", "other seeds, secure"), rows) + "\n"
