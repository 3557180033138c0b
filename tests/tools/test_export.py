"""`python -m lit_align export`, the files it writes as other programs read them, and policies that start from such files."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_align.cli import main
from lit_align.diffusion.sampler import Sampler
from lit_align.policies.adapters import Full, LoRA
from lit_align.policies.flux import Flux
from lit_align.policies.saving import KOHYA_FILE, LORA_FILE
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3

PROMPTS = ["a red circle", "two blue squares"]
UNETS, FLOWS = [StableDiffusion, StableDiffusionXL], [StableDiffusion3, Flux]
SMALL = {Flux: {"resolution": 16, "max_sequence_length": 32}}
RUN = ["--config", "shapes/dpo.yaml", "--config", "smoke.yaml"]
WITH_LORA = ["--model.policy.adapter", "LoRA", "--model.policy.adapter.rank", "4", "--model.policy.adapter.alpha", "8"]


def make(family, adapter=None, pretrained="tiny", **kwargs):
    return family(pretrained, adapter, **SMALL.get(family, {}), **kwargs)


def trained(family, seed=1, **lora):
    """A policy with a LoRA of rank 4 and alpha 8, that matters."""
    policy = make(family, LoRA(**{"rank": 4, "alpha": 8} | lora))
    torch.manual_seed(seed)
    for p in policy.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return policy


@torch.no_grad()
def images(policy):
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(5))
    return policy.decode(Sampler(3, 1.0)(policy, PROMPTS, x=x).x)


def with_pipe(family, pipe):
    """A policy whose weights are those of a plain pipeline, with whatever diffusers attached to it."""
    policy = make(family)
    policy.pipe, policy.denoiser = pipe, getattr(pipe, policy.denoiser_name)
    return policy


def loaded_by_diffusers(family, file):
    pipe = make(family).pipe
    pipe.load_lora_weights(str(file))
    return images(with_pipe(family, pipe))


def same(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("family", [*UNETS, *FLOWS], ids=lambda f: f.__name__)
def test_every_format_gives_the_policys_images(family, tmp_path):
    policy = trained(family)
    ours, base = images(policy), images(make(family))
    assert (ours - base).abs().max() > 1e-2
    policy.save(str(tmp_path / "diffusers"))
    same(loaded_by_diffusers(family, tmp_path / "diffusers" / LORA_FILE), ours)
    bare = load_file(tmp_path / "diffusers" / LORA_FILE)  # as a program reads it that ignores the header
    save_file(bare, tmp_path / "bare.safetensors")
    same(loaded_by_diffusers(family, tmp_path / "bare.safetensors"), ours)
    if family in UNETS:
        policy.save(str(tmp_path / "kohya"), format="kohya")
        same(loaded_by_diffusers(family, tmp_path / "kohya" / KOHYA_FILE), ours)
    else:
        with pytest.raises(ValueError, match="format: kohya names the layers of a UNet.*use format: diffusers, which ComfyUI loads"):
            policy.save(str(tmp_path / "kohya"), format="kohya")
    policy.save(str(tmp_path / "merged"), merge=True)
    weights = load_file(tmp_path / "merged" / policy.denoiser_name / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == make(family).denoiser.state_dict().keys()
    same(images(make(family, pretrained=str(tmp_path / "merged"))), ours)


def test_kohyas_keys_are_those_that_comfyui_maps_to_layers(tmp_path):
    """ComfyUI (comfy/lora.py) maps `lora_unet_` + a diffusers layer's name with underscores, and scales by alpha / rank."""
    policy = trained(StableDiffusionXL)
    policy.save(str(tmp_path), format="kohya")
    file, seen = load_file(tmp_path / KOHYA_FILE), 0
    for name, layer in policy.denoiser.named_modules():
        if isinstance(layer, torch.nn.Linear) and f"lora_unet_{name.replace('.', '_')}.alpha" in file:
            raise AssertionError(name)  # adapted layers are wrapped
        if name.endswith(tuple(policy.lora_targets)):
            key = "lora_unet_" + name.replace(".", "_")
            up, down = file.pop(f"{key}.lora_up.weight"), file.pop(f"{key}.lora_down.weight")
            delta = file.pop(f"{key}.alpha") / len(down) * up @ down
            same(delta, layer.get_delta_weight("default"), 1e-6)
            seen += 1
    assert seen and not file


FILES = [*((family, "diffusers") for family in (*UNETS, *FLOWS)), *((family, "kohya") for family in UNETS)]


@pytest.mark.parametrize("family,format", FILES, ids=lambda x: getattr(x, "__name__", x))
def test_a_policy_starts_from_a_file(family, format, tmp_path):
    policy = trained(family)
    ours = images(policy)
    policy.save(str(tmp_path), format=format)
    further = make(family, LoRA(rank=4, alpha=2), lora=str(tmp_path))
    same(images(further), ours)
    same(images(make(family, Full(), lora=str(tmp_path))), ours)
    with further.reference():
        same(images(further), images(make(family)))
    further.save(str(tmp_path / "again"))
    same(loaded_by_diffusers(family, tmp_path / "again"), ours)


