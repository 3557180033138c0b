import pytest


@pytest.fixture
def many(tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(f"prompt {i}" for i in range(23)))
    return str(tmp_path / "many.txt")
