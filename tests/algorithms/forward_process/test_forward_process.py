"""The loop of the family: samples, their times, and the old policies."""

from unittest import mock

import lightning as L
import pytest
import torch
from online import forward_process
from parts import ADAPTERS, FAMILIES, Darkness, T, alone, by_name, methods_of, move, prompts, sgd, spy, tiny, trainer

from lit_align.algorithms.forward_process.awm import AWM
from lit_align.algorithms.forward_process.crd import CRD
from lit_align.algorithms.forward_process.dgpo import DGPO
from lit_align.algorithms.forward_process.forward_process import ForwardProcess, ramp
from lit_align.algorithms.forward_process.nft import DiffusionNFT
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def test_decays_of_the_papers():
    nft = lambda i: ramp(i, 0.0, 0.001, 0.5)
    assert [nft(i) for i in (0, 1, 100, 500, 2000)] == pytest.approx([0, 0.001, 0.1, 0.5, 0.5])
    late = lambda i: ramp(i, 0.0, 0.0075, 0.999, 75)
    assert [late(i) for i in (0, 75, 76, 1000)] == pytest.approx([0, 0, 0.0075, 0.999])
    assert ramp(10, 0.25, 0.005, 0.999) == pytest.approx(0.3)


def test_a_prompts_samples_lie_in_a_row_with_their_advantages():
    scores = T([[0.1, 0.5], [0.4, 0.5], [0.4, 0.8]])  # (K, B)

    class Given(Darkness):
        def forward(self, images, prompts):
            assert images[:, 0, 0, 0].tolist() == [1, 2, 3, 10, 20, 30] and prompts == list("pppqqq")
            return scores.T.flatten()

    method = alone(forward_process(DiffusionNFT, reward=Given()))
    drawn = [T([n, 10.0 * n]).view(2, 1, 1, 1).expand(2, *method.policy.latent_shape) for n in (1, 2, 3)]
    mock.patch.object(method, "draw_latents", side_effect=drawn).start()
    mock.patch.object(method.policy, "decode", lambda z: z).start()
    found = method.collect({"prompt": ["p", "q"], "index": [0, 1]})
    assert found["x_0"][:, 0, 0, 0].tolist() == [1, 2, 3, 10, 20, 30]
    std = scores.flatten().std(correction=0) + 1e-4
    torch.testing.assert_close(found["advantage"], ((scores - scores.mean(0)) / std).T.flatten())


@pytest.mark.parametrize("cls", methods_of(ForwardProcess), **by_name)
def test_every_sample_is_visited_once_at_each_of_its_times(cls):
    kwargs = {"off_policy": True} if cls is AWM else {}
    method = alone(forward_process(cls, steps=10, updates=2, minibatch=7, **kwargs))
    t = method.times(12)
    parts = [[(m["row"], m["step"]) for m in part] for part in method.optimizer_steps({"t": t})]
    seen = [(r, s) for part in parts for rows, steps in part for r, s in zip(rows.tolist(), steps.tolist())]
    assert len(parts) == 2 and sorted(seen) == [(r, s) for r in range(12) for s in range(t.shape[1])]
    first, second = ({r for rows, _ in part for r in rows.tolist()} for part in parts)
    assert len(first) == len(second) == 6 and not first & second  # each sample belongs to one update
    for rows, steps in parts[0]:
        assert len(rows) <= 7
        if method.grouped:
            assert (rows.view(-1, 3) == rows.view(-1, 3)[:, :1] + torch.arange(3)).all() and (
                rows.view(-1, 3)[:, 0] % 3 == 0
            ).all()
            assert (t[rows, steps].view(-1, 3).diff(dim=1) == 0).all()


def test_times_are_the_rollouts():
    grid = Sampler(10, 1.0).timesteps(tiny(StableDiffusion3))[:-1].tolist()
    nft = alone(forward_process(DiffusionNFT, steps=10)).times(300)
    assert nft.shape == (300, 9) and all(len(set(row)) == 9 and set(row) <= set(grid) for row in nft.tolist())
    assert all((nft == t).any() for t in grid)  # whatever is left out, it is not always the same
    dgpo = alone(forward_process(DGPO, steps=10)).times(300)
    assert dgpo.shape == (300, 4) and all(len(set(row)) == 4 for row in dgpo.tolist())
    assert set(dgpo.flatten().tolist()) == set(grid[:7])
    awm = alone(forward_process(AWM, steps=14, fraction=0.9)).times(300)
    grid = Sampler(14, 1.0).timesteps(tiny(StableDiffusion3))[:-1].tolist()
    for edges, times in (
        ([1, 2, 4, 6, 8, 10, 12], awm),
        ([0, 2, 4, 6, 8, 10, 12], alone(forward_process(AWM, steps=14, min_step=0)).times(300)),
    ):
        for j, column in enumerate(times.T.tolist()):  # edges: first + (12 - first) j / 6, rounded down
            assert {grid.index(t) for t in column} == set(range(edges[j], edges[j + 1]))


