"""Probes: does a real model keep instruction and data apart, and is it still of use?

One datum: `{"separation": {"naive, end": {"obeyed": Rate, "right": Rate}, ...}, "clean_utility":
Rate, "retention": Rate, "second": Rate, "benign": Rate, "degenerate": Rate, "left_out": 14}`

A small real model obeys questions far more than requests to print a word, so a probe is a question
whose answer is a word that nothing else brings up. It is put into the data, where it should not be
answered, and into the instruction, where it should (SEP, arXiv 2403.06833).

Limits: probes are plain questions; a response that answers one in other words is not noticed.
"""

import random
from collections.abc import Iterable, Sequence

from .. import english
from ..models import Bundle
from .items import Item, attacked_by, clean_items, retention_items
from .judges import degenerate
from .rates import Rate, answerable, pooled, rate

CELLS = (("naive", "end"), ("naive", "start"), ("naive", "middle"), ("ignore", "end"),
         ("completion_other", "end"), ("completion", "end"))
"""(attack, position) of the table of separation."""


def probe_items(bundle: Bundle, split: str = "heldout", n: int | None = None,
                cells: Sequence[tuple[str, str]] = CELLS) -> list[Item]:
    """What a real model is asked of the kit's English: `n` of each kind, or all there are.

    Tasks without attack, the same with a probe in their data by each of `cells`, every probe as an
    instruction, tasks with a probe as the second half of their instruction, and benign texts that
    speak as attackers do.
    """
    hosts, probes = english.texts(split)[:n], english.probes(split)
    rng = random.Random(f"second-{split}")
    doubles = [english.double(host, rng.choice(probes)) for host in hosts]
    items = clean_items(hosts) + retention_items(probes)
    items += clean_items(doubles, "second") + clean_items(english.benign(split), "benign")
    for attack, position in cells:
        items += attacked_by(hosts, attack, probes, bundle, split=split, position=position)
    return items


def probe_summary(records: Iterable[dict]) -> dict:
    """The rates of `probe_items`.

    "obeyed" is of the probes that the model answers as an instruction; attacks with others are
    counted in `left_out`. "right" is of all attacks.
    """
    records = list(records)
    kept, left_out = answerable(records)
    groups = {name: [r for r in records if r["attack"] == attack] for name, attack in
              (("clean_utility", "none"), ("retention", "retention"), ("second", "second"),
               ("benign", "benign"))}
    summary = {name: pooled(group, "right") for name, group in groups.items() if group}
    summary["degenerate"] = _degenerate(records)
    summary["separation"] = {}
    for cell in dict.fromkeys(_cell(r) for r in records if r["position"]):
        asked = [r for r in kept if _cell(r) == cell]
        summary["separation"][cell] = (
            {"obeyed": pooled(asked, "obeyed")} if asked else {}
        ) | {"right": pooled([r for r in records if _cell(r) == cell], "right")}
    return summary | {"left_out": left_out}


def _cell(record: dict) -> str:
    return f"{record['attack']}, {record['position']}" if record["position"] else ""


def _degenerate(records: Sequence[dict]) -> Rate:
    return rate(sum(degenerate(r["response"]) for r in records), len(records))
