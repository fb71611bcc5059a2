"""What the documents at the root name exists, and they agree with the package."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import secalign_kit

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_contributing_names_files_that_exist():
    named = set(re.findall(r"`(?!runs/)([\w./]+(?:/|\.py|\.md|\.json))`", CONTRIBUTING))
    named -= {"mine.json"}
    assert len(named) >= 15 and not [name for name in named if not (ROOT / name).exists()]


def test_contributing_names_tests_and_tables_that_exist():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    copied = re.findall(r"`(test_\w+)`", CONTRIBUTING)
    assert len(copied) >= 3 and all(f"def {name}(" in tests for name in copied)
    code = "".join(path.read_text(encoding="utf-8")
                   for path in (ROOT / "secalign_kit").rglob("*.py"))
    tables = re.findall(r"`([A-Z_]+)`", CONTRIBUTING)
    assert tables and all(re.search(rf"^{name}\b.* = ", code, re.M) for name in tables)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md",
                                  *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_of_a_document_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not ((ROOT / name).parent / link).exists()]


def test_every_dependency_has_its_licence_in_the_table_and_the_tested_version():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import licences
    finally:
        sys.path.pop(0)
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = {cells[1]: cells[2:5] for cells in (
        [cell.strip() for cell in line.split("|")] for line in text.splitlines()
        if line.startswith("| ")) if cells[1] != "package"}
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for name, (requirement, kind) in licences.asked().items():
        version, licence, asked_for = rows[name]
        assert (version, asked_for) == (tested[requirement.name], kind) and licence
    assert len(rows) > 100
    assert not [name for name, (_, licence, _) in rows.items()
                if re.search(r"not stated|\bA?GPL|NonCommercial|\bNC\b", licence)]


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == secalign_kit.__version__ and citation["license"] == "Apache-2.0"
    paper, = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Chen", "Zharmagambetov", "Mahloujifar", "Chaudhuri", "Wagner", "Guo"]
    assert f"## [{citation['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
