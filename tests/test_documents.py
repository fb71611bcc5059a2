"""What the documents at the root name exists, and they agree with the package."""

import re
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


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == secalign_kit.__version__ and citation["license"] == "Apache-2.0"
    paper, = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Chen", "Zharmagambetov", "Mahloujifar", "Chaudhuri", "Wagner", "Guo"]
    assert f"## [{citation['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
