"""Every figure is made, says its units, and shows its numbers; hostile text stays text."""

import io
import warnings
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from secalign_kit import figures

RATE = {"value": 0.75, "n": 40, "low": 0.6, "high": 0.86}
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
    rows = range(1, n + 1)
    return [
        {"step": i, "loss": 0.69 / i, "margin": i / 9, "chosen_logprob": -9, "rejected_logprob": -i}
        for i in rows
    ]


def table(chosen=(1, 1, -1, -1, 2), rejected=(-5, 4, -3, 2, -9)):
    rows = len(chosen)
    return pd.DataFrame(
        {
            "id": range(rows),
            "chosen_before": [-10.0] * rows,
            "chosen_after": [-10.0 + c for c in chosen],
            "rejected_before": [-4.0] * rows,
            "rejected_after": [-4.0 + r for r in rejected],
        }
    )


def every_figure():
    rates = {"naive": RATE, "ignore_completion": RATE}
    return {
        "diagram": figures.diagram(SHIFT),
        "training_curves": figures.training_curves(metrics()),
        "shift_scatter": figures.shift_scatter(table()),
        "token_strip": figures.token_strip(["No", ",", " dinosaurs"], [-1, -2, -3], [-9, -1, -3]),
        "asr_bars": figures.asr_bars({"insecure": {"asr": rates}, "secure": {"asr": rates}}),
    }


def test_every_figure_becomes_a_small_png():
    for name, fig in every_figure().items():
        data = figures.png(fig)
        assert data.startswith(b"\x89PNG") and len(data) < 60_000, name
        assert Image.open(io.BytesIO(data)).width > 500, name


def test_equal_figures_give_equal_bytes():
    assert figures.png(figures.diagram({})) == figures.png(figures.diagram({}))


def test_every_axis_of_measurements_has_a_title_and_units():
    for name, fig in every_figure().items():
        for axes in fig.axes:
            if name in ("diagram", "token_strip"):
                continue
            assert axes.get_title(loc="left"), name
            assert axes.get_xlabel() and axes.get_ylabel(), name
    assert "nats per response" in words(figures.shift_scatter(table()))
    assert "nats per token" in words(figures.token_strip(["a"], [0.0], [1.0]))


def test_colours_are_distinct_and_never_alone():
    assert len(set(figures.PALETTE.values())) == len(figures.PALETTE) == 7
    assert figures.HATCH["insecure"] != figures.HATCH["secure"]
    assert figures.LINE["chosen"] != figures.LINE["rejected"]
    assert figures.MARKER["chosen"] != figures.MARKER["rejected"]


def test_only_this_file_of_the_package_imports_matplotlib():
    package = Path(figures.__file__).parent
    importing = [
        path.name
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith(("import matplotlib", "from matplotlib"))
    ]
    assert set(importing) == {"figures.py"}


def test_diagram_shows_the_measured_numbers_and_answers():
    text = words(
        figures.diagram(
            SHIFT | {"insecure_answer": "No, extinct.", "secure_answer": "", "tokens": object()}
        )
    )
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


HOSTILE = "a $x^2$ \\frac{1} \u202e\u200b\x00\n\t\u4f60\U0001f600 <b>\ud800 " + "w" * 300


def test_hostile_text_is_drawn_as_text():
    keys = ("instruction", "data", "injection", "chosen", "rejected", "insecure_answer")
    opened(figures.diagram(dict.fromkeys(keys, HOSTILE)))
    strip = figures.token_strip([HOSTILE, "", "  "], [0, 0, 0], [1, 2, 3], title=HOSTILE)
    opened(strip)
    assert "$x^2$" in words(strip) and "[U+202E]" in words(strip)
    opened(figures.asr_bars({"insecure": {"asr": {"$a_{$": RATE}}}))


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a b\u00e9", "a b\u00e9"),
        ("a\nb\t", "a\u21b5b\u21e5"),
        ("\x00\x7f\x85", "[U+0000][U+007F][U+0085]"),
        ("\u202e\u2066\u200b\ufeff\u00ad", "[U+202E][U+2066][U+200B][U+FEFF][U+00AD]"),
        ("\u00a0\u2028\ufe0f\U000e0041", "[U+00A0][U+2028][U+FE0F][U+E0041]"),
        ("\ud800\u3164", "[U+D800][U+3164]"),
    ],
)
def test_visible_hides_nothing(text, shown):
    assert figures.visible(text) == shown
    assert figures.visible(shown) == shown


def test_wrapped_lines_fit_and_lose_nothing():
    runs = [("one two three ", "data"), ("x" * 25 + " y  z", "injection")]
    lines = figures._wrap(runs, 10)
    assert all(c + len(t.rstrip()) <= 10 for line in lines for c, t, _ in line)
    assert "".join(t for line in lines for _, t, _ in line) == "".join(t for t, _ in runs)


def test_training_curves_skip_what_was_not_logged():
    fig = figures.training_curves([{"step": 1, "loss": 0.69}, {"step": 2, "margin": None}])
    assert words(fig).count("not logged") >= 2
    opened(fig)
    with pytest.raises(ValueError, match="no rows"):
        figures.training_curves([])


def test_scatter_counts_the_quadrants():
    text = words(figures.shift_scatter(table()))
    assert "chosen up, rejected down: intended\n2 of 5" in text
    assert "both up\n1 of 5" in text and "both down\n1 of 5" in text
    assert "chosen down, rejected up: wrong way\n1 of 5" in text


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
    other = SimpleNamespace(value=0.0, n=50, low=0.0, high=0.07)
    fig = figures.asr_bars({"insecure": {"asr": {"naive": RATE, "x": RATE}},
                            "secure": {"asr": {"naive": other}}})  # fmt: skip
    text = words(fig)
    assert "75%" in text and "0%" in text and "n = 40 / 50" in text and "not measured" in text
    assert [bar.get_height() for bar in fig.axes[0].patches] == pytest.approx([75, 75, 0])
    assert fig.axes[0].patches[0].get_hatch() != fig.axes[0].patches[2].get_hatch()
    with pytest.raises(ValueError, match="no attack"):
        figures.asr_bars({})
