"""Random search: tokens exchanged blindly, improvements kept; needs losses but no gradient.

One datum: the same suffix as `gcg` looks for, by the same number of queries.

After Andriushchenko et al. (arXiv 2404.02151), without their templates.
"""

import torch

from ..evaluation import Item
from ..models import Bundle
from . import blanks
from .search import USUAL, Budget, Outcome, search


def random_search(bundle: Bundle, item: Item, budget: Budget = USUAL, seed: int = 0,
                  most: int = 3, **options) -> Outcome:
    """One to `most` neighbouring tokens exchanged for any; the best fill so far is kept.

    `options` are those of `search.search`: side, size, start, watch.
    """
    usable = torch.tensor(blanks.tokens(bundle))

    def propose(queries, present, generator):
        queries.stand_on(present)
        row = torch.tensor(present)

        def draw(count: int) -> torch.Tensor:
            fills = row.repeat(count, 1)
            for fill in fills:
                width = int(torch.randint(1, min(most, len(row)) + 1, (), generator=generator))
                at = int(torch.randint(len(row) - width + 1, (), generator=generator))
                fill[at : at + width] = usable[
                    torch.randint(len(usable), (width,), generator=generator)]
            return fills

        return draw

    return search(bundle, item, propose, budget, seed, greedy=True, **options)
