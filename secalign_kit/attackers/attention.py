"""Attention: a loss that also rewards the model for looking at the attacker's text.

One datum: with `gcg(bundle, item, attention=20)`, a fill that doubles the attention paid to the
payload from 0.1 to 0.2 is worth 2 nats of the target.

The idea is ASTRA's (arXiv 2507.07417): where a defended model gives the target hardly any
probability, its slope says little, and attention leads on. What is asked here is simpler: one sum
of both, with all layers and heads alike.
"""

import contextlib

import torch

from .. import prompts, shared_prefix
from ..models import Bundle
from .blanks import Blank
from .queries import Queries


class AttentiveQueries(Queries):
    """Losses lowered by `weight` nats times the share of attention, in [0, 1], that the positions
    from which the target is said pay to the attacker's text, the mean over layers and heads.
    """

    asked_for = {"output_attentions": True}

    def __init__(self, blank: Blank, weight: float):
        self.weight, self.text = weight, text_of(blank)
        super().__init__(blank)

    def _judged(self, read) -> tuple[torch.Tensor, torch.Tensor]:
        loss, said = super()._judged(read)
        return loss - self.weight * self.attention(read), said

    def attention(self, read) -> torch.Tensor:
        """The share [B] of attention that goes to the attacker's text."""
        size = len(self.target)
        shares = [layer[:, :, -size:, self.text].sum(-1).mean((1, 2)) for layer in read.attentions]
        return torch.stack(shares).mean(0)


def text_of(blank: Blank) -> slice:
    """Which of the prompt's tokens are payload and fill: all that a prompt without them lacks."""
    item, bundle = blank.item, blank.bundle
    rest = prompts.encode(bundle.tokenizer, bundle.format, item.instruction,
                          item.data[: item.start] + item.data[item.end :]).ids
    alike = [a == b for a, b in zip(blank.ids, rest, strict=False)]
    start = alike.index(False) if False in alike else len(alike)
    behind = [a == b for a, b in zip(blank.ids[::-1], rest[::-1], strict=False)]
    back = behind.index(False) if False in behind else len(behind)
    return slice(min(start, blank.slots[0]), max(len(blank.ids) - back, blank.slots[-1] + 1))


@contextlib.contextmanager
def shown(bundle: Bundle):
    """Inside, the model's attention can be read; its fast kernels do not show it."""
    model = shared_prefix.base_of(bundle.model)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
