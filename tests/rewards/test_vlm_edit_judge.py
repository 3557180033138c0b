"""The judge of edits is shown the image before and after, in this order."""

import pytest
import torch
from parts import spy

from lit_align.rewards.reward import components
from lit_align.rewards.vlm_edit_judge import VLMEditJudge


@pytest.mark.parametrize("answer,low,high", [("yes_no", 0, 1), ("expectation", 1, 5)])
def test_the_source_is_read_before_the_edited_image(answer, low, high):
    torch.manual_seed(0)
    judge = VLMEditJudge("tiny", answer=answer, dtype="float32")
    images, source = torch.rand(2, 3, 16, 16), list(torch.rand(2, 3, 16, 16))
    rows = {"prompt": ["make it blue", "turn it"], "columns": {"source": source}}
    with spy(judge.vlm, "inputs") as seen:
        score = components(judge, images, rows)
    pictures, texts = seen.call_args.args
    assert torch.equal(pictures, torch.stack([torch.stack(source), images], 1)) and 'instruction "turn it"' in texts[1]
    assert score.shape == (2,) and (score >= low).all() and (score <= high).all()
    swapped = components(judge, torch.stack(source), rows | {"columns": {"source": list(images)}})
    assert not torch.allclose(score, swapped, atol=1e-7)
    with pytest.raises(ValueError, match="needs the column `source`"):
        components(judge, images, {"prompt": ["a", "b"], "columns": {}})
