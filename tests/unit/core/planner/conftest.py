"""Shapes of the catalog."""

import pytest

from llmservice.core.planner.catalog import find_model


@pytest.fixture
def shape_of():
    """The shape of a model by its id."""

    def shape(model_id):
        found = find_model(model_id)
        assert found is not None
        return found.shape

    return shape
