"""Every figure is made, says its units, and shows its numbers; hostile text stays text."""

import base64
import io
import math
import warnings
from dataclasses import replace

import pandas as pd
import pytest
from hostile import ALL
from PIL import Image

from secalign_kit import figures
from secalign_kit.evaluation import KINDS, Rate, rate
from secalign_kit.figures.diagram import _wrap
from secalign_kit.figures.palette import ANSWERS as FILLS
from secalign_kit.figures.palette import looks as looks_of

RATE = Rate(0.75, 40, 0.6, 0.86)
MORE = replace(RATE, n=90)
SHIFT = {
    "chosen_before": -12.3, "chosen_after": -3.1, "rejected_before": -2.2, "rejected_after": -61.7,
}  # fmt: skip


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """A missing glyph or a layout that collapses is only a warning to matplotlib."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def words(fig):
    """All text of a figure."""
    return "\n".join(text.get_text() for text in fig.findobj(lambda a: hasattr(a, "get_text")))


def opened(fig):
    return Image.open(io.BytesIO(figures.png(fig, dpi=60)))


def metrics(n=20):
    return [{"step": i, "loss": 0.69 / i, "margin": i / 9, "chosen_logprob": -9,
             "rejected_logprob": -i} for i in range(1, n + 1)]


def table(chosen=(1, 1, -1, -1, 2), rejected=(-5, 4, -3, 2, -9)):
    return pd.DataFrame({"id": range(len(chosen)), "chosen_before": -10.0, "rejected_before": -4.0,
                         "chosen_after": [-10.0 + c for c in chosen],
                         "rejected_after": [-4.0 + r for r in rejected]})


POINTS = {
    name: {"asr": replace(RATE, value=asr), "utility": replace(RATE, value=utility)}
    for name, asr, utility in (
        ("insecure", 0.75, 0.8), ("prompt: in_context", 0.75, 0.8), ("StruQ", 0.7, 0.8),
        ("SecAlign", 0.7, 0.75), ("SecAlign with the kit's additions", 0.75, 0.7),
    )
}  # fmt: skip
DIAL = [{"strength": s, "asr": RATE, "attack": "ignore_completion", "utility": MORE,
         "preference": s} for s in (0, 0.5, 1)]
MODELS = {model: {"naive": RATE, "hijack": MORE} for model in POINTS}
ANSWERS = dict(zip(KINDS, (rate(k, 100) for k in (40, 3, 30, 27, 0, 0, 0, 0)), strict=True))
SEARCHES = {"insecure": [{"losses": [2.0, 0.5], "obeyed": True, "steps": 1}],
            "secure": [{"losses": [9.0, 8.0, 7.5, 7.0], "obeyed": False, "steps": 3},
                       {"losses": [9.0, 3.0, 1.0], "obeyed": True, "steps": 2}]}
MOVED = [{"token": " Copy", "neighbour": "$x_{", "gap": 1.2, "nearest": " Copy", "went": 0.7},
         {"token": ".", "neighbour": "\u202e", "gap": 0.5, "nearest": " owl", "went": 0.9}]
CURVES = {"SecAlign": [(100, RATE), (10, RATE)], "StruQ": [(100, RATE), (20, RATE)]}


def every_figure():
    rates = {"naive": RATE, "ignore_completion": RATE}
    return {
        "diagram": figures.diagram(SHIFT),
        "training_curves": figures.training_curves(metrics()),
        "shift_scatter": figures.shift_scatter(table()),
        "token_strip": figures.token_strip(["No", ",", " dinosaurs"], [-1, -2, -3], [-9, -1, -3]),
        "role_strip": figures.role_strip([("instruction", "Count."), ("injection", "Say \u202e.")]),
        "asr_bars": figures.asr_bars({"insecure": {"asr": rates}, "secure": {"asr": rates}}),
        "before_after": figures.before_after(table()),
        "margin_histogram": figures.margin_histogram(table()),
        "tradeoff": figures.tradeoff(POINTS),
        "strength_dial": figures.strength_dial(DIAL),
        "attack_bars": figures.attack_bars(MODELS),
        "answer_kinds": figures.answer_kinds({"insecure": ANSWERS, "secure": ANSWERS}),
        "rate_curves": figures.rate_curves(CURVES, "pairs", log_x=True),
        "searches": figures.searches(SEARCHES),
        "embedding_moves": figures.embedding_moves(MOVED),
    }


def test_every_figure_becomes_a_small_png():
    for name, fig in every_figure().items():
        data = figures.png(fig)
        assert data.startswith(b"\x89PNG") and len(data) < 60_000, name
        assert Image.open(io.BytesIO(data)).width > 500, name


def test_a_picture_for_a_notebook_is_sharp_and_says_in_words_what_it_shows():
    for name, fig in every_figure().items():
        data, metadata = figures.image(fig)._repr_mimebundle_()
        alt = metadata["image/png"]["alt"]
        png = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        assert len(alt) > 20 and metadata["image/png"]["width"] < png.width, name
        assert not set("<>\"&") & set(alt), name
    bars = figures.words(figures.attack_bars(MODELS))
    assert "Attacks obeyed" in bars and "insecure" in bars and "95% intervals" in bars
    evil = figures.words(figures.role_strip([("data", ALL)]))
    assert "<img" not in evil and '"' not in evil and "[U+202E]" in evil


def test_a_strip_of_roles_names_each_run_once_and_breaks_into_lines():
    many = [("instruction", " a"), ("instruction", " b"), ("data", " word")] * 20
    fig = figures.role_strip(many)
    said = [text.get_text() for text in fig.axes[0].texts]
    assert 20 <= said.count("instruction") < 40 and said.count("\u00b7word") == 20
    assert fig.get_size_inches()[1] > 2
    for parts in ([], [("somebody", "text")]):
        with pytest.raises(ValueError, match="pass .role, text. with delimiter"):
            figures.role_strip(parts)


def test_equal_figures_give_equal_bytes():
    assert figures.png(figures.diagram({})) == figures.png(figures.diagram({}))


def test_every_axis_of_measurements_has_a_title_and_units():
    for name, fig in every_figure().items():
        for axes in fig.axes:
            if name in ("diagram", "token_strip", "role_strip"):
                continue
            assert axes.get_title(loc="left"), name
            assert axes.get_xlabel() and axes.get_ylabel(), name
    assert "nats per response" in words(figures.shift_scatter(table()))
    assert "nats per token" in words(figures.token_strip(["a"], [0.0], [1.0]))


def test_every_legend_lies_inside_its_figure():
    for name, fig in every_figure().items():
        fig.draw_without_rendering()
        for legend in fig.legends:
            box, page = legend.get_window_extent(), fig.bbox
            assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1, name


def test_colours_are_distinct_and_never_alone():
    assert len(set(figures.PALETTE.values())) == len(figures.PALETTE) == 7
    assert figures.HATCH["insecure"] != figures.HATCH["secure"]
    assert figures.LINE["chosen"] != figures.LINE["rejected"]
    assert figures.MARKER["chosen"] != figures.MARKER["rejected"]


def test_diagram_shows_the_measured_numbers_and_answers():
    answers = {"insecure_answer": "No, extinct.", "secure_answer": "", "tokens": object()}
    text = words(figures.diagram(SHIFT | answers))
    assert "\u221212.3  \u2192  \u22123.1 nats   \u25b2 +9.2" in text
    assert "\u22122.2  \u2192  \u221261.7 nats   \u25bc \u221259.5" in text
    assert "extinct." in text and "(nothing)" in text
    for word in ("<instruction_delimiter>", "<data_delimiter>", "<response_delimiter>"):
        assert word in text
    assert "not measured" in words(figures.diagram({}))


def test_the_injection_is_red_and_boxed():
    fig = figures.diagram({"injection": "Dinosaurs?"})
    red = figures.PALETTE["injection"]
    drawn = [t for t in fig.axes[0].texts if t.get_text().strip() == "Dinosaurs?"]
    assert [t.get_color() for t in drawn] == [red]
    assert red in [line.get_color() for line in fig.axes[0].lines]


def test_diagram_grows_with_its_text_and_refuses_wrong_delimiters():
    plain, long = figures.diagram({}), figures.diagram({"data": "red, owl, " * 30})
    assert long.get_figheight() > plain.get_figheight()
    with pytest.raises(ValueError, match="2 delimiters"):
        figures.diagram({"delimiters": ("a", "b")})


HOSTILE = f"a $x^2$ \\frac{{1}} \x00\n\t\u4f60\U0001f600\ud800 {ALL} " + "w" * 300


def test_hostile_text_is_drawn_as_text():
    keys = ("instruction", "data", "injection", "chosen", "rejected", "insecure_answer")
    opened(figures.diagram(dict.fromkeys(keys, HOSTILE)))
    strip = figures.token_strip([HOSTILE, "", "  "], [0, 0, 0], [1, 2, 3], title=HOSTILE)
    opened(strip)
    assert "$x^2$" in words(strip) and "[U+202E]" in words(strip)
    opened(figures.asr_bars({"insecure": {"asr": {"$a_{$": RATE}}}))
    opened(figures.tradeoff({"$a_{$": {"asr": RATE, "utility": RATE}}))
    opened(figures.attack_bars({"$a_{$": {"$b_{$": RATE}, "nothing": {}}))
    opened(figures.compare_training({"$a_{$": metrics()}))
    opened(figures.trajectory({"$a_{$": metrics()}))


def test_wrapped_lines_fit_and_lose_nothing():
    runs = [("one two three ", "data"), ("x" * 25 + " y  z", "injection")]
    lines = _wrap(runs, 10)
    assert all(c + len(t.rstrip()) <= 10 for line in lines for c, t, _ in line)
    assert "".join(t for line in lines for _, t, _ in line) == "".join(t for t, _ in runs)


def test_training_curves_skip_what_was_not_logged():
    fig = figures.training_curves([{"step": 1, "loss": 0.69}, {"step": 2, "margin": None}])
    assert words(fig).count("not logged") >= 2
    opened(fig)
    with pytest.raises(ValueError, match="no rows"):
        figures.training_curves([])


def test_training_curves_mark_log_2_only_where_the_loss_begins_there():
    mark = "log 2: before training"
    assert mark in words(figures.training_curves(metrics()))
    added = [m | {"loss": m["loss"] + 0.3} for m in metrics()]  # as with an SFT term
    later = [m | {"step": m["step"] + 50} for m in metrics()]
    for rows in (added, later):
        text = words(figures.training_curves(rows))
        assert mark not in text and "training loss" in text and "DPO" not in text


def test_training_curves_draw_the_mean_of_many_batches_over_them():
    noisy = [m | {"loss": k % 2} for k, m in enumerate(metrics(50))]
    fig = figures.training_curves(noisy)
    single, mean = fig.axes[0].lines
    assert single.get_alpha() < 0.5 and list(single.get_ydata()) == [k % 2 for k in range(50)]
    assert list(mean.get_ydata())[19:] == pytest.approx([0.5] * 31)
    assert "mean of the last 20 batches" in words(fig)
    assert len(figures.training_curves(noisy[:40]).axes[0].lines) == 1


def test_scatter_counts_the_quadrants_in_a_legend_that_hides_no_point():
    fig = figures.shift_scatter(table())
    text = words(fig)
    assert "chosen up, rejected down: intended (2)" in text and "The shift of 5 pairs" in text
    assert "both up (1)" in text and "both down (1)" in text
    assert "chosen down, rejected up: wrong way (1)" in text and "equal shifts" in text
    assert not fig.axes[0].texts and len(fig.legends) == 1


def test_scatter_refuses_bad_tables():
    with pytest.raises(ValueError, match="chosen_after"):
        figures.shift_scatter(table().drop(columns="chosen_after"))
    with pytest.raises(ValueError, match="no rows"):
        figures.shift_scatter(table().iloc[:0])
    with pytest.raises(ValueError, match="row 1, rejected_after"):
        figures.shift_scatter(table(rejected=(-5, float("nan"), 0, 0, 0)))


def test_scatter_of_a_single_unmoved_pair():
    opened(figures.shift_scatter(table((0,), (0,))))


def test_token_strip_prints_differences_and_wraps():
    fig = figures.token_strip(["No", " x"], [-1.0, -2.0], [-3.5, -1.0], "rejected")
    assert "\u25bc\u22122.50" in words(fig) and "\u25b2+1.00" in words(fig)
    assert "sum \u22121.50" in words(fig) and "\u00b7x" in words(fig)
    many = figures.token_strip(["token"] * 40, [0.0] * 40, [1.0] * 40)
    assert many.get_figheight() > fig.get_figheight()
    with pytest.raises(ValueError, match="2 tokens, 1 before"):
        figures.token_strip(["a", "b"], [0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="token 0"):
        figures.token_strip(["a"], [float("-inf")], [0.0])


def test_bars_show_value_interval_and_n():
    other = Rate(0.0, 50, 0.0, 0.07)
    fig = figures.asr_bars({"insecure": {"asr": {"naive": RATE, "x": RATE}},
                            "secure": {"asr": {"naive": other}}})  # fmt: skip
    text = words(fig)
    assert "75%" in text and "0%" in text and "n = 40 / 50" in text and "not measured" in text
    assert [bar.get_height() for bar in fig.axes[0].patches] == pytest.approx([75, 75, 0])
    assert fig.axes[0].patches[0].get_hatch() != fig.axes[0].patches[2].get_hatch()
    nearly = figures.asr_bars({"secure": {"asr": {"naive": replace(RATE, value=0.9982)}}})
    assert "99.8%" in words(nearly)
    with pytest.raises(ValueError, match="no attack"):
        figures.asr_bars({})


def test_bars_set_clean_utility_apart_where_it_was_measured():
    summary = {which: {"asr": {"naive": RATE}} for which in ("insecure", "secure")}
    assert "clean utility" not in words(figures.asr_bars(summary))
    summary["secure"]["clean_utility"] = replace(RATE, value=0.7, n=624)
    fig = figures.asr_bars(summary)
    text = words(fig)
    for shown in ("clean utility\nn = 624", "lower is better", "higher is better", "not measured"):
        assert shown in text
    places = [bar.get_x() for bar in fig.axes[0].patches]
    assert max(places) - sorted(places)[-2] > 1.2  # further than from one attack to the next


def test_before_after_counts_both_sides_and_spreads_both_clouds():
    fig = figures.before_after(table())
    assert "rejected is likelier: 5; below, chosen: 0" in words(fig)
    assert "rejected is likelier: 3; below, chosen: 1" in words(fig)
    for axes in fig.axes:
        assert axes.get_xscale() == axes.get_yscale() == "symlog"
        assert axes.get_xlim() == axes.get_ylim()
    opened(figures.before_after(table((10,), (4,))))  # both at log p = 0 after training


def test_a_bin_of_the_histogram_begins_at_zero_and_no_pair_is_lost():
    fig = figures.margin_histogram(table((1, 9, 8, -1, 7), (-1, -9, 3, 2, -6)))
    bars = fig.axes[0].patches
    assert any(math.isclose(bar.get_x(), 0, abs_tol=1e-12) for bar in bars)
    assert sum(bar.get_height() for bar in bars) == 10
    right = [bar for bar in bars if bar.get_x() + bar.get_width() / 2 > 0]
    assert sum(bar.get_height() for bar in right) == 2
    assert "insecure, right of zero: 0.0%" in words(fig) and "(n=5)" in words(fig)
    assert "secure, right of zero: 40.0%" in words(fig)


def test_tradeoff_names_every_point_and_hides_none():
    fig = figures.tradeoff(POINTS)
    labels = [t for t in fig.axes[0].texts if t.get_text()]
    assert [t.get_text() for t in labels] == list(POINTS)
    boxes = [t.get_window_extent() for t in labels]
    spots = [fig.axes[0].transData.transform((100 * p["asr"].value, 100 * p["utility"].value))
             for p in POINTS.values()]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert not any(box.contains(*spot) for spot in spots)
    marks = [line for line in fig.axes[0].lines if line.get_zorder() >= 3]
    looks = dict(zip(POINTS, marks, strict=True))
    assert looks["insecure"].get_markerfacecolor() == figures.PALETTE["insecure"]
    assert looks["SecAlign"].get_markerfacecolor() == figures.PALETTE["secure"]
    assert looks["prompt: in_context"].get_markersize() < looks["insecure"].get_markersize()
    assert "n = 40" in fig.axes[0].get_xlabel() and "n = 40" in fig.axes[0].get_ylabel()
    with pytest.raises(ValueError, match="no points"):
        figures.tradeoff({})


def test_models_and_curves_look_alike_everywhere_and_never_twice():
    names = ["insecure", "StruQ", "SecAlign", "SecAlign with more", "prompt: a", "clean utility"]
    looks = looks_of(names)
    assert [looks[k]["color"] for k in (0, 2, 3, 5)] == [
        figures.PALETTE[role] for role in ("insecure", "secure", "secure", "instruction")]
    assert len({(look["marker"], look["fill"]) for look in looks}) == len(names)
    assert looks[1]["color"] == looks[4]["color"] == figures.INK


def test_the_answers_part_from_the_first_step_to_the_last():
    log = [{"step": 5 * i, "chosen_logprob": -3 + i / 10, "rejected_logprob": -1.0 - i}
           for i in range(31)] + [{"step": 152, "loss": 0.1}]
    films = figures.parting(log, {"chosen": "$x_{", "rejected": "b"}, frames=7)
    heads = [fig.axes[0].get_title(loc="left") for fig in films]
    assert heads[0] == "Step 0 of 150: rejected is likelier, by 2.0 nats"
    assert heads[-1] == "Step 150 of 150: chosen is likelier, by 31.0 nats"
    steps = [int(head.split()[1]) for head in heads]
    assert len(steps) == 7 and steps == sorted(set(steps))
    assert steps[1] - steps[0] < steps[-1] - steps[-2]  # slower where most happens
    assert len({(fig.axes[0].get_xlim(), fig.axes[0].get_ylim()) for fig in films}) == 1
    chosen, rejected = films[-1].axes[0].lines[1:]
    assert list(rejected.get_ydata()) == [row["rejected_logprob"] for row in log[:31]]
    assert chosen.get_linestyle() != rejected.get_linestyle()
    assert chosen.get_marker() != rejected.get_marker()
    assert "chosen: $x_{" in words(films[-1]) and "rejected \u221231.0" in words(films[-1])
    names = [text for text in films[1].axes[0].texts]
    assert abs(names[0].get_position()[1] - names[1].get_position()[1]) >= 0.07 * 31
    with pytest.raises(ValueError, match="fewer than two steps"):
        figures.parting(log[:1])


def test_an_animation_runs_once_and_shows_every_figure():
    films = figures.parting([{"step": i, "chosen_logprob": -1, "rejected_logprob": -1 - i}
                             for i in range(4)], frames=3)
    data = figures.gif(films, milliseconds=100, first=500)
    film = Image.open(io.BytesIO(data))
    assert film.n_frames == len(films) == 3 and "loop" not in film.info
    assert film.info["duration"] == 500
    assert film.convert("RGB").getpixel((film.width - 1, 0)) == (255, 255, 255)
    film.seek(2)
    assert film.info["duration"] == 100
    assert data == figures.gif(films, milliseconds=100, first=500)


def test_strength_dial_shows_n_and_attack():
    text = words(figures.strength_dial(DIAL))
    assert "attack success rate (ignore-completion), n = 40" in text
    assert "clean utility, n = 90" in text
    with pytest.raises(ValueError, match="no rows"):
        figures.strength_dial([])


def test_attack_bars_show_every_rate_with_interval_and_n():
    rates = {"insecure": {"naive": RATE, "hijack": Rate(0.1, 40, 0, 0.2)},
             "SecAlign": {"hijack": Rate(0, 50, 0, 0.07)}}
    fig = figures.attack_bars(rates)
    axes, text = fig.axes[0], words(fig)
    assert "insecure, n = 40" in text and "SecAlign, n = 50" in text and "$" not in text
    assert "n = 40 / 50 per attack" in axes.get_xlabel()
    assert [t.get_text() for t in axes.get_yticklabels()] == ["naive", "hijack"]
    assert len(axes.containers) == 2
    many = figures.attack_bars({"a": {f"attack {k}": RATE for k in range(20)}})
    assert many.get_figheight() > fig.get_figheight()
    for bad in ({}, {"insecure": {}}, dict.fromkeys("abcdefg", {"naive": RATE})):
        with pytest.raises(ValueError, match="at least one attack"):
            figures.attack_bars(bad)


def test_answers_are_parts_of_a_whole_and_look_different():
    fig = figures.answer_kinds({"insecure": ANSWERS, "secure $": {"obeyed": rate(0, 5),
                                                                  "right": rate(5, 5)}})
    ends = {round(float(bar.get_x() + bar.get_width())) for bar in fig.axes[0].patches}
    assert ends == {0, 40, 43, 73, 100}
    said = words(fig)
    assert "obeyed 40.0" in said and "another answer 27.0" in said and "3.0" not in said.split()
    assert "n = 100" in said and "secure $\nn = 5" in said
    assert "refusal" not in said  # nobody did
    assert set(FILLS) == set(KINDS)
    looks = list(FILLS.values())
    assert len({hatch for _, hatch, _ in looks if hatch}) == sum(bool(look[1]) for look in looks)
    assert len({color for color, *_ in looks}) == len(looks)


def test_answers_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="'shouted' is no kind"):
        figures.answer_kinds({"toy": {"shouted": RATE}})
    with pytest.raises(ValueError, match="no answers"):
        figures.answer_kinds({})


def test_rate_curves_are_sorted_marked_and_say_n():
    fig = figures.rate_curves(CURVES, "pairs", "By pairs", log_x=True)
    axes, text = fig.axes[0], words(fig)
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "pairs"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10", "20", "100"]
    lines = {line.get_label(): line for line in axes.lines if "n =" in str(line.get_label())}
    assert list(lines) == ["SecAlign, n = 40", "StruQ, n = 40"] and "By pairs" in text
    assert list(lines["SecAlign, n = 40"].get_xdata()) == [10, 100]
    assert len({line.get_marker() for line in lines.values()}) == 2
    assert len({line.get_linestyle() for line in lines.values()}) == 2
    assert len(axes.containers) == 2


def test_rate_curves_refuse_what_cannot_be_drawn():
    for nothing in ({}, {"SecAlign": []}):
        with pytest.raises(ValueError, match="without points"):
            figures.rate_curves(nothing, "pairs")
    with pytest.raises(ValueError, match="x is 0; a log axis"):
        figures.rate_curves({"a": [(0, RATE)]}, "strength", log_x=True)
    opened(figures.rate_curves({"$a_{$": [(0, RATE), (1, RATE)]}, "strength"))


def test_moved_embeddings_are_arrows_beside_their_nearest_neighbours():
    axes, = figures.embedding_moves(MOVED).axes
    arrows = [text.xy for text in axes.texts if hasattr(text, "arrow_patch")]
    assert arrows == [(0.7, 0), (0.9, 1)]
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if len(line.get_xdata())]
    assert marks == [(1.2, 0), (0.5, 1)]
    said = words(axes.figure)
    assert "\u00b7Copy \u2192 \u00b7Copy" in said and "[U+202E]" in said and "$x_{" in said
    with pytest.raises(ValueError, match="no tokens"):
        figures.embedding_moves([])


def test_searches_show_their_losses_and_what_each_budget_buys():
    loss, share = figures.searches(SEARCHES).axes
    assert [list(line.get_ydata()) for line in loss.lines if len(line.get_ydata()) > 1] == [
        one["losses"] for group in SEARCHES.values() for one in group]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in loss.lines
             if len(line.get_ydata()) == 1]
    assert marks == [(1, 0.5), (2, 1.0)]
    shares = {line.get_label(): list(line.get_ydata()) for line in share.lines}
    assert shares == {"insecure, n = 1": [0, 100, 100, 100], "secure, n = 2": [0, 0, 50, 50]}
    with pytest.raises(ValueError, match="without searches"):
        figures.searches({"insecure": []})
