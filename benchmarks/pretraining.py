"""Pre-training of the embedded model: what each of its ways to save time is worth.

Every round goes through the same 1,024 samples of the corpus, one optimizer step per batch; a
contender leaves out one thing.
"""

import itertools
import random

import torch

from secalign_kit import models
from secalign_kit.toy import pretrain

from .measuring import Result, compare, take_turns, timed

CONFIG = pretrain.PretrainConfig(pool=8)
CONTENDERS = {  # how a contender differs from ours
    "ours": {},
    "batches of mixed lengths": {"sorted_": False},
    "fp32 products": {"bf16": False},
    "scaled_dot_product_attention": {"attention": "sdpa"},
}


def contender(tokenizer, batches, sorted_=True, bf16=None, attention="eager"):
    """A function that trains once through the batches and returns the seconds of it."""
    model = pretrain.build_model(CONFIG, tokenizer)
    model.set_attn_implementation(attention)
    optimizers = pretrain.build_optimizers(CONFIG, model)
    bf16 = models.has_bf16("cpu") if bf16 is None else bf16
    batches = batches if sorted_ else mixed(batches)

    def epoch():
        for rows in batches:
            pretrain.response_loss(model, rows, tokenizer.pad_token_id, bf16).backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()

    return lambda number: timed(epoch)[0]


def losses(tokenizer, rows) -> tuple[float, float]:
    """The largest differences to the loss of `rows` in fp32: without bf16, and with it."""
    found = {}
    for attention, bf16 in itertools.product(("eager", "sdpa"), (False, True)):
        model = pretrain.build_model(CONFIG, tokenizer)
        model.set_attn_implementation(attention)
        with torch.no_grad():
            found[attention, bf16] = pretrain.response_loss(
                model, rows, tokenizer.pad_token_id, bf16).item()
    gaps = {key: abs(loss - found["eager", False]) for key, loss in found.items()}
    return gaps["sdpa", False], max(gap for (_, bf16), gap in gaps.items() if bf16)


def pretraining(rounds: int) -> list[Result]:
    tokenizer = models.load("toy", four_bit=False).tokenizer
    batches = pretrain.pool_of_batches(CONFIG, tokenizer, 0)
    plain, rounded = losses(tokenizer, batches[0])
    assert plain < 1e-4 and rounded < 0.05, "the contenders do not compute the same loss"
    seconds = take_turns({name: contender(tokenizer, batches, **changes)
                          for name, changes in CONTENDERS.items()}, rounds, "pre-training")
    amount = CONFIG.pool * CONFIG.batch
    return [compare(seconds, other, "pre-training, embedded model", amount, "samples/s",
                    f"loss within {plain:.0e}, in bf16 {rounded:.0e}", limit)
            for other, limit in (("batches of mixed lengths", padding(batches)),
                                 ("fp32 products", ""), ("scaled_dot_product_attention", ""))]


def mixed(batches) -> list:
    """The same samples in batches that know nothing of length."""
    rows = list(itertools.chain(*batches))
    random.Random(0).shuffle(rows)
    return [rows[i : i + CONFIG.batch] for i in range(0, len(rows), CONFIG.batch)]


def padding(batches) -> str:
    """How much smaller sorting makes what is computed, padding included."""
    cells = [sum(max(len(ids) for ids, _ in batch) * len(batch) for batch in some)
             for some in (mixed(batches), batches)]
    return f"{cells[0] / cells[1]:.2f}x by tokens"
