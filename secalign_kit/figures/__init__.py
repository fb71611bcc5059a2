"""Measurements become figures: every function takes data and returns a matplotlib `Figure`.

One datum: `asr_bars({"insecure": {"asr": {"naive": rate(90, 100)}}, "secure": ...})` is grouped
bars with Wilson intervals. Nothing is shown, saved or kept in global state; `png(fig)` gives bytes.

    palette    what every colour, hatch, marker and line means
    canvas     what pictures share: text, axes, legends, PNG, GIF
    diagram    the founding diagram with measured log-probs
    loss       the DPO loss and its pull
    training   curves of one run, runs beside each other, their paths
    parting    the diagram's two answers, step by step
    weights    how much an adapter changed each matrix
    shift      log-probs of the pairs before and after training
    tokens     log-probs token by token; whose each part of a prompt is
    rates      rates over a number that was varied; the strength dial
    asr        attack success rates, attack by attack, place by place
    answers    what was answered instead, as parts of a whole
    searches   attacks that search: loss by step, success by budget; embeddings moved
    tradeoff   security beside utility
    ablation   one setting varied at a time

Limits: texts are drawn in DejaVu Sans Mono, which has no Chinese or emoji; characters without a
glyph, and invisible ones, are written as their code point, `[U+202E]`. Long texts are cut with an
ellipsis in figures (never in data).
"""

from .ablation import ablation
from .answers import answer_kinds
from .asr import asr_bars, attack_bars, attack_places
from .canvas import gif, image, png, shown_width, words
from .diagram import diagram
from .loss import loss_curve
from .palette import HATCH, INK, LINE, MARKER, PALETTE, PAPER
from .parting import parting
from .rates import rate_curves, strength_dial
from .searches import embedding_moves, searches
from .shift import before_after, log_prob_clouds, margin_histogram, shift_scatter
from .tokens import role_strip, token_strip
from .tradeoff import tradeoff
from .training import compare_training, training_curves, trajectory
from .weights import update_norms

__all__ = [
    "HATCH", "INK", "LINE", "MARKER", "PALETTE", "PAPER", "ablation", "answer_kinds",
    "asr_bars", "attack_bars", "attack_places", "before_after", "compare_training", "diagram",
    "embedding_moves", "gif", "image", "log_prob_clouds", "loss_curve", "margin_histogram",
    "parting", "png", "rate_curves", "role_strip", "searches", "shift_scatter", "shown_width",
    "strength_dial", "token_strip", "tradeoff", "training_curves", "trajectory", "update_norms",
    "words",
]
