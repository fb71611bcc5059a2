"""The loss that makes a model prefer one response over another: DPO from scratch.

One datum: log p(chosen) = -3.0 and log p(rejected) = -2.0 nats under the reference, -2.5 and
-9.0 under the policy. The chosen response rose by 0.5 nats and the rejected one fell by 7.0; with
beta 0.1 the margin is 0.1 * (0.5 + 7.0) = 0.75 and the loss -log sigmoid(0.75) = 0.39.

Each fast function stands beside a plain-loop specification of the same thing. Source: Rafailov et
al. 2023 (arXiv 2305.18290), equation 7; SecAlign (arXiv 2410.05451), equation 3, which uses it
unchanged: y_w answers the instruction, y_l answers the injection.

Limits: a log-probability is a sum over tokens, so long responses weigh more than short ones. The
loss sees differences only: it falls as long as rejected falls faster than chosen, even while both
fall. That is why the kit reports the two log-probabilities apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

IGNORED = -100  # the label of a token that is not scored: prompt and padding


def response_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, *, shift: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the labelled tokens: `(per_token [B, T], summed [B])`, in nats.

    `logits` [B, T, V] are a model's outputs, `labels` [B, T] its input ids with -100 wherever a
    token is not scored. `per_token[b, t]` is log p(labels[b, t] | all before), 0 where not scored.
    The logits at t predict the token at t + 1; `shift=True` accounts for that, so the first token
    must not be scored. Pass `shift=False` when `logits[b, t]` already predicts `labels[b, t]` (a
    response-only head). Raises ValueError for shapes that do not fit or a scored first token.
    """
    _check_logits(logits, labels, shift)
    if shift:
        scored = response_logprobs(logits[:, :-1], labels[:, 1:], shift=False)[0]
        per_token = F.pad(scored, (1, 0))
        return per_token, per_token.sum(-1)
    mask = labels != IGNORED
    index = labels.masked_fill(~mask, 0).unsqueeze(-1)
    logp = logits.float().log_softmax(-1).gather(-1, index).squeeze(-1)
    # where, not a product: an unscored row may hold inf or nan, and nan * 0 is nan
    per_token = torch.where(mask, logp, logp.new_zeros(()))
    return per_token, per_token.sum(-1)


def plain_response_logprob(
    logits: Sequence[Sequence[float]], labels: Sequence[int], *, shift: bool = True
) -> tuple[list[float], float]:
    """The specification of `response_logprobs` for one row: loops and `math`, no tensors.

    `logits` [T][V] and `labels` [T]; returns per-token log-probabilities [T] and their sum (nats).
    """
    per_token = []
    for t, label in enumerate(labels):
        if label == IGNORED:
            per_token.append(0.0)
            continue
        if shift and t == 0:
            raise ValueError("the first token is scored but nothing predicts it: label it -100.")
        row = [float(x) for x in logits[t - 1 if shift else t]]
        top = max(row)
        log_total = top + math.log(sum(math.exp(x - top) for x in row))
        per_token.append(row[label] - log_total)
    return per_token, sum(per_token)


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [B] (nats) and margins [B] of preferring chosen to rejected.

    All four inputs [B] are summed response log-probabilities in nats. The margin is beta times how
    much more the policy than the reference prefers chosen: 0 before training, hence a loss of
    log 2; positive when security was gained. Raises ValueError for beta <= 0 or unequal shapes.
    """
    _check_beta(beta)
    given = (policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    shapes = [tuple(x.shape) for x in given]
    if len(set(shapes)) != 1:
        raise ValueError(
            f"the four log-probabilities have shapes {shapes}: pass one number per pair in each."
        )
    chosen_gain = policy_chosen - ref_chosen
    rejected_gain = policy_rejected - ref_rejected
    margins = beta * (chosen_gain - rejected_gain)
    return -F.logsigmoid(margins), margins


def plain_dpo_loss(
    policy_chosen: float,
    policy_rejected: float,
    ref_chosen: float,
    ref_rejected: float,
    beta: float = 0.1,
) -> tuple[float, float]:
    """The specification of `dpo_loss` for one pair, in floats: `(loss, margin)`."""
    _check_beta(beta)
    margin = beta * ((policy_chosen - ref_chosen) - (policy_rejected - ref_rejected))
    # -log sigmoid(m) = log(1 + exp(-m)), written so that exp never overflows
    loss = max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))
    return loss, margin


# --- The relatives of DPO that the paper compares with (SecAlign, section 4.6) --------------------


@dataclass(frozen=True)
class PairScores:
    """What a preference loss may know of B pairs: summed log-probs in nats and lengths, all [B].

    `kl` is a scalar estimate, in nats, of how far the policy is from the reference on responses
    that do not belong to their prompts; only `kto_loss` reads it.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    kl: torch.Tensor | float = 0.0


