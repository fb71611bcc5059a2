"""The shift: log p(chosen) and log p(rejected), before and after, per response and per token.

One datum: `{"id": 3, "attack": "naive", "chosen_before": -4.1, "chosen_after": -0.2,
"rejected_before": -0.9, "rejected_after": -41.0}`, summed nats per response.

Before is the bundle without its adapter, after with it: one model, one pass over the pairs each.
"""

import pandas as pd
import torch
from datasets import Dataset

from . import shared_prefix
from .models import Bundle, insecure
from .training import collated, encode_pair, encode_pairs, score_pairs


def shift_table(bundle: Bundle, dataset: Dataset, max_length: int = 512) -> pd.DataFrame:
    """One row per pair: id, attack, families and the four summed log-probs in nats."""
    rows = encode_pairs(bundle, dataset, max_length)
    with insecure(bundle):
        before = score_pairs(bundle, rows)
    after = score_pairs(bundle, rows)
    columns = {
        "id": range(len(rows)), "attack": dataset["attack"],
        "host_family": dataset["host_family"], "payload_family": dataset["payload_family"],
        "chosen_before": before[0], "chosen_after": after[0],
        "rejected_before": before[1], "rejected_after": after[1],
        "chosen_tokens": [len(row["chosen_ids"]) for row in rows],
        "rejected_tokens": [len(row["rejected_ids"]) for row in rows],
    }
    return pd.DataFrame({k: [float(x) if hasattr(x, "item") else x for x in v]
                         for k, v in columns.items()})


def mean_shift(table: pd.DataFrame) -> dict:
    """`{"chosen": {"before": x, "after": x}, "rejected": {...}}`, mean summed nats."""
    return {side: {when: float(table[f"{side}_{when}"].mean()) for when in ("before", "after")}
            for side in ("chosen", "rejected")}


@torch.no_grad()
def token_table(bundle: Bundle, instruction: str, data: str, chosen: str,
                rejected: str) -> pd.DataFrame:
    """One row per response token: response, position, token, before, after (nats), difference."""
    batch = collated(bundle, [encode_pair(bundle, instruction, data, chosen, rejected)])
    with insecure(bundle):
        before = shared_prefix.token_logprobs(bundle.model, batch).tolist()
    after = shared_prefix.token_logprobs(bundle.model, batch).tolist()
    table = pd.DataFrame({
        "response": ["rejected" if r else "chosen" for r in batch["rejected"].tolist()],
        "token": [bundle.tokenizer.decode([t]) for t in batch["target"].tolist()],
        "before": before, "after": after,
    })
    table.insert(1, "position", table.groupby("response").cumcount())
    return table.assign(difference=table["after"] - table["before"])
