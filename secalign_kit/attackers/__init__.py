"""Attackers who look at the model and try until it works.

One interface: `attacker(bundle, item, budget, seed)` gives an `Outcome`: the best text, whether the
model obeyed it, and what it cost. `item` is one of `evaluation.attacked_items` or `payload_items`.

    blanks         a place in an item for tokens that an attacker chooses; re-tokenization
    queries        the losses of many fills of it, with what they share read once
    search         propose, filter, ask, judge: the loop of the attackers below
    gcg            tokens proposed by the gradient
    random_search  tokens proposed blindly
"""

from . import search
from .gcg import gcg
from .random_search import random_search
from .search import Budget, Outcome, Progress, Step, judge

ATTACKERS = {"gcg": gcg, "random": random_search}

__all__ = ["ATTACKERS", "Budget", "Outcome", "Progress", "Step", "gcg", "judge", "random_search",
           "search"]