@FAMILIES
@ADAPTERS
def test_a_visit_sees_the_policy_the_old_one_and_the_guided_reference_at_one_place(family, adapter):
    method = alone(forward_process(CRD, tiny(family, adapter), reference_guidance=3.0))
    policy, others = method.policy, [tiny(family, adapter) for _ in range(2)]
    move(policy)
    policy.update_old()
    move(others[0])
    move(policy, seed=1)
    x_0, t = torch.randn(3, *policy.latent_shape), policy.process.timesteps(5)[2:3].expand(3, 1)
    m = {"x_0": x_0, "t": t, "advantage": T([1.0, 2.0, 3.0]), "cond": policy.condition(["a"])}
    v = method.noised_batch(m | {"row": torch.arange(3), "step": torch.zeros(3, dtype=torch.long)})
    a, s = policy.process.alpha(v.t[0]), policy.process.sigma(v.t[0])
    eps = (v.x_t - a * x_0) / s
    torch.testing.assert_close(v.target, eps - x_0 if family is StableDiffusion3 else eps)
    cond, again = policy.condition(["a"] * 3), lambda p, scale=1.0: p.denoise(v.x_t, v.t, cond, scale).detach()
    torch.testing.assert_close(v.pred.detach(), again(policy))
    torch.testing.assert_close(v.old, again(others[0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(v.ref, again(others[1], 3.0), atol=1e-5, rtol=1e-4)
    assert v.pred.requires_grad and not v.old.requires_grad and not v.ref.requires_grad
    assert not torch.allclose(v.pred, v.old, atol=1e-5) and not torch.allclose(v.ref, again(others[1]), atol=1e-5)


def test_a_sample_is_noised_at_its_own_time_under_its_own_prompt():
    method = alone(forward_process(CRD))
    policy = method.policy
    grid = policy.process.timesteps(5)[:4]
    x_0, t = torch.randn(6, *policy.latent_shape), torch.stack([grid.roll(i) for i in range(6)])
    cond = policy.condition(["a", "b"])  # three samples of each
    m = {"x_0": x_0, "t": t, "advantage": torch.arange(6.0), "cond": cond, "row": T([4, 0, 5]), "step": T([1, 3, 0])}
    with spy(policy, "denoise") as denoise:
        v = method.noised_batch(m)
    assert v.advantage.tolist() == [4, 0, 5] and torch.equal(v.x_0, x_0[[4, 0, 5]])
    assert torch.equal(v.t, torch.stack([t[4, 1], t[0, 3], t[5, 0]]))
    calls = [call for call in denoise.call_args_list if len(call.args[1]) == 3]  # without guidance's own, of both branches
    assert len(calls) == 3
    for call in calls:
        assert torch.equal(call.args[1], v.t) and torch.equal(call.args[2]["text"], cond["text"][[1, 0, 1]])


def test_the_old_policy_follows_by_the_schedule(tmp_path):
    method = forward_process(DiffusionNFT, decay=(0.1, 0.2, 0.5, 0))
    with spy(method.policy, "update_old") as update:
        trainer(tmp_path).fit(method, prompts(2, 3))
    assert [call.args[0] for call in update.call_args_list] == pytest.approx([0.3, 0.5, 0.5])  # after steps 1, 2 and 3


def drawn_by(method, batch):
    """The policies that draw a batch's samples: None for the one that is trained, or a name."""
    seen, draw = [], method.draw_latents
    with mock.patch.object(method, "draw_latents", lambda prompts: seen.append(method.policy.versions.active) or draw(prompts)):
        method.collect(batch)
    return seen


@pytest.mark.parametrize(
    "cls,others",
    [(DiffusionNFT, ["old"]), (AWM, [None]), (CRD, ["sampling"])],
    ids=lambda c: getattr(c, "__name__", None),
)
def test_who_draws(cls, others):
    method = alone(forward_process(cls))
    assert drawn_by(method, {"prompt": ["a"], "index": [0]}) == others * 3


@pytest.mark.parametrize("cls", [DGPO, CRD], ids=lambda c: c.__name__)
def test_a_group_has_several_samples(cls):
    with pytest.raises(ValueError, match="samples_per_prompt to 2 or more"):
        forward_process(cls, samples_per_prompt=1)


@pytest.mark.parametrize("cls,adapter", [(CRD, LoRA(rank=2)), (DiffusionNFT, Full())], ids=["CRD-lora", "NFT-full"])
def test_old_policies_survive_a_checkpoint_and_are_left_out_of_a_test(tmp_path, cls, adapter):
    def make_again():
        L.seed_everything(3, verbose=False)
        return forward_process(cls, tiny(StableDiffusion, adapter), steps=2, decay=(0.5, 0.0, 0.5, 0), optimizer=sgd(1e-2),
                    sampler=Sampler(2, 1.0), rewards=[Darkness()])  # fmt: skip

    whole = make_again()
    trainer(tmp_path, max_steps=4, max_epochs=-1).fit(whole, prompts(2, 4))
    half = make_again()
    t = trainer(tmp_path, max_steps=2, max_epochs=-1)
    t.fit(half, prompts(2, 4))
    t.save_checkpoint(tmp_path / "half.ckpt")
    rest = make_again()
    trainer(tmp_path, max_steps=4, max_epochs=-1).fit(rest, prompts(2, 2), ckpt_path=tmp_path / "half.ckpt")
    a, b = whole.state_dict(), rest.state_dict()
    assert a.keys() == b.keys() and any(".old." in k for k in a) and any(".sampling." in k for k in a) == (cls is CRD)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)
    old = next(k for k in a if ".old." in k and "lora_A" not in k)
    assert not torch.equal(a[old], a[old.replace(".old.", ".default.").replace("_frozen.default.", "denoiser.")])
    tested, batch = make_again(), {"prompt": ["a"], "index": [0], "seed": [0]}
    base = tested.sample(batch)["image"]
    with spy(tested, "reference_sample") as reference:
        trainer(tmp_path).test(tested, torch.utils.data.DataLoader([batch], batch_size=None), ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(reference.results[0]["image"], base)
    tuned = half.state_dict()
    assert all(torch.equal(v, tuned[k]) for k, v in tested.state_dict().items())
