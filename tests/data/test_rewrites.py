import json

import pytest

from lit_align.data.rewrites import Rewrites


def test_rows_have_a_target(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "target": t}) + "\n" for p, t in (("a", "a, detailed"), ("b", "c"))))
    rows = Rewrites(str(file), batch_size=2)
    batch = rows.collate(list(rows.load("train")))
    assert batch["prompt"] == ["a", "b"] and batch["columns"] == {"target": ["a, detailed", "c"]}
    assert rows.load("val") is None
    file.write_text(json.dumps({"prompt": "a"}) + "\n")
    with pytest.raises(ValueError, match="rows.jsonl has no column target, which PromptSFT learns to write"):
        Rewrites(str(file)).load("train")
