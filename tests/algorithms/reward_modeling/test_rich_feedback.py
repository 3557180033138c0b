"""RAHF's training: scores, maps and marked words."""

import pytest
import torch
import torch.nn.functional as F
from parts import alone, trainer
from reward_parts import photo

from lit_align.algorithms.reward_modeling.rich_feedback import WORDS, RichFeedback, marked
from lit_align.rewards.rahf import HEATMAPS, RAHF, SCORES


def batch():
    g = torch.Generator().manual_seed(0)
    words = {WORDS: [[1, 1, 0], [0, 1]]}
    return {"prompt": ["a red, circle!", "two squares"], "index": [3, 9], "columns": words, "image": photo(40, 40, n=2), "maps": torch.rand(2, 2, 40, 40, generator=g), "scores": torch.rand(2, 4, generator=g)}


def method(**kwargs):
    torch.manual_seed(0)
    return RichFeedback(reward=RAHF(None, "tiny", "all"), freeze=[r"vit\.pooler"], **kwargs)


def test_missed_words_are_marked_as_published():
    assert marked("a red, circle!", [1, 1, 0], 0) == "a red circle_0"
    with pytest.raises(ValueError, match="row 7 has 2 words and 3 labels of words"):
        marked("two squares", [1, 1, 0], 7)


def test_the_loss_is_the_sum_of_its_parts():
    m, b = alone(method()), batch()
    m.logged = {}
    m.log_mean = lambda name, value, n: m.logged.update({name: float(value)})
    with torch.no_grad():
        got, reward = m.batch_loss(b), m.reward
        scores, maps = reward(b["image"], b["prompt"]), reward.heatmaps(b["image"], b["prompt"])
        errors = {name: (scores[:, i] - b["scores"][:, i]).square().mean() for i, name in enumerate(SCORES)}
        for i, name in enumerate(HEATMAPS):
            side = maps[name].shape[-1]
            due = F.interpolate(b["maps"][:, i : i + 1], (side, side), mode="bilinear", antialias=True)[:, 0]
            errors[name] = (maps[name] - due).square().mean()
        _, text, mask = reward.encode(b["image"], b["prompt"])
        words, total, n = ["a red circle_0", "two_0 squares"], 0.0, 0
        for row, sentence in enumerate(words):  # teacher forcing, a sentence at a time
            ids = reward.tokenizer(sentence, return_tensors="pt").input_ids
            start = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids[:, :-1]], 1)
            hidden = reward.t5.decoder(input_ids=start, encoder_hidden_states=text[row : row + 1], encoder_attention_mask=mask[row : row + 1]).last_hidden_state
            scale = reward.t5.config.d_model**-0.5 if reward.t5.config.tie_word_embeddings else 1.0
            logits = reward.t5.lm_head(hidden * scale)
            total, n = total + F.cross_entropy(logits[0], ids[0], reduction="sum"), n + ids.shape[1]
    assert {k.removeprefix("train/error/"): v for k, v in m.logged.items() if "error" in k} == pytest.approx({k: v.item() for k, v in errors.items()}, rel=1e-4)
    assert m.logged["train/words"] == pytest.approx((total / n).item(), rel=1e-3)
    assert got.item() == pytest.approx(sum(errors.values()).item() + m.logged["train/words"], rel=1e-5)


def test_every_part_is_trained_and_data_without_words_is_refused(tmp_path):
    m = method(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    before = {name: p.detach().clone() for name, p in m.reward.named_parameters()}
    trainer(tmp_path).fit(m, torch.utils.data.DataLoader([batch()] * 2, batch_size=None))
    still = {name for name, p in m.reward.named_parameters() if torch.equal(p, before[name])}
    assert all("pooler" in name or "relative_attention_bias" in name for name in still), still
    with pytest.raises(ValueError, match="RichFeedback learns from four scores and the column"):
        m.check(batch() | {"columns": {}})