def with_sdxls_own_numbers(key: str, layers: int) -> str:
    """A key under the names of SDXL's first release, by which kohya's sd-scripts name its blocks."""
    if m := re.match(r"lora_unet_mid_block_attentions_0_(.+)", key):
        return f"lora_unet_middle_block_1_{m[1]}"
    way, block, number, rest = re.match(r"lora_unet_(down|up)_blocks_(\d+)_attentions_(\d+)_(.+)", key).groups()
    number = int(block) * (layers + 1) + int(number) + (way == "down")
    return f"lora_unet_{'input' if way == 'down' else 'output'}_blocks_{number}_1_{rest}"


def test_a_policy_starts_from_a_file_with_kohyas_block_numbers(tmp_path):
    policy = trained(StableDiffusionXL)
    policy.save(str(tmp_path), format="kohya")
    file, layers = load_file(tmp_path / KOHYA_FILE), policy.denoiser.config.layers_per_block
    own = {with_sdxls_own_numbers(key, layers): w for key, w in file.items()}
    assert not own.keys() & file.keys() and len(own) == len(file)
    save_file(own, tmp_path / "own.safetensors")
    for adapter in (LoRA(rank=4), Full()):
        same(images(make(StableDiffusionXL, adapter, lora=str(tmp_path / "own.safetensors"))), images(policy))
    save_file(own | {k: w.clone() for k, w in file.items()}, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="keys of two kinds"):
        make(StableDiffusionXL, LoRA(rank=4), lora=str(tmp_path / "both.safetensors"))


def test_layers_are_the_files_unless_the_adapter_names_more(tmp_path):
    policy = trained(StableDiffusion, target_modules=["to_q", "ff.net.2"])
    policy.save(str(tmp_path))
    same(images(make(StableDiffusion, LoRA(rank=4), lora=str(tmp_path))), images(policy))
    more = make(StableDiffusion, LoRA(rank=4, target_modules=["to_q", "to_k", "ff.net.2"]), lora=str(tmp_path))
    same(images(more), images(policy))
    with pytest.raises(ValueError, match="which target_modules leaves out"):
        make(StableDiffusion, LoRA(rank=4, target_modules=["to_q"]), lora=str(tmp_path))


