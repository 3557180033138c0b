"""Merging LoRA experts by the activity of their weights."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import LoRA
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.tools.merge import merge

PROMPTS = [["a red circle", "two red squares"], ["a cross"]]
FILE = "pytorch_lora_weights.safetensors"


def expert(family, folder, seed, scale=1.0, **lora):
    """A LoRA of the tiny pipeline with random A and B, and the folder it is saved in."""
    policy = family("tiny", LoRA(**{"rank": 2, "alpha": 4, **lora}))
    torch.manual_seed(seed)
    for p in policy.parameters():
        if p.requires_grad:
            p.data = scale * torch.randn_like(p)
    policy.save(str(folder))
    return policy, str(folder)


def seen_by(policy, prompts):
    """|w_ij| times the mean |x_j| of every LoRA layer's inputs, kept one by one while `prompts` are sampled."""
    inputs = {}
    for name, m in policy.denoiser.named_modules():
        if name.endswith((".lora_A.default", ".lora_B.default")):
            m.register_forward_hook(lambda m, x, y, name=name: inputs.setdefault(name, []).append(x[0].reshape(-1, x[0].shape[-1])))
    with torch.no_grad():
        Sampler(2, 3.0)(policy, prompts, seeds=list(range(len(prompts))))
    weights = dict(policy.denoiser.named_parameters())
    return {name: (weights[f"{name}.weight"], (weights[f"{name}.weight"][:, None, :] * torch.cat(x)[None]).abs().mean(1)) for name, x in inputs.items()}


def written(folder, prompts):
    """A prompt file for each expert."""
    files = [folder / f"{i}.jsonl" for i in range(len(prompts))]
    for file, texts in zip(files, prompts):
        file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in texts))
    return [str(file) for file in files]


def merged(family, folders, prompts, out):
    merge(family("tiny"), folders, written(out.parent, prompts), str(out), Sampler(2, 3.0))
    return load_file(out / FILE)


@pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL, StableDiffusion3])
def test_every_weight_is_the_most_active_experts(family, tmp_path):
    (a, at_a), (b, at_b) = (expert(family, tmp_path / name, seed) for seed, name in enumerate("ab"))
    seen_a, seen_b = seen_by(a, PROMPTS[0]), seen_by(b, PROMPTS[1])
    merged(family, [at_a, at_b], PROMPTS, tmp_path / "out")
    plain = family("tiny").pipe  # plain diffusers loads it
    plain.load_lora_weights(str(tmp_path / "out"), adapter_name="default")
    layers = dict(getattr(plain, a.denoiser_name).named_modules())
    shares = []
    for name, (w_a, active_a) in seen_a.items():
        w_b, active_b = seen_b[name]
        wins = active_a >= active_b
        clear = (active_a - active_b).abs() > 1e-5 * (active_a + active_b)
        scale = 2 if ".lora_B." in name else 1  # alpha / rank, which files hold in B
        assert torch.equal(layers[name].weight[clear], scale * torch.where(wins, w_a, w_b)[clear])
        shares.append(wins.float().mean())
    assert seen_a and 0.2 < torch.stack(shares).mean() < 0.8  # each of them wins somewhere


def test_an_expert_that_is_always_the_most_active_comes_out_whole(tmp_path):
    _, a = expert(StableDiffusion, tmp_path / "a", 0)
    _, b = expert(StableDiffusion, tmp_path / "b", 1, scale=0.0)
    out = merged(StableDiffusion, [b, a], PROMPTS, tmp_path / "out")
    want = load_file(tmp_path / "a" / FILE)
    assert out.keys() == want.keys() and all(torch.equal(out[k], want[k]) for k in want)


def test_one_expert_merges_to_itself_from_the_command_line(tmp_path):
    policy, folder = expert(StableDiffusion, tmp_path / "a", 0)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"caption": p}) + "\n" for p in PROMPTS[0]))
    args = ["merge", "--policy", "StableDiffusion", "--policy.pretrained", "tiny", "--sampler", "Sampler", "--sampler.steps", "2", "--column", "caption"]
    main([*args, "--experts", f"[{folder}]", "--prompts", f"[{tmp_path}/p.jsonl]", "--out", str(tmp_path / "out")])
    plain, x = StableDiffusion("tiny"), torch.randn(2, *policy.latent_shape)
    plain.pipe.load_lora_weights(str(tmp_path / "out"))
    with torch.no_grad():
        torch.testing.assert_close(Sampler(2)(plain, PROMPTS[0], x=x).x, Sampler(2)(policy, PROMPTS[0], x=x).x)


def test_experts_that_are_not_alike_are_refused(tmp_path):
    _, a = expert(StableDiffusion, tmp_path / "a", 0)
    for k, lora in enumerate(({"rank": 4}, {"target_modules": ["to_q"]})):
        _, b = expert(StableDiffusion, tmp_path / str(k), 1, **lora)
        with pytest.raises(ValueError, match="must be alike"):
            merged(StableDiffusion, [a, b], PROMPTS, tmp_path / "out")


def test_each_expert_needs_its_prompts(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["merge", "--policy", "StableDiffusion", "--policy.pretrained", "tiny", "--experts", "[a, b]", "--prompts", "[a.txt]", "--out", "m"])
    assert "2 experts and 1 prompt files" in capsys.readouterr().err
