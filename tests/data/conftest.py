import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when `datasets` is imported: no test asks the hub

import pytest


@pytest.fixture
def many(tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(f"prompt {i}" for i in range(23)))
    return str(tmp_path / "many.txt")
