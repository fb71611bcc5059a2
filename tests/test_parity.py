"""The check before every run finds what is wrong, falls back or refuses, and says both numbers."""

import pytest
import torch
from test_shared_prefix import APART, EXACT, some_pairs, tiny

from secalign_kit import models, parity, shared_prefix
from secalign_kit.shared_prefix import Sharing

ROWS = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True))
        for pair in some_pairs()]


def claim(bundle, sharing: Sharing) -> None:
    """As if the few tokens had shown so."""
    shared_prefix._KNOWN[shared_prefix.decoder_of(bundle.model)] = sharing


def test_the_shortest_and_the_longest_pair_are_as_plain_passes_say(toy):
    found = parity.parity(tiny(*EXACT["one window"], toy), ROWS)
    assert found.holds() and found.tokens == (1, 1, 2, 9)
    assert found.difference < 1e-3 and found.gap < 1e-3
    assert found.kit == pytest.approx(found.plain, abs=1e-3) and min(found.plain) < -5


@pytest.mark.parametrize("sharing", [Sharing(True, False), Sharing(False, True)])
def test_what_a_few_tokens_did_not_show_is_found_and_mended(toy, sharing):
    bundle = tiny(*APART["built-in windows"], toy)
    claim(bundle, sharing)
    assert not parity.parity(bundle, ROWS).holds()
    with pytest.warns(UserWarning, match=r"give -\d.* nats and .* computed apart"):
        parity.check(bundle, ROWS)
    assert shared_prefix.sharing(bundle.model) == Sharing(False, False)
    assert parity.parity(bundle, ROWS).holds()


def test_a_model_that_is_wrong_even_apart_is_refused_with_both_numbers(toy, monkeypatch):
    bundle = tiny(*EXACT["learned positions"], toy)
    plain = shared_prefix.plain_logprobs
    assert parity.parity(bundle, ROWS).holds()
    monkeypatch.setattr(shared_prefix, "plain_logprobs", lambda *a, **k: plain(*a, **k) - 1)
    said = r"'gpt2' cannot be measured: -\d+\.\d+ nats and -\d+"
    for _ in range(2):  # the second time is no better
        with pytest.warns(UserWarning), pytest.raises(ValueError, match=said):
            parity.check(bundle, ROWS)


def test_a_model_is_asked_once_for_rows_of_a_length_and_the_embedded_one_never(toy, monkeypatch):
    asked, bundle = [], tiny(*EXACT["learned positions"], toy)
    monkeypatch.setattr(parity, "parity", lambda b, rows: asked.append(len(rows)) or
                        parity.Parity((0.0,), (0.0,), (1,), 0.0, 1e-3))
    parity.check(toy, ROWS)
    assert not asked
    for rows in (ROWS[1:], ROWS[1:2], ROWS, ROWS, []):
        parity.check(bundle, rows)
    assert asked == [2, 3]


def test_a_model_in_bf16_is_checked_in_fp32_or_as_it_is_asked_if_it_is_large(toy, monkeypatch):
    bundle, seen = tiny(*EXACT["learned positions"], toy), []
    monkeypatch.setattr(models, "has_bf16", lambda device: True)
    monkeypatch.setattr(parity, "parity", lambda b, rows: seen.append(
        (torch.is_autocast_enabled("cpu"), b.model.dtype)) or parity.Parity(
            (0.0,), (0.0,), (1,), 0.0, 1e-3))
    parity.check(bundle, ROWS[1:])
    bundle.model.bfloat16()
    parity.check(bundle, ROWS[:2])
    parity._CHECKED.clear()
    monkeypatch.setattr(models, "EXPANDED", 0)
    parity.check(bundle, ROWS)
    assert seen == [(False, torch.float32), (False, torch.float32), (True, torch.bfloat16)]
    assert bundle.model.dtype == torch.bfloat16


def test_rounding_in_bf16_does_not_keep_a_small_model_from_sharing(toy, monkeypatch):
    bundle = tiny(*EXACT["learned positions"], toy)
    bundle.model.bfloat16()
    monkeypatch.setattr(models, "has_bf16", lambda device: True)
    seen, ask = [], parity.parity
    monkeypatch.setattr(parity, "parity", lambda *given: seen.append(ask(*given)) or seen[-1])
    parity.check(bundle, ROWS)
    assert seen[0].difference < 1e-3 and seen[0].gap < 1e-3 and len(seen) == 1
    assert shared_prefix.sharing(bundle.model) == Sharing(True, True)
