"""PAE's training: three heads, one value."""

import torch
from parts import BlackBox, alone, prompts, tiny, trainer

from lit_align.algorithms.prompt.pae_ppo import PAEPPO
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Frozen
from lit_align.steering.pae import WEIGHTS, DynamicLM


def method(**kwargs):
    how = {"reward": BlackBox(), "rollout": Sampler(2, 1.0), "max_new_tokens": 4, "minibatch": 3, "images_per_prompt": 1}
    return PAEPPO(language_model=DynamicLM("tiny"), policy=tiny(adapter=Frozen()), **how | kwargs)


def test_targets_and_loss_by_hand():
    m, g = method(kl_weight=0.5, clip_range=0.2, value_clip=0.4), torch.Generator().manual_seed(0)
    made = torch.tensor([[True, True, False], [True, True, True]])
    heads = ("token", "weight", "window")
    old, start, now = ({h: -torch.rand(2, 3, generator=g) for h in heads} for _ in range(3))
    v0, v1, reward = torch.randn(2, generator=g), torch.randn(2, generator=g), torch.tensor([1.0, -1.0])
    old["value"], now["value"] = v0[:, None].expand(2, 3), v1[:, None].expand(2, 3)
    learnt, actor = m.targets(old, start, made, reward), 0
    for h in heads:
        d = old[h] - start[h]
        kl = torch.stack([(d[0, :2].exp() - 1 - d[0, :2]).mean(), (d[1].exp() - 1 - d[1]).mean()])
        a = reward - 0.5 * kl - v0
        torch.testing.assert_close(learnt[h], a)
        ratio, each = (now[h] - old[h]).exp()[made], a[:, None].expand(2, 3)[made]
        actor = actor + torch.maximum(-each * ratio, -each * ratio.clamp(0.8, 1.2)).mean()
    target = learnt["token"] + v0
    clipped = v0 + (v1 - v0).clamp(-0.4, 0.4)
    critic = torch.maximum((v1 - target) ** 2, (clipped - target) ** 2).mean()
    m.now = lambda batch: now
    torch.testing.assert_close(m.batch_loss({"made": made, "old": old, "learnt": learnt, "share": 1.0}), actor + critic)


def test_likelihoods_are_of_the_choices_that_were_drawn():
    m = method()
    for head in m.language_model.heads.values():
        torch.nn.init.normal_(head.weight.data, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    written = m.write(["ab", "c"])
    got = m.evaluate(m.language_model, written)
    lm = m.language_model
    hidden = lm.model(written.ids[:1, -5:-1], output_hidden_states=True).hidden_states[-1] if written.mask[0].all() else None
    row = int(written.mask[:, 0].argmax())  # the longer prompt has no padding
    ids = written.ids[row : row + 1]
    hidden = lm.model(ids[:, :-1], output_hidden_states=True).hidden_states[-1][0, -written.made.shape[1] :]
    for name, head in lm.heads.items():
        log_p = head(hidden).log_softmax(-1)
        expected = torch.stack([log_p[a, c] for a, c in enumerate(written.choices[name][row])])
        torch.testing.assert_close(got[name][row], expected, atol=1e-5, rtol=1e-5)


def test_training_moves_all_heads_and_leaves_them_on_disk(tmp_path):
    m = method(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    trainer(tmp_path).fit(m, prompts(6, 2, columns={}))
    moved = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert {"language_model.heads.weight.weight", "language_model.heads.window.weight", "value.weight"} <= moved
    assert all(n.startswith(("language_model.", "value.")) for n in moved)
    again = DynamicLM(str(tmp_path / "writer"))
    for name, head in m.language_model.heads.items():
        assert torch.equal(again.heads[name].weight, head.weight)


def test_it_learns_the_weight_that_is_rewarded():
    m = alone(method(minibatch=32, kl_weight=0.0))
    best = WEIGHTS.index(1.25)
    chosen = lambda written: ((written.choices["weight"] == best) * written.made).sum(1) / written.made.sum(1)
    m.texts = lambda asked, written: [f"{share}" for share in chosen(written).tolist()]
    m.score = lambda batch, texts, reward: torch.tensor([float(text) for text in texts])
    torch.manual_seed(0)
    optimizer, seen = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2), []
    for _ in range(25):
        found = m.collect({"prompt": ["x"] * 32, "columns": {}, "index": list(range(32)), "seed": list(range(32))})
        seen.append((found["choices"]["weight"] == best)[found["made"]].float().mean())
        for (part,) in m.optimizer_steps(found):
            optimizer.zero_grad()
            m.batch_loss(part).backward()
            optimizer.step()
    assert seen[-1] > seen[0] + 0.2
