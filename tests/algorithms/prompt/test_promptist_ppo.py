"""Promptist's training: PPO over tokens, and the supervised stage before it."""

import pytest
import torch
from parts import BlackBox, alone, prompts, tiny, trainer

from lit_align.algorithms.prompt.prompt_sft import PromptSFT
from lit_align.algorithms.prompt.promptist_ppo import AdaptiveKL, PromptistPPO, gae
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen
from lit_align.steering.language_model import CausalLM
from lit_align.steering.writing import diverse_beams, predictions

ROLLOUT = Sampler(1, 1.0)


def method(**kwargs):
    how = {"reward": BlackBox(), "rollout": ROLLOUT, "groups": 2, "min_new_tokens": 4, "max_new_tokens": 4, "minibatch": 3}
    return PromptistPPO(language_model=CausalLM("tiny"), policy=tiny(adapter=Frozen()), **how | kwargs)


def test_gae_is_the_sum_of_discounted_errors():
    g = torch.Generator().manual_seed(0)
    r, v = (torch.randn(3, 5, generator=g) for _ in range(2))
    after = torch.cat([v[:, 1:], torch.zeros(3, 1)], 1)
    delta = r + after - v
    expected = torch.stack([sum(0.9**k * delta[:, a + k] for k in range(5 - a)) for a in range(5)], 1)
    torch.testing.assert_close(gae(r, v, 0.9), expected)


def test_diverse_beams_avoid_what_groups_before_took():
    lm = CausalLM("tiny")
    first = lm.model(lm.tokenizer("ab", return_tensors="pt").input_ids).logits[0, -1].log_softmax(0)
    greedy = diverse_beams(lm, ["ab"], 3, 0.0, 3)
    assert (greedy.tokens == greedy.tokens[:1]).all() and greedy.tokens[0, 0] == first.argmax()
    apart = diverse_beams(lm, ["another", "ab"], 3, 100.0, 3)
    assert apart.tokens[3:, 0].tolist() == first.topk(3).indices.tolist()
    gap = (first.topk(2).values[0] - first.topk(2).values[1]).item()
    for penalty, same in ((0.9 * gap, True), (1.1 * gap, False)):
        tokens = diverse_beams(lm, ["ab"], 2, penalty, 1).tokens[:, 0]
        assert (tokens[0] == tokens[1]).item() == same


def test_padding_changes_no_likelihood():
    lm = CausalLM("tiny")
    texts = ["ab", "a longer one"]
    together = diverse_beams(lm, texts, 1, 0.0, 5)
    for row, text in enumerate(texts):
        part = diverse_beams(lm, [text], 1, 0.0, 5)
        got = predictions(lm, together)[2][row][together.made[row]]
        torch.testing.assert_close(got, predictions(lm, part)[2][0][part.made[0]], atol=1e-5, rtol=1e-5)


def test_the_penalty_follows_its_target():
    kl = AdaptiveKL(0.2, 0.5, 100)
    kl.update(0.55, 10)
    assert kl.coefficient == pytest.approx(0.2 * (1 + 0.1 * 10 / 100))
    kl.update(99.0, 10)
    assert kl.coefficient == pytest.approx(0.2 * 1.01 * 1.02)
    again = AdaptiveKL(1.0, 0.5, 100)
    again.load_state_dict(kl.state_dict())
    assert again.coefficient == kl.coefficient
    fixed = AdaptiveKL(0.2, None, 100)
    fixed.update(99.0, 10)
    assert fixed.coefficient == 0.2


def test_targets_and_loss_by_hand():
    m = method(kl_weight=0.1, kl_target=None, value_weight=2.0, value_clip=0.3, clip_range=0.2)
    g = torch.Generator().manual_seed(1)
    made = torch.tensor([[True, True, False], [True, True, True]])
    old = {"token": -torch.rand(2, 3, generator=g), "value": torch.randn(2, 3, generator=g)}
    start, reward = {"token": -torch.rand(2, 3, generator=g)}, torch.tensor([1.0, -2.0])
    got = m.targets(old, start, made, reward)
    found = []
    for row, n in enumerate((2, 3)):
        r = -0.1 * (old["token"][row] - start["token"][row])[:n]
        r[-1] += reward[row]
        found.append(gae(r[None], old["value"][row : row + 1, :n], 0.95)[0])
        torch.testing.assert_close(got["returns"][row, :n], found[-1] + old["value"][row, :n])
    every = torch.cat(found)
    normal = (every - every.mean()) / every.std(unbiased=False)
    torch.testing.assert_close(got["advantage"][made], normal)
    now = {"token": old["token"] + 0.5 * torch.randn(2, 3, generator=g), "value": old["value"] + torch.randn(2, 3, generator=g)}
    m.now = lambda batch: now
    loss = m.batch_loss({"made": made, "old": old, "learnt": got, "share": 1.0})
    ratio, a = (now["token"] - old["token"])[made].exp(), got["advantage"][made]
    actor = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
    v, v0, ret = now["value"][made], old["value"][made], got["returns"][made]
    clipped = torch.minimum(torch.maximum(v, v0 - 0.3), v0 + 0.3)
    critic = torch.maximum((v - ret) ** 2, (clipped - ret) ** 2).mean()
    torch.testing.assert_close(loss, actor + critic)


