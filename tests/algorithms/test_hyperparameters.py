"""A checkpoint rebuilds the module of a run of the command line; hyperparameters are plain and reach TensorBoard."""

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lit_align.algorithms.algorithm import Algorithm
from lit_align.algorithms.policy_gradient.ddpo import DDPO
from lit_align.algorithms.preference.dpo import DiffusionDPO
from lit_align.cli import main
from lit_align.policies.adapters import LoRA
from lit_align.policies.stable_diffusion import StableDiffusion

RUN = ["fit", "--config", "shapes/dpo.yaml", "--config", "smoke.yaml"]


def trained(module):
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def test_the_module_of_a_run_is_rebuilt_from_its_checkpoint(tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    flags = ["--model.beta", "7", "--model.optimizer.lr", "1e-3"]
    cli = main([*RUN, *flags])
    folder = "checkpoints/shapes/dpo+smoke/beta=7,lr=0.001"
    path = f"{folder}/checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)["hyper_parameters"]
    assert saved["beta"] == 7 and saved["policy"]["class_path"].endswith("StableDiffusion")
    logged = yaml.safe_load(open(f"{folder}/hparams.yaml"))
    assert logged["beta"] == 7 and logged["optimizer"]["init_args"]["lr"] == 1e-3
    recwarn.clear()
    for cls in (DiffusionDPO, Algorithm):
        module = cls.load_from_checkpoint(path)
        assert type(module) is DiffusionDPO and module.beta == 7 and module.hparams == cli.model.hparams
        assert module.optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 1e-3
        assert [type(r).__name__ for r in module.rewards] == ["ShapesJudge", "ShapesAmbiguity"]
        ours, theirs = trained(module), trained(cli.model)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    with module.policy.reference():  # the weights before training
        before = StableDiffusion("tiny").state_dict()
        ours = {n: p for n, p in module.policy.denoiser.named_parameters()}
        assert all(torch.equal(ours[n.removeprefix("denoiser.")], p) for n, p in before.items() if n.startswith("denoiser."))
    assert not any("Found keys" in str(w.message) for w in recwarn)
    main(["export", *RUN[1:], *flags])
    assert StableDiffusion(f"{folder}/export/last")


def pairs():
    images = torch.rand(2, 2, 3, 64, 64)
    rows = [{"prompt": "a", "index": i, "win": images[0, i], "lose": images[1, i]} for i in range(2)]
    stack = lambda rows, k: torch.stack([r[k] for r in rows]) if k in ("win", "lose") else [r[k] for r in rows]
    return DataLoader(rows, 2, collate_fn=lambda rows: {k: stack(rows, k) for k in rows[0]})


def test_a_module_built_in_python_says_what_it_needs(tmp_path):
    method = DiffusionDPO(policy=StableDiffusion("tiny", LoRA(rank=2), resolution=64), beta=7)
    assert dict(method.hparams) == {"beta": 7}
    trainer = L.Trainer(max_steps=1, default_root_dir=tmp_path, accelerator="cpu", logger=False)
    trainer.fit(method, pairs())
    assert trainer.optimizers[0].defaults["lr"] == 1e-4
    path = next(tmp_path.rglob("*.ckpt"))
    with pytest.raises(ValueError, match=r"call DiffusionDPO.load_from_checkpoint\(path, policy=...\)"):
        DiffusionDPO.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, reward=..., policy=...\)|path, policy=..., reward=...\)"):
        DDPO.load_from_checkpoint(path)
    again = DiffusionDPO.load_from_checkpoint(path, policy=StableDiffusion("tiny", LoRA(rank=2), resolution=64))
    assert again.beta == 7 and all(torch.equal(p, trained(method)[n]) for n, p in trained(again).items())