def test_other_files_are_refused_in_one_sentence(tmp_path):
    trained(StableDiffusion).save(str(tmp_path / "sd"))
    trained(StableDiffusionXL).save(str(tmp_path / "xl"))
    trained(StableDiffusionXL).save(str(tmp_path / "xl-kohya"), format="kohya")
    trained(StableDiffusion3).save(str(tmp_path / "sd3"))
    good = load_file(tmp_path / "sd" / LORA_FILE)
    key = next(iter(good))
    for name, tensors in {
        "unknown": good | {"foo.lora_A.weight": torch.ones(4, 8)},
        "layer": good | {"unet.foo.lora.down.weight": torch.ones(4, 8)},
        "dora": good | {key.replace("lora.down.weight", "dora_scale"): torch.ones(8)},
        "text": good | {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": torch.ones(4, 8)},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "sd" / LORA_FILE).read_bytes()[:100])
    for file, message in {
        "xl": "channels in|which this StableDiffusionPipeline has not",
        "xl-kohya": "no LoRA of a StableDiffusionPipeline|channels in|has not",
        "sd3": "unknown key transformer",
        "unknown.safetensors": "unknown key foo.lora_A.weight",
        "layer.safetensors": "adapts foo.lora_A.weight, which this StableDiffusionPipeline has not",
        "dora.safetensors": "is a DoRA",
        "text.safetensors": "adapts the text encoder too",
        "cut.safetensors": "cannot be read",
        "none": "there is no file or folder",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            make(StableDiffusion, LoRA(rank=4), lora=str(tmp_path / file))
        assert str(error.value).startswith("lora: ")
    with pytest.raises(ValueError, match="has rank 4 .* set policy.adapter.rank 4"):
        make(StableDiffusion, LoRA(rank=8), lora=str(tmp_path / "sd"))


def test_a_text_encoders_part_is_added_to_the_weights(tmp_path):
    policy, text = trained(StableDiffusion), {}
    policy.save(str(tmp_path))
    layer = policy.pipe.text_encoder.get_submodule("text_model.encoder.layers.0.self_attn.q_proj") if hasattr(policy.pipe.text_encoder, "text_model") else policy.pipe.text_encoder.get_submodule("encoder.layers.0.self_attn.q_proj")
    down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    text = {f"{name}.down.weight": down, f"{name}.up.weight": up}
    save_file(load_file(tmp_path / LORA_FILE) | text, tmp_path / "both.safetensors")
    want = layer.weight + up @ down
    full = make(StableDiffusion, Full(), lora=str(tmp_path / "both.safetensors"))
    got = dict(full.pipe.text_encoder.named_modules())
    got = next(m for n, m in got.items() if n.endswith("encoder.layers.0.self_attn.q_proj"))
    same(got.weight, want, 1e-5)
    assert not any(p.requires_grad for p in full.pipe.text_encoder.parameters())


# The command


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of RUN, in an empty one; WITH_LORA is below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints/shapes/dpo+smoke"


LORA_RUN = "adapter=LoRA-rank-4-alpha-8"


def lora_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def test_export_writes_what_fit_wrote_and_says_where(run, capsys):
    callbacks = ["--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.5"]
    callbacks += ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    fit = main(["fit", *RUN, *WITH_LORA, *callbacks])
    run = run / f"{LORA_RUN},EMA=decay-0.5"
    by_fit = load_file(run / "policy" / LORA_FILE)
    main(["export", *RUN, *WITH_LORA])
    said = capsys.readouterr().out
    assert f"to checkpoints/shapes/dpo+smoke/{run.name}/export/last: the moving average" in said
    exported = load_file(run / "export/last" / LORA_FILE)
    assert exported.keys() == by_fit.keys() and all(torch.equal(exported[k], by_fit[k]) for k in by_fit)
    assert any(not torch.equal(p, 0 * p) for p in exported.values())
    main(["export", *RUN, *WITH_LORA, "--format", "kohya", "--out", "loras"])
    assert [f.name for f in Path("loras").iterdir()] == [KOHYA_FILE]
    main(["export", *RUN, *WITH_LORA, "--merge", "true", "--ckpt_path", "best"])
    merged = StableDiffusion(str(run / "export/epoch=0-step=2-merged"))
    weights = dict(merged.denoiser.named_parameters())
    for name, layer in fit.model.policy.denoiser.named_modules():
        if hasattr(layer, "lora_A"):
            key = f"unet.{name}.lora"
            delta = by_fit[f"{key}.up.weight"] @ by_fit[f"{key}.down.weight"]
            same(weights[f"{name}.weight"], layer.base_layer.weight + delta, 1e-6)


def test_a_checkpoint_of_another_adapter_is_refused(run, capsys):
    main(["fit", *RUN, *WITH_LORA])
    with pytest.raises(SystemExit):
        main(["export", *RUN])
    assert f"{LORA_RUN} has model.policy.adapter LoRA-rank-4-alpha-8 in place of null. Give that" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", *RUN, "--ckpt_path", str(run / LORA_RUN / "checkpoints/last.ckpt")])
    assert "the checkpoint holds no weight of this policy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", *RUN, *WITH_LORA, "--format", "kohya", "--merge", "true"])
    assert "format: kohya is for LoRA weights" in capsys.readouterr().err
    assert not list(run.rglob("export"))


def test_fit_of_a_finished_run_writes_the_missing_policy(run, caplog):
    main(["fit", *RUN, *WITH_LORA, "--trainer.callbacks+=EMA"])
    run = run / f"{LORA_RUN},EMA=on"
    before = load_file(run / "policy" / LORA_FILE)
    (run / "policy" / LORA_FILE).unlink()
    main(["fit", *RUN, *WITH_LORA, "--trainer.callbacks+=EMA", "--ckpt_path", "last"])
    after = load_file(run / "policy" / LORA_FILE)
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_a_sharded_checkpoint_is_exported(run):
    import torch.distributed.checkpoint as dcp

    main(["fit", *RUN, *WITH_LORA])
    run = run / LORA_RUN
    file = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    folder = run / "sharded.ckpt"
    dcp.save({"state_dict": file.pop("state_dict")}, checkpoint_id=folder, no_dist=True)
    torch.save({k: v for k, v in file.items() if k != "optimizer_states"}, folder / "meta.pt")
    main(["export", *RUN, *WITH_LORA, "--ckpt_path", str(folder)])
    by_fit, exported = load_file(run / "policy" / LORA_FILE), load_file(run / "export/sharded" / LORA_FILE)
    assert all(torch.equal(exported[k], by_fit[k]) for k in by_fit)


def test_export_leaves_other_files_and_no_part_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "other.safetensors").write_text("mine")
    policy = trained(StableDiffusion)
    policy.save(str(tmp_path), format="kohya")
    whole = (tmp_path / KOHYA_FILE).read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_align.policies.saving.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        policy.save(str(tmp_path), format="kohya")
    assert (tmp_path / KOHYA_FILE).read_bytes() == whole and (tmp_path / "other.safetensors").read_text() == "mine"
    assert not list(tmp_path.parent.glob("*.part"))
