"""The attacker in the loop, one setting varied at a time: variants, measures, table and figure."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from secalign_kit import attackers, evaluation, figures, training
from secalign_kit.config import recipe
from secalign_kit.studies import ablation

DOCS = Path(__file__).resolve().parent.parent / "docs"
RATE = dataclasses.asdict(evaluation.rate(9, 10))
CONFIGS = ablation.variants(Path("runs/x"), 4800)


def made_up(name: str, successes: int, allowed: int = 100) -> dict:
    """A row as a study would make it, with invented counts."""
    return {"variant": name, "settings": ablation.settings_of(CONFIGS[name]), "pairs": 4800,
            "gcg": {"n": 16, "allowed": allowed, "successes": [*range(30, 30 + successes)]},
            "obeyed": {"end": RATE, "start": RATE}, "right": {"end": RATE, "start": RATE},
            "clean_utility": RATE, "retention": RATE}


ROWS = [made_up(name, 3 * k % 17) for k, name in enumerate(CONFIGS)]


def test_every_variant_changes_one_setting_of_the_base():
    base, *others = CONFIGS.values()
    shipped = recipe("secalign_adaptive")
    assert base == shipped.replace(n_pairs=4800, save_steps=25, output="runs/x/base")
    changed = [[(name, value) for name, value in vars(config).items()
                if value != getattr(base, name) and name != "output"] for config in others]
    assert all(len(one) == 1 for one in changed)
    tried = {name: {value for (key, value), in changed if key == name} | {getattr(base, name)}
             for name in ablation.SETTINGS}
    assert tried == {name: set(values) for name, (_, values) in ablation.SETTINGS.items()}
    assert len({config.output for config in CONFIGS.values()}) == len(CONFIGS)


def test_workers_end_when_the_study_is_killed():
    """They hold its standard error open, so reading that ends when the last of them does."""
    code = ("import multiprocessing, time\n"
            "from concurrent.futures import ProcessPoolExecutor\n"
            "from secalign_kit.studies import ablation\n"
            "if __name__ == '__main__':\n"
            "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'),\n"
            "                             ablation._as_worker) as pool:\n"
            "        pool.submit(print, 'in', flush=True).result()\n"
            "        pool.submit(time.sleep, 600)\n"
            "        time.sleep(600)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, cwd=DOCS.parent)
    assert process.stdout.readline() == "in\n"
    process.kill()
    assert process.communicate(timeout=100)[0] == ""


def test_the_table_has_every_variant_with_n_and_interval():
    lines = ablation.markdown(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert "within 50 steps" in lines[0] and "within 100 steps" in lines[0]
    assert lines[2].startswith("| base | 0.0% [0.0, 19.4] (n=16) |")
    assert "18.8% [6.6, 43.0] (n=16)" in lines[3]
    assert all("90.0% [69.9, 97.2] (n=20)" in line for line in lines[2:])


def test_no_rate_is_shown_beyond_the_smallest_budget_of_all():
    rows = [made_up("base", 3, 40), made_up("radius: 2.0", 16, 100)]
    assert "within 40 steps" in (text := ablation.markdown(rows)) and "100 steps" not in text
    first = figures.ablation(rows).axes[0]
    assert first.get_title(loc="left") == "obeyed within 40 steps of GCG"
    marks = sorted(line.get_xdata()[0] for line in first.lines if line.get_marker() == "s")
    assert marks[-1] == 100 * 11 / 16  # of the 16 successes, those of the first 40 steps


def test_the_figure_has_a_line_for_every_value_and_marks_the_base():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fig = figures.ablation(ROWS)
        assert figures.png(fig, dpi=60)
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert len(labels) == sum(len(values) for _, values in ablation.SETTINGS.values())
    assert sum("(base)" in label for label in labels) == len(ablation.SETTINGS)
    assert labels[:4] == ["moves in a step: 0", "1", "3 (base)", "6"]
    assert "learned beside the adapter: nothing (base)" in labels and "role vectors" in labels
    said = figures.words(fig)
    assert "obeyed within 100 steps of GCG" in said and "n = 16" in said and "n = 20" in said
    with pytest.raises(ValueError, match="no rows"):
        figures.ablation([])


def test_the_document_shows_what_was_measured():
    rows = attackers.shipped("ablation")
    assert ablation.markdown(rows) in (DOCS / "attackers.md").read_text(encoding="utf-8")
    assert [row["variant"] for row in rows] == [*CONFIGS]
    assert [row["settings"] for row in rows] == [*map(ablation.settings_of, CONFIGS.values())]
    assert (DOCS / "ablation.png").exists()


def test_a_variant_is_trained_and_measured_without_the_held_out_test(tmp_path, monkeypatch,
                                                                     without_heldout):
    without_heldout(6)
    config = ablation.variants(tmp_path, 16)["learned beside the adapter: role vectors"].replace(
        batch_size=8, adversary_moves=1)
    found = ablation.row("a", config, 1, 1, attacked=1)
    assert found["gcg"]["n"] == 1 and found["settings"]["moves in a step"] == 1
    assert found["clean_utility"]["n"] == 6 and list(found["right"]) == ["end", "start", "middle"]
    assert "adversary_before" in (tmp_path / "beside-role_vectors" / "metrics.jsonl").read_text()
    assert json.loads(json.dumps(found)) == found and ablation.markdown([found])
    for module, name in ((training, "train"), (evaluation.responses, "_evaluate"),
                         (attackers, "gcg")):
        monkeypatch.setattr(module, name, None)  # nothing is done twice
    assert ablation.row("a", config, 1, 1, attacked=1) == found
    with pytest.raises(ValueError, match="another configuration"):
        ablation.row("a", config.replace(beta=0.2), 1, 1)
