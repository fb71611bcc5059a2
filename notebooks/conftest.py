"""Notebooks of a real model are skipped where that model is not on the machine."""

import pytest

from secalign_kit import models

NEEDS = {"11_real_model": "smollm2-135m"}


def pytest_collection_modifyitems(items):
    for item in items:
        if name := NEEDS.get(item.path.stem):
            try:
                models.path_of(name)
            except ValueError as absent:
                item.add_marker(pytest.mark.skip(reason=str(absent)))
