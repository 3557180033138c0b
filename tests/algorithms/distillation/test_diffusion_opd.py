"""DiffusionOPD's distances, routing and teachers."""

import copy
from unittest import mock

import pytest
import torch
from parts import FAMILIES, alone, move, prompts, rollout, sgd, tiny, trained, trainer

from lit_align.algorithms.distillation.diffusion_opd import DiffusionOPD
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.loading import denoiser_of
from lit_align.policies.stable_diffusion import StableDiffusion


def teacher(folder, seed, adapter=None, rank=2):
    """An aligned policy, saved as a run would."""
    policy = tiny(StableDiffusion, adapter or LoRA(rank=rank))
    move(policy, 0.05, seed)
    policy.save(str(folder))
    return policy


def saved_pipeline(folder):
    teacher(folder / "pipeline", 1, Full())
    return folder / "pipeline"


def make(teachers, adapter=None, **kwargs):
    policy = kwargs.pop("policy", None) or tiny(StableDiffusion, adapter)
    options = {"rollout": rollout(policy, 3), "minibatch": 4, "optimizer": sgd(1e-2)} | kwargs
    return DiffusionOPD(policy=policy, teachers=teachers, **options)


def by_hand(method, batch, teachers, sampler, trajectory):
    """Mean over steps of the KL between the steps' Gaussians, each prompt with its own teacher."""
    total = []
    for i, (prompt, own) in enumerate(zip(batch["prompt"], teachers)):
        for k in range(trajectory.t.shape[1]):
            given = trajectory.x_t[i : i + 1, k], trajectory.t[i : i + 1, k], trajectory.s[i : i + 1, k]
            mine = sampler.gaussian(method.policy, *given, method.policy.condition([prompt]))[0]
            other = sampler.gaussian(own, *given, own.condition([prompt]))[0]
            total.append(mine.kl(other) if mine.std.any() else (mine.mean - other.mean).square().flatten(1).mean(1))
    return torch.cat(total).mean()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_loss_is_the_kl_to_each_prompts_teacher(tmp_path, eta):
    a, b = teacher(tmp_path / "a", 1), teacher(tmp_path / "b", 2, rank=4)
    sampler = Sampler(3, 2.0, DDIM(eta))
    method = alone(make({"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}, rollout=sampler, route="task"))
    move(method.policy, 0.05, 3)
    batch = {"prompt": ["p", "q", "r"], "columns": {"task": ["b", "a", "b"]}}
    collected = method.collect(batch)
    (minibatches,) = list(method.optimizer_steps(collected))
    loss = sum(method.batch_loss(m) for m in minibatches)
    if eta:  # its last step is noisy too, so all are compared by their KL
        assert (collected[0].log_prob != 0).any()
    want = by_hand(method, batch, [b, a, b], sampler, collected[0])
    torch.testing.assert_close(loss, want, rtol=2e-3, atol=1e-6)


def test_a_step_brings_the_policy_nearer_and_moves_its_own_adapter_alone(tmp_path):
    own = teacher(tmp_path / "a", 1)
    method = make({"a": str(tmp_path / "a")}, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3), rollout=Sampler(3, 1.0, DDIM(0.0)))
    before = {n: p.detach().clone() for n, p in method.policy.denoiser.named_parameters()}

    def distance():
        x, cond = torch.randn(8, *own.latent_shape, generator=torch.Generator().manual_seed(0)), own.condition(["p"] * 8)
        t = torch.full((8,), 500)
        with torch.no_grad():
            return (method.policy.denoise(x, t, cond) - own.denoise(x, t, cond)).square().mean().item()

    far = distance()
    trainer(tmp_path, max_epochs=8).fit(method, prompts(2, 2))
    after = dict(method.policy.denoiser.named_parameters())
    assert {n for n in before if n in after and not torch.equal(before[n], after[n])} == {n for n, p in after.items() if p.requires_grad and ".default." in n and n in before}
    assert distance() < 0.8 * far
    assert not any(".a." in n for n in method.state_dict())  # teachers are in no checkpoint


def test_a_policy_trained_in_full_takes_the_denoisers_of_pipelines(tmp_path):
    own = teacher(tmp_path / "a", 1, Full())
    method = alone(make({"a": str(tmp_path / "a")}, Full()))
    kept, given = dict(method.policy._frozen["a"].named_parameters()), dict(own.denoiser.named_parameters())
    assert all(torch.equal(kept[n], given[n]) and not kept[n].requires_grad for n in given) and kept.keys() == given.keys()
    assert len(trained(method.policy)) == len(given)


@FAMILIES
def test_a_student_that_is_its_teacher_does_not_move(tmp_path, family):
    method = alone(make({"same": "tiny"}, policy=tiny(family)))
    with mock.patch.object(method.policy.versions, "perturb"):
        method.policy.versions.names.discard("same")
    named = dict(method.policy.denoiser.named_parameters())
    for n, p in named.items():
        if ".same." in n:
            p.data.copy_(named[n.replace(".same.", ".default.")])
    (minibatches,) = list(method.optimizer_steps(method.collect({"prompt": ["a", "b"]})))
    method.policy.versions.names.add("same")
    loss = sum(method.batch_loss(m) for m in minibatches)
    grads = torch.autograd.grad(loss, trained(method.policy))
    assert loss < 1e-10 and all(g.abs().max() < 1e-6 for g in grads)


def test_without_a_route_prompts_take_the_teachers_in_turn():
    method = make({"a": "tiny", "b": "tiny"}, samples_per_prompt=2)
    rows = {"prompt": ["p", "p", "q", "q", "r", "r"], "columns": {}}
    assert method.teachers_of(rows) == ["a", "a", "b", "b", "a", "a"]


@pytest.mark.parametrize("columns,said", [({}, "no column task; columns are none"), ({"task": ["c"]}, "names 'c', and the teachers are a")])
def test_a_prompt_without_a_teacher_is_named(columns, said):
    with pytest.raises(ValueError, match=said):
        make({"a": "tiny"}, route="task").teachers_of({"prompt": ["p"], "columns": columns})


def test_what_is_no_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name one of model.teachers"):
        make({})
    with pytest.raises(ValueError, match="there is no file or folder nowhere"):
        alone(make({"a": "nowhere"}))
    with pytest.raises(ValueError, match="there is no folder nowhere with a unet"):
        alone(make({"a": "nowhere"}, Full()))
    wide = copy.deepcopy(tiny(StableDiffusion, Full()))
    wide.denoiser.conv_in = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="has other sizes than this StableDiffusionPipeline"):
        denoiser_of(wide, str(saved_pipeline(tmp_path)))
