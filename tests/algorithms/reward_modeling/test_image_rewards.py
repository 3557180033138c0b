"""What the objectives of reward modelling share: modes, frozen tensors, and the use of what they write."""

import json

import pytest
import torch
from blip_parts import artefact
from parts import T, trainer
from reward_parts import clip_folder
from torch import nn

from lit_align.algorithms.reward_modeling.bootstrap_ensemble import BootstrapEnsemble
from lit_align.algorithms.reward_modeling.bradley_terry import BradleyTerry
from lit_align.algorithms.reward_modeling.preference_mixture import PreferenceMixture
from lit_align.cli import main
from lit_align.rewards.ensemble import Ensemble
from lit_align.rewards.image_reward import ImageReward
from lit_align.rewards.reward import Reward
from lit_align.shapes.reward import ShapesReward

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ONE_CPU = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.precision", "32-true"]


def batch(n=4, **more):
    win, lose = torch.rand(2, n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"prompt": ["a red circle"] * n, "index": list(range(n)), "columns": {}, "win": win, "lose": lose, **more}


def loader(*batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def test_dropout_is_on_in_training_alone_and_frozen_tensors_stay(tmp_path):
    """ImageReward has dropout in its MLP and, by its med_config.json, in its text encoder, and is built in eval mode."""
    artefact(tmp_path / "published", "ImageReward.pt")
    reward, modes, scores = ImageReward(str(tmp_path / "published"), str(tmp_path / "published")), [], []

    class Watched(BradleyTerry):
        def loss(self, batch, stage):
            modes.append((stage, {m.training for m in self.reward.modules() if isinstance(m, nn.Dropout)}))
            with torch.no_grad():
                scores.append((stage, (self.reward(batch["win"], batch["prompt"]) - self.reward(batch["win"], batch["prompt"])).abs().max()))
            return super().loss(batch, stage)

    freeze = [r"vision\.embeddings", r"vision\..*layers\.0\.", r"text\.encoder\.layer\.0\."]
    method = Watched(reward=reward, freeze=freeze, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    before = {name: p.detach().clone() for name, p in reward.named_parameters()}
    trainer(tmp_path, max_epochs=2).fit(method, loader(batch()), loader(batch()))
    assert {stage: mode for stage, mode in modes} == {"train": {True}, "val": {False}} and len(modes) >= 4
    assert all((gap > 0) == (stage == "train") for stage, gap in scores)
    moved = {name for name, p in reward.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith("vision.embeddings") or ".layer.0." in name or "layers.0." in name}
    assert frozen and not moved & frozen and {"mlp.7.weight", "text.encoder.layer.1.output.dense.weight"} <= moved
    loaded = ImageReward(str(tmp_path / "reward"), str(tmp_path / "reward")).requires_grad_(False).train()  # as a method's reward
    first, second = (loaded(batch()["win"], ["a red circle"] * 4) for _ in range(2))
    assert torch.equal(first, second)


def test_a_pattern_that_freezes_nothing_is_named():
    with pytest.raises(ValueError, match="freeze: no tensor of ShapesReward has a name with 'vision' in it"):
        BradleyTerry(reward=ShapesReward(None, 16, 1), freeze=["vision"])
    with pytest.raises(ValueError, match="reward: proxy has no weights to train"):
        BradleyTerry(reward=ShapesReward(None, 16, 1), freeze=["."])
    with pytest.raises(ValueError, match="BootstrapEnsemble has 1 reward: name 2 or more"):
        BootstrapEnsemble(rewards={"a": ShapesReward(None, 16, 1)})


class Red(Reward):
    """A weight for each colour channel."""

    name, differentiable = "channels", True

    def __init__(self, checkpoint=None):
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(3))

    def forward(self, images, prompts):
        return images.mean((2, 3)) @ self.w


def test_em_finds_two_groups_and_writes_them(tmp_path):
    """Annotators 0 to 5 like red, the others dislike it; one reward would learn nothing."""
    torch.manual_seed(1)
    g, batches = torch.Generator().manual_seed(2), []
    for _ in range(60):
        win, lose = torch.rand(2, 24, 3, 4, 4, generator=g) + torch.rand(2, 24, 3, 1, 1, generator=g)
        who = torch.randint(0, 12, (24,), generator=g)
        swap = ((win - lose).mean((2, 3))[:, 0] > 0) != (who < 6)
        win[swap], lose[swap] = lose[swap].clone(), win[swap].clone()
        batches.append({"prompt": ["p"] * 24, "index": list(range(24)), "columns": {"user_id": who.tolist()}, "win": win, "lose": lose})
    method = PreferenceMixture(rewards={"a": Red(), "b": Red()}, optimizer=lambda p: torch.optim.AdamW(p, lr=0.2))
    t = trainer(tmp_path)
    t.fit(method, loader(*batches))
    a, b = (part.w[0].item() for part in method.reward.parts.values())
    assert min(a, b) < -1 and max(a, b) > 1
    found = json.loads((tmp_path / "reward/annotators.json").read_text())
    likes_red = "a" if a > b else "b"
    assert len(found) == 12 and all((p[likes_red] > 0.9) == (int(who) < 6) for who, p in found.items())
    assert t.callback_metrics["train/accuracy"] > 0.9 and 0.3 < t.callback_metrics["train/group/a"] < 0.7
    assert (tmp_path / "reward/a/reward.safetensors").exists() and (tmp_path / "reward/b/reward.safetensors").exists()


def test_an_ensemble_that_was_trained_is_what_ensemble_loads(tmp_path):
    torch.manual_seed(0)
    method = BootstrapEnsemble(rewards={n: ShapesReward(None, 16, 1) for n in "ab"}, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    trainer(tmp_path).fit(method, loader(batch(), batch()))
    ensemble = Ensemble({n: ShapesReward(str(tmp_path / f"reward/{n}/reward.safetensors")) for n in "ab"}, k=1.0).requires_grad_(False)
    images, prompts = batch()["win"], batch()["prompt"]
    with torch.no_grad():
        r = torch.stack([part(images, prompts) for part in method.reward.eval().parts.values()], 1)
    assert (r[:, 0] - r[:, 1]).abs().max() > 1e-3
    torch.testing.assert_close(ensemble(images, prompts), r.mean(1) - r.std(1, correction=0))


def test_a_pickscore_is_trained_and_then_rewards_ddpo_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = clip_folder(tmp_path / "clip")
    where = ["--model.reward.init_args.pretrained", clip, "--model.reward.init_args.tokenizer", clip]
    data = ["--data.path", "checkpoints/shapes-sd/pairs/train.parquet", "--data.val_split", "null", "--data.num_workers", "0", "--data.batch_size", "4"]
    cli = main(["fit", "--config", "pickscore", *where, *data, *ONE_CPU, "--trainer.max_steps", "2", "--model.optimizer.lr", "1e-3", "--trainer.default_root_dir", "run", *QUIET])
    trained = cli.model.reward
    assert cli.trainer.global_step == 2 and (tmp_path / "run/reward/model.safetensors").exists()

    reward = ["--model.reward", "PickScore", "--model.reward.pretrained", "run/reward", "--model.reward.tokenizer", "run/reward"]
    few = ["--data.batch_size", "2", "--model.samples_per_prompt", "2", "--model.updates", "1", "--model.rollout.steps", "2", "--trainer.limit_val_batches", "0"]
    cli = main(["fit", "--config", "shapes/ddpo", *reward, *few, "--trainer.max_steps", "1", "--trainer.callbacks", "[]", "--trainer.default_root_dir", "ddpo", *QUIET])
    used, images = cli.model.reward, torch.rand(3, 3, 64, 64)
    assert cli.trainer.global_step >= 1 and cli.trainer.callback_metrics["train/reward"].isfinite()
    prompts = ["a red circle", "two squares", "a cross"]
    torch.testing.assert_close(used(images, prompts), trained.eval()(images, prompts), atol=1e-3, rtol=1e-3)
    assert used.frozen and not torch.equal(T(0.0), used(images, prompts).std())
