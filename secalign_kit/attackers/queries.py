"""Queries: the loss of many fills of a blank, and its gradient, with what they share read once.

One datum: 48 fills of 12 tokens cost about 48 x 8 tokens in place of 48 x 35.

The prompt before the blank is read once (its keys and values are kept). A fill that differs from
the present one in its seventh token shares the first six with it as well. Only the answer's tokens
go through the LM head. All of this is exact: `tests/test_attackers.py` compares it with one plain
forward pass for each fill.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from .. import shared_prefix
from .blanks import Blank

ROWS = 64  # fills that are read at once, which bounds the memory
GROUPS = 4  # of fills by the first token that differs; more cost more calls than they save


class Queries:
    """A model's losses for the fills of one blank. `count` says how many fills were asked.

    The loss is -log p of the target in nats, summed over its tokens.
    """

    asked_for: dict = {}  # what the decoder is to give besides hidden states

    def __init__(self, blank: Blank, groups: int = GROUPS, rows: int = ROWS):
        self.blank, self.groups, self.rows, self.count = blank, groups, rows, 0
        self.model = shared_prefix.base_of(blank.bundle.model)
        self.decoder = shared_prefix.decoder_of(self.model)
        self.device = blank.bundle.device
        self.target = torch.tensor(blank.target, device=self.device)
        self.slots = torch.tensor(blank.slots, device=self.device)
        self.ids = torch.tensor([*blank.ids, *blank.target[:-1]], device=self.device)
        # without exact caches every fill is read whole
        self.head = blank.slots[0] if shared_prefix.sharing(self.model).caches else 0
        self.layers: list[tuple] = []  # keys and values [1, heads, tokens, size] of each layer
        self.before = 0  # tokens of the cache that stand before the prompt (`roles`)
        self.present: torch.Tensor | None = None  # the fill whose tokens they are
        if self.head:
            with torch.no_grad():
                self._keep(self._read(self.ids[None, : self.head], 0))
            self.before = self.layers[0][0].shape[2] - self.head

    def stand_on(self, fill: Sequence[int]) -> None:
        """Makes this the present fill, whose beginning others share."""
        if self.present is None or self.present.tolist() != list(fill):
            with torch.no_grad():
                self._keep(self._read(self.decoder_input(fill), self.head), fill)

    def gradient(self, fill: Sequence[int]) -> torch.Tensor:
        """d loss / d token [size, V], for each token of the vocabulary in each slot.

        Of a step towards the token in embedding space (arXiv 2307.15043, section 3.2). Makes this
        the present fill.
        """
        embedding = self.model.get_input_embeddings()
        with torch.enable_grad():
            vectors = embedding(self.decoder_input(fill)).detach().requires_grad_()
            read = self._read(vectors, self.head)
            slope, = torch.autograd.grad(self._judged(read)[0].sum(), vectors)
        self._keep(read, fill)
        return slope[0, self.slots - self.head].float() @ embedding.weight.detach().float().T

    def embedded(self, fill: Sequence[int]) -> torch.Tensor:
        """The embeddings of what stands behind the head, [1, T, H], without a gradient."""
        return self.model.get_input_embeddings()(self.decoder_input(fill)).detach()

    @torch.enable_grad()
    def of_vectors(self, rest: torch.Tensor, offsets: torch.Tensor) -> tuple:
        """(loss, said) with `offsets` [size, H] added to the blank in `rest` [1, T, H].

        Whoever asks without tokens is not counted.
        """
        at = self.slots - self.head
        read = self._read(rest.index_add(1, at, offsets[None].to(rest.dtype)), self.head)
        return tuple(values[0] for values in self._judged(read))

    def decoder_input(self, fill: Sequence[int]) -> torch.Tensor:
        """The ids behind the head, [1, T]."""
        return self.rows_of(torch.tensor([list(fill)], device=self.device))[:, self.head :]

    @torch.no_grad()
    def losses(self, fills: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss [C], said [C]) of fills [C, size]; `said` where greedy decoding says the target."""
        self.count += len(fills)
        fills = fills.to(self.device)
        rows, changed = self.rows_of(fills), self._changed(fills)
        loss, said = torch.empty(len(fills)), torch.empty(len(fills), dtype=torch.bool)
        for part in self._parts(changed):
            start = int(changed[part].min())
            read = self._read(rows[part, start:], start)
            loss[part], said[part] = (x.cpu() for x in self._judged(read))
        return loss, said

    def rows_of(self, fills: torch.Tensor) -> torch.Tensor:
        """The ids of prompt and target [C, T], without the target's last, which predicts nothing.
        """
        rows = self.ids.repeat(len(fills), 1)
        rows[:, self.slots] = fills
        return rows

    def _changed(self, fills: torch.Tensor) -> torch.Tensor:
        """The first position [C] at which each fill must be read anew."""
        if self.present is None:
            return torch.full((len(fills),), self.head)
        differs = (fills != self.present).float()
        first = self.slots[differs.argmax(1)]
        return torch.where(differs.any(1), first, self.slots[-1]).cpu()

    def _parts(self, changed: torch.Tensor) -> list[torch.Tensor]:
        """Numbers of the fills that are read together: those that change late, with a short rest.
        """
        if self.present is None or not self.head:
            return list(torch.arange(len(changed)).split(self.rows))
        size = min(self.rows, -(-len(changed) // self.groups))
        return list(changed.argsort().split(size))

    def _read(self, given: torch.Tensor, start: int):
        """The decoder's output for ids [B, T] or vectors [B, T, H] that begin at `start`."""
        cache = DynamicCache() if self.head else None
        for number, (keys, values) in enumerate(self.layers if start else ()):
            cache.update(*(x[:, :, : self.before + start].expand(len(given), -1, -1, -1)
                           for x in (keys, values)), number)
        kind = "inputs_embeds" if given.is_floating_point() else "input_ids"
        mask = torch.ones(len(given), start + given.shape[1], dtype=torch.long, device=self.device)
        return self.decoder(**{kind: given}, past_key_values=cache, use_cache=bool(self.head),
                            **shared_prefix.behind(self.model, mask, given.shape[1]),
                            **self.asked_for)

    def _judged(self, read) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss [B], said [B]) from the output for rows that end before the target's last."""
        hidden, size = read[0], len(self.target)
        logits = shared_prefix.logits(self.model, hidden[:, -size:].flatten(0, 1)).float()
        wanted = self.target.repeat(len(hidden))
        loss = F.cross_entropy(logits, wanted, reduction="none").view(-1, size).sum(1)
        return loss, (logits.argmax(-1) == wanted).view(-1, size).all(1)

    def _keep(self, read, fill: Sequence[int] | None = None) -> None:
        if not self.head:
            return
        self.layers = [(layer.keys.detach(), layer.values.detach())
                       for layer in read.past_key_values.layers]
        if fill is not None:
            self.present = torch.tensor(list(fill), device=self.device)
