import pytest
from preferences import still


@pytest.fixture(scope="session")
def policy():
    """A tiny policy with LoRA that tests leave as it is."""
    return still()