PairLoss = Callable[[PairScores, float], torch.Tensor]
"""(scores, beta) -> losses [B]."""


def sigmoid_loss(scores: PairScores, beta: float) -> torch.Tensor:
    """DPO: `dpo_loss` without its margins."""
    return dpo_loss(scores.chosen, scores.rejected, scores.ref_chosen, scores.ref_rejected, beta)[0]


def ipo_loss(scores: PairScores, beta: float) -> torch.Tensor:
    """IPO asks for a gain of 1 / (2 beta) per token (Azar et al., arXiv 2310.12036, eq. 17).

    The gains are means over a response's tokens, as in TRL.
    """
    _check_beta(beta)
    chosen_gain = (scores.chosen - scores.ref_chosen) / scores.chosen_tokens
    rejected_gain = (scores.rejected - scores.ref_rejected) / scores.rejected_tokens
    return (chosen_gain - rejected_gain - 1 / (2 * beta)) ** 2


def orpo_loss(scores: PairScores, beta: float) -> torch.Tensor:
    """ORPO needs no reference: the chosen answer's negative log-likelihood per token, plus beta
    times the log odds ratio's loss (Hong et al., arXiv 2403.07691, equations 4 to 7).
    """
    _check_beta(beta)
    chosen = scores.chosen / scores.chosen_tokens
    rejected = scores.rejected / scores.rejected_tokens
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - beta * F.logsigmoid(log_odds)


def simpo_loss(scores: PairScores, beta: float, gamma: float = 0.5) -> torch.Tensor:
    """SimPO needs no reference: chosen must lead per token, by gamma (Meng et al., arXiv
    2405.14734, equation 6).
    """
    _check_beta(beta)
    lead = scores.chosen / scores.chosen_tokens - scores.rejected / scores.rejected_tokens
    return -F.logsigmoid(beta * lead - gamma)


def kto_loss(scores: PairScores, beta: float) -> torch.Tensor:
    """KTO judges each response alone, against the policy's general drift `kl` (Ethayarajh et al.,
    arXiv 2402.01306, equation 7); here the mean of a pair's two losses.
    """
    _check_beta(beta)
    good = torch.sigmoid(beta * (scores.chosen - scores.ref_chosen - scores.kl))
    bad = torch.sigmoid(beta * (scores.kl - (scores.rejected - scores.ref_rejected)))
    return ((1 - good) + (1 - bad)) / 2


LOSSES: dict[str, PairLoss] = {"dpo": sigmoid_loss, "ipo": ipo_loss, "orpo": orpo_loss,
                               "kto": kto_loss, "simpo": simpo_loss}


def batch_loss(scores: PairScores, name: str, beta: float, sft_weight: float = 0.0) -> torch.Tensor:
    """The scalar that a training step minimizes over B pairs.

    The mean of a loss of `LOSSES`, or "sft": supervised fine-tuning on the chosen responses, their
    mean negative log p per token in nats, as StruQ does (arXiv 2402.06363, section 4.5).
    `sft_weight` adds that many times the same mean to another loss; 0 is the paper's.
    """
    supervised = -scores.chosen.sum() / scores.chosen_tokens.sum()
    if name == "sft":
        return supervised
    preferred = LOSSES[name](scores, beta).mean()
    return preferred + sft_weight * supervised if sft_weight else preferred


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x < 0, each half of the range by the form that keeps its digits."""
    x = x.clamp(max=-1e-7)  # a certain token has log p 0, and infinite odds
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _check_beta(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta is {beta}: choose a positive number, 0.1 in the paper.")


def _check_logits(logits: torch.Tensor, labels: torch.Tensor, shift: bool) -> None:
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit: "
            "pass logits [B, T, V] and labels [B, T]."
        )
    if not shift or labels.numel() == 0:
        return
    rows = (labels[:, 0] != IGNORED).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"row {rows[0]} scores its first token, which nothing predicts: label it -100, or pass "
            "shift=False if the logits are already aligned with the labels."
        )
