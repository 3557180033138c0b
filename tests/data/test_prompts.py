from collections import Counter

from data_parts import trainer

from lit_align.data.prompts import Prompts


def test_prompts_that_do_not_fill_a_batch_are_drawn_again(tmp_path, many):
    """As published recipes ask for: 45 animals, 256 samples at once."""
    data = Prompts(many, batch_size=64)
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch["prompt"]) == 64 and batch["prompt"] == [f"prompt {i}" for i in batch["index"]]
    times = Counter(batch["prompt"]).values()
    assert len(times) >= 22 and max(times) <= 3  # of 23, of which there are 69