def test_images_are_of_the_text_and_rewards_of_the_prompt():
    m = alone(method(images_per_prompt=2, baseline=BlackBox()))
    torch.manual_seed(0)
    found = m.collect({"prompt": ["a cat", "b"], "columns": {}, "index": [0, 1], "seed": [0, 1]})
    assert m.reward.asked == m.baseline.asked == ["a cat"] * 2 + ["b"] * 2
    assert found["learnt"]["advantage"].shape == found["made"].shape and found["made"].any(1).all()
    torch.testing.assert_close(found["old"]["token"], m.now(found)["token"], atol=1e-5, rtol=1e-5)  # the first ratio is 1


def test_training_moves_the_writer_alone_and_leaves_it_on_disk(tmp_path):
    m = method(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), updates=2)
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    t = trainer(tmp_path, max_epochs=1)
    t.fit(m, prompts(4, columns={}))
    moved = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(n.startswith(("language_model.", "value.")) for n in moved)
    kept = m.state_dict()
    assert all(n.startswith(("language_model.", "value.", "kl.")) for n in kept) and "value.weight" in kept
    again = CausalLM(str(tmp_path / "writer"), chat=False)
    assert again.answer(["a Rephrase:"], temperature=0.0, max_new_tokens=5) == m.language_model.answer(["a Rephrase:"], temperature=0.0, max_new_tokens=5)


def test_it_learns_to_write_what_is_rewarded():
    """Tokens of the lower half of the vocabulary; texts are drawn at random."""
    m = alone(method(images_per_prompt=1, groups=0, updates=4, minibatch=32, kl_weight=0.0, kl_target=None))
    share = lambda written: ((written.tokens < 130) * written.made).sum(1) / written.made.sum(1)
    m.texts = lambda asked, written: [f"{x}" for x in share(written).tolist()]
    m.score = lambda batch, texts, reward: torch.tensor([float(text) for text in texts])
    torch.manual_seed(0)
    optimizer, seen = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=3e-3), []
    for _ in range(15):
        found = m.collect({"prompt": ["x"] * 32, "columns": {}, "index": list(range(32)), "seed": list(range(32))})
        seen.append((found["ids"][:, -found["made"].shape[1] :] < 130).float().mean())
        for (part,) in m.optimizer_steps(found):
            optimizer.zero_grad()
            m.batch_loss(part).backward()
            optimizer.step()
    assert seen[-1] > seen[0] + 0.2


def test_the_supervised_stage_is_the_targets_likelihood(tmp_path):
    lm = CausalLM("tiny")
    m = PromptSFT(lm, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    batch = {"prompt": [" a ", "bcd"], "columns": {"target": ["xy", "z"]}}
    expected = []
    for prompt, target in zip(("a Rephrase:", "bcd Rephrase:"), (" xy", " z")):
        ids = lm.tokenizer(prompt + target, return_tensors="pt").input_ids
        ids = torch.cat([ids, torch.tensor([[lm.tokenizer.eos_token_id]])], 1)
        expected.append(lm.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-len(target) - 1 :, 0])
    torch.testing.assert_close(m.batch_loss(batch), -torch.cat(expected).mean())
    data = prompts(2, 30, columns={"target": ["xy", "z"]})
    trainer(tmp_path).fit(m, data)
    assert m.batch_loss({"prompt": ["p0", "p1"], "columns": {"target": ["xy", "z"]}}) < 1.0
    assert (tmp_path / "writer/model.safetensors").is_file()
    with pytest.raises(ValueError, match="learns to write the column target"):
        m.batch_loss({"prompt": ["a"], "columns": {}})
