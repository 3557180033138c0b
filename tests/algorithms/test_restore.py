"""What a run takes from a checkpoint, and what it refuses to save."""

import pytest
import torch
from parts import Darkness, Level, prompts, trainer
from torch.optim.lr_scheduler import LambdaLR, LinearLR

from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.policy_gradient.dpok import DPOK
from lit_align.algorithms.preference.sft import SFT
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.stable_diffusion import StableDiffusion

NOISY = Sampler(2, 1.0, DDIM(1.0))


def method(adapter=None, cls=DDPO, lr=1e-3, optimizer=torch.optim.AdamW, scheduler=None, **kwargs):
    return cls(
        policy=StableDiffusion("tiny", adapter or LoRA(rank=2)), reward=Darkness(), rollout=NOISY, sampler=NOISY,
        optimizer=lambda p: optimizer(p, lr=lr), lr_scheduler=scheduler, rewards=[Level()], **kwargs,
    )  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    t = trainer(tmp_path, max_steps=2)
    t.fit(method(), prompts(2, 2))
    t.save_checkpoint(tmp_path / "last.ckpt")
    return str(tmp_path / "last.ckpt")


OTHERS = {
    "full": (Full(), "lacks|holds no weight of this policy"),
    "rank": (LoRA(rank=4), r"in shape \(2, \d+\) and this policy has \(4, \d+\)"),
    "more layers": (LoRA(rank=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.2"]), "lacks"),
    "fewer layers": (LoRA(rank=2, target_modules=["to_q"]), "that this policy does not train"),
    "scale": (LoRA(rank=2, alpha=64), "was trained with LoRA alpha 2 and this policy has 64, .* set --model.policy.adapter.alpha 2"),
    "other layers": (LoRA(rank=2, target_modules=["ff.net.2"]), "holds no weight of this policy"),
}


EVERYWHERE = [(how, other) for how in ("predict", "validate", "fit") for other in ("more layers", "scale")]


@pytest.mark.parametrize("how,other", [*EVERYWHERE, *((how, other) for how in ("test", "init_from") for other in OTHERS)])
def test_a_checkpoint_of_another_policy_is_refused_everywhere(tmp_path, checkpoint, how, other):
    adapter, match = OTHERS[other]
    with pytest.raises(ValueError, match=match):
        if how == "init_from":
            m = method(adapter, init_from=checkpoint)
            m.initialise()
        else:
            getattr(trainer(tmp_path), how)(method(adapter), prompts(), ckpt_path=checkpoint, weights_only=False)


def test_a_checkpoint_of_this_policy_is_tested_as_it_was_trained(tmp_path, checkpoint):
    t = trainer(tmp_path)
    t.test(method(), prompts(), ckpt_path=checkpoint, weights_only=False, verbose=False)
    assert t.callback_metrics["test/drift"] > 0


def test_a_method_with_a_value_function_starts_from_the_weights_of_one_without(checkpoint):
    m = method(cls=DPOK, init_from=checkpoint)
    m.initialise()
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    now = dict(m.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in saved.items() if name.endswith("weight"))


def test_init_from_says_that_a_lora_file_is_no_checkpoint():
    with pytest.raises(ValueError, match="init_from takes a .ckpt file"):
        method(init_from="a/pytorch_lora_weights.safetensors").initialise()


@pytest.mark.parametrize("scheduler,want", [
    (None, 1e-5),
    (lambda o: LinearLR(o, 0.1, total_iters=4), 1e-5 * 0.775),  # step 3 of 4 when training ends
    (lambda o: LambdaLR(o, lambda i: 1 / (1 + i)), 1e-5 / 4),
])  # fmt: skip
def test_flags_win_over_the_hyperparameters_of_a_checkpoint(tmp_path, scheduler, want):
    first = trainer(tmp_path, max_steps=2)
    first.fit(method(scheduler=scheduler), prompts(2, 2))
    first.save_checkpoint(tmp_path / "last.ckpt")
    t = trainer(tmp_path, max_steps=3, max_epochs=9)
    t.fit(method(lr=1e-5, scheduler=scheduler), prompts(2, 2), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert t.global_step == 3 and t.optimizers[0].param_groups[0]["lr"] == pytest.approx(want, rel=1e-6)


def test_the_state_of_another_optimizer_is_refused(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="holds the state of AdamW and this run's optimizer is SGD"):
        trainer(tmp_path).fit(method(optimizer=torch.optim.SGD), prompts(), ckpt_path=checkpoint, weights_only=False)


@pytest.mark.parametrize("cls", [DDPO, SFT], ids=lambda c: c.__name__)
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_moves_no_weight(tmp_path, cls, max_norm):
    m = method() if cls is DDPO else SFT(policy=StableDiffusion("tiny", LoRA(rank=2)))
    m.max_grad_norm = max_norm
    p = next(p for p in m.parameters() if p.requires_grad)
    p.register_hook(lambda grad: grad * float("nan"))
    before = [p.detach().clone() for p in m.parameters()]
    batches = prompts(2, 1, image=torch.rand(2, 3, 16, 16))
    t = trainer(tmp_path, gradient_clip_val=max_norm if cls is SFT else None)
    with pytest.raises(FloatingPointError, match="the gradient is nan at step 0, and no weight was changed"):
        t.fit(m, batches)
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    m = method()
    t = trainer(tmp_path, max_steps=1)
    t.fit(m, prompts())
    next(p for p in m.parameters() if p.requires_grad).data.view(-1)[0] = float("inf")
    with pytest.raises(FloatingPointError, match="is not finite: nothing was saved"):
        t.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_the_default_optimizer_suits_what_is_trained():
    for adapter, lr in ((LoRA(rank=2), 1e-4), (Full(), 1e-5)):
        m = DDPO(policy=StableDiffusion("tiny", adapter), reward=Darkness())
        assert m.configure_optimizers().param_groups[0]["lr"] == lr
