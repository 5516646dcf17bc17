"""Some tests here start DeepSpeed's engines without a stage, which would have seen to this."""

from __future__ import annotations

import pytest

from reward_models.operators import free_builds


@pytest.fixture(scope="session", autouse=True)
def _no_broken_builds():
    free_builds()
