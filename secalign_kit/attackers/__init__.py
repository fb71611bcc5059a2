"""Attackers who look at the model and try until it works.

One interface: `attacker(bundle, item, budget, seed)` gives an `Outcome`: the best text, whether the
model obeyed it, and what it cost. `item` is one of `evaluation.attacked_items` or `payload_items`.

    blanks         a place in an item for tokens that an attacker chooses; re-tokenization
    queries        the losses of many fills of it, with what they share read once
    search         propose, filter, ask, judge: the loop of the attackers below
    gcg            tokens proposed by the gradient
    attention      its losses with a reward for attention to the attacker's text
    warm_start     GCG that begins on a less secure model
    random_search  tokens proposed blindly
    strategies     no tokens but rewritings, chosen by the answers
    universal      one fill for many items, and its transfer
    continuous     embeddings in place of tokens: can the attackers above be believed?
    runs           many items, kept as JSON lines, and their table
"""

from . import runs, search
from .continuous import Reached, continuous, embeddings, refuse_radius
from .gcg import gcg
from .random_search import random_search
from .runs import BUDGETS, SHOWN, asr, attack_file, shipped, summary, table
from .search import Budget, Outcome, Progress, Step, judge
from .strategies import strategies
from .universal import Universal, spread, transfer, transfer_table, universal
from .warm_start import along, warm_start

ATTACKERS = {"gcg": gcg, "warm_start": warm_start, "random": random_search,
             "strategies": strategies}

SEARCHES = ATTACKERS | {"embeddings": embeddings}
"""What `runs` can run: the attackers, and the one that no text can say."""

WITH_BLANK = frozenset(("gcg", "warm_start", "random", "embeddings"))
"""Those that fill a blank, so that they take `side` and `size`."""

WITH_START = frozenset(("gcg", "random"))
"""Attackers that can begin with a given fill."""

__all__ = [
    "ATTACKERS", "BUDGETS", "Budget", "Outcome", "Progress", "Reached", "SEARCHES", "SHOWN",
    "Step", "Universal", "WITH_BLANK", "WITH_START", "along", "asr", "attack_file", "continuous",
    "embeddings", "gcg", "judge", "random_search", "runs", "refuse_radius", "search", "shipped",
    "spread", "strategies", "summary", "table", "transfer", "transfer_table", "universal",
    "warm_start",
]
