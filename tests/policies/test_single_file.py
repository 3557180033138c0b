"""Single-file checkpoints in the layout of the original code, made of tiny pipelines."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from lit_align.policies import published
from lit_align.policies.adapters import LoRA
from lit_align.policies.flux import Flux
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3


def renamed(state: dict, pairs: list[tuple[str, str]]) -> dict:
    """state with prefixes replaced: every key by the first pair that its start matches."""
    out = {}
    for key, value in state.items():
        old, new = next((old, new) for old, new in pairs if key.startswith(old))
        out[new + key.removeprefix(old)] = value.contiguous()
    return out


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
KEPT = [(name, name) for name in ("conv_in", "conv_out", "quant_conv", "post_quant_conv")]


def original_unet(state):
    """The tiny UNet (a block without and one with attention) by CompVis's names (github.com/CompVis/latent-diffusion)."""
    resnet = lambda old, new: [(f"{old}.{a}.", f"{new}.{b}.") for a, b in RESNET.items()]
    pairs = [("conv_in.", "input_blocks.0.0."), ("conv_norm_out.", "out.0."), ("conv_out.", "out.2.")]
    pairs += [("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2.")]
    pairs += [("add_embedding.linear_1.", "label_emb.0.0."), ("add_embedding.linear_2.", "label_emb.0.2.")]  # SDXL
    pairs += resnet("down_blocks.0.resnets.0", "input_blocks.1.0") + [("down_blocks.0.downsamplers.0.conv.", "input_blocks.2.0.op.")]
    pairs += resnet("down_blocks.1.resnets.0", "input_blocks.3.0") + [("down_blocks.1.attentions.0.", "input_blocks.3.1.")]
    pairs += resnet("mid_block.resnets.0", "middle_block.0") + [("mid_block.attentions.0.", "middle_block.1.")]
    pairs += resnet("mid_block.resnets.1", "middle_block.2")
    for i in range(2):
        pairs += resnet(f"up_blocks.0.resnets.{i}", f"output_blocks.{i}.0") + [(f"up_blocks.0.attentions.{i}.", f"output_blocks.{i}.1.")]
        pairs += resnet(f"up_blocks.1.resnets.{i}", f"output_blocks.{i + 2}.0")
    pairs += [("up_blocks.0.upsamplers.0.", "output_blocks.1.2.")]
    return {f"model.diffusion_model.{k}": v for k, v in renamed(state, pairs).items()}


def original_vae(state):
    """The tiny VAE by the same code's names."""
    middle = {"resnets.0.": "block_1.", "attentions.0.": "attn_1.", "resnets.1.": "block_2."}
    pairs = list(KEPT)
    for side in ("encoder", "decoder"):
        pairs += [(f"{side}.mid_block.{a}", f"{side}.mid.{b}") for a, b in middle.items()]
        pairs += [(f"{side}.conv_norm_out.", f"{side}.norm_out."), (f"{side}.conv_in", f"{side}.conv_in"), (f"{side}.conv_out", f"{side}.conv_out")]
    for i in range(2):
        pairs += [(f"encoder.down_blocks.{i}.resnets.", f"encoder.down.{i}.block."), (f"encoder.down_blocks.{i}.downsamplers.0.", f"encoder.down.{i}.downsample.")]
        pairs += [(f"decoder.up_blocks.{i}.resnets.", f"decoder.up.{1 - i}.block."), (f"decoder.up_blocks.{i}.upsamplers.0.", f"decoder.up.{1 - i}.upsample.")]
    inner = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    out = {}
    for key, value in renamed(state, pairs).items():
        for old, new in inner.items():
            key = key.replace(f".{old}.", f".{new}.")
        square = value[..., None, None] if ".attn_1." in key and value.ndim == 2 else value  # a linear map as a 1x1 convolution
        out[f"first_stage_model.{key}"] = square.contiguous()
    return out


SD3 = [("pos_embed.pos_embed", "pos_embed"), ("pos_embed.proj.", "x_embedder.proj."), ("norm_out.linear.", "final_layer.adaLN_modulation.1."), ("proj_out.", "final_layer.linear.")]
SD3 += [(f"time_text_embed.{old}.linear_{i}.", f"{new}.mlp.{2 * i - 2}.") for old, new in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")) for i in (1, 2)]
SD3 += [("context_embedder.", "context_embedder.")]
SD3_BLOCK = [("attn.to_out.0.", "x_block.attn.proj."), ("attn.to_add_out.", "context_block.attn.proj."), ("norm1.linear.", "x_block.adaLN_modulation.1."), ("norm1_context.linear.", "context_block.adaLN_modulation.1.")]
SD3_BLOCK += [(f"{old}.net.{a}.", f"{new}.mlp.{b}.") for old, new in (("ff", "x_block"), ("ff_context", "context_block")) for a, b in (("0.proj", "fc1"), ("2", "fc2"))]
JOINED = {f"attn.{name}": (side, place) for side, names in (("x_block", ("to_q", "to_k", "to_v")), ("context_block", ("add_q_proj", "add_k_proj", "add_v_proj"))) for place, name in enumerate(names)}


def original_sd3(state, blocks):
    """SD3's transformer by Stability's names (github.com/Stability-AI/sd3-ref): q, k and v are one map, and the last
    modulations have shift before scale."""
    swapped = ("norm_out.linear.", f"transformer_blocks.{blocks - 1}.norm1_context.linear.")
    state = {k: torch.cat(v.chunk(2)[::-1]) if k.startswith(swapped) else v for k, v in state.items()}
    out, parts = renamed({k: v for k, v in state.items() if not k.startswith("transformer_blocks.")}, SD3), {}
    for i in range(blocks):
        own = {k.removeprefix(f"transformer_blocks.{i}."): v for k, v in state.items() if k.startswith(f"transformer_blocks.{i}.")}
        for key, value in list(own.items()):
            stem, _, kind = key.rpartition(".")
            if stem in JOINED:
                side, place = JOINED[stem]
                parts.setdefault(f"joint_blocks.{i}.{side}.attn.qkv.{kind}", {})[place] = own.pop(key)
        out |= {f"joint_blocks.{i}.{k}": v for k, v in renamed(own, SD3_BLOCK).items()}
    out |= {key: torch.cat([found[place] for place in range(3)]) for key, found in parts.items()}
    return {f"model.diffusion_model.{k}": v.contiguous() for k, v in out.items()}


def clip(state, prefix):
    """A CLIP text encoder by the names that transformers had when the files were written."""
    return {f"{prefix}.text_model.{k.removeprefix('text_model.')}": v.contiguous() for k, v in state.items()}


def open_clip(state):
    """A CLIP text encoder by OpenCLIP's names (github.com/mlfoundations/open_clip)."""
    names = {"embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final"}
    names |= {"encoder.layers": "transformer.resblocks", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn"}
    out, joined = {"text_projection": state["text_projection.weight"].T.contiguous()}, {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        for old, new in names.items():
            key = key.replace(old, new)
        stem, _, leaf = key.partition(".attn.")
        if leaf[1:] in ("_proj.weight", "_proj.bias"):  # q, k, v come in this order once sorted
            joined.setdefault(f"{stem}.attn.in{leaf[1:].replace('.', '_')}", {})[leaf[0]] = value
        elif key != "text_projection.weight":
            out[key] = value
    out |= {key: torch.cat([parts[c] for c in "qkv"]) for key, parts in joined.items()}
    return {f"conditioner.embedders.1.model.{k}": v.contiguous() for k, v in out.items()}


def without_weights(pipe, folder):
    pipe.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A policy, a folder with its pipeline's configs and without its weights, and its weights in one file."""
    folder, policy = tmp_path_factory.mktemp("single"), StableDiffusion("tiny")
    pipe, file = policy.pipe, folder / "model.safetensors"
    without_weights(pipe, folder / "configs")
    text = clip(pipe.text_encoder.state_dict(), "cond_stage_model.transformer")
    save_file(original_unet(pipe.unet.state_dict()) | original_vae(pipe.vae.state_dict()) | text, file)
    return policy, folder / "configs", file


def same(pipe, other, parts):
    for name in parts:
        ours, theirs = getattr(pipe, name).state_dict(), getattr(other, name).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_single_file_is_the_pipeline_it_was_made_of(sd15):
    policy, configs, file = sd15
    again = StableDiffusion(str(file), single_file_config=str(configs))
    same(again.pipe, policy.pipe, ("unet", "vae", "text_encoder"))


def test_a_single_file_of_sdxl_with_both_its_text_encoders(tmp_path):
    pipe = StableDiffusionXL("tiny").pipe
    wide = CLIPTextConfig(**pipe.text_encoder_2.config.to_dict() | {"hidden_size": 24, "projection_dim": 24})
    pipe.register_modules(text_encoder_2=CLIPTextModelWithProjection(wide))  # diffusers tells the two by their width
    configs, file = without_weights(pipe, tmp_path / "configs"), tmp_path / "sdxl.safetensors"
    text = clip(pipe.text_encoder.state_dict(), "conditioner.embedders.0.transformer")
    text |= open_clip(pipe.text_encoder_2.state_dict())
    save_file(original_unet(pipe.unet.state_dict()) | original_vae(pipe.vae.state_dict()) | text, file)
    again = StableDiffusionXL(str(file), single_file_config=str(configs), dtype="float32")
    same(again.pipe, pipe, ("unet", "vae", "text_encoder", "text_encoder_2"))


def test_a_single_file_of_sd3_beside_the_encoders_of_a_folder(tmp_path):
    pipe = StableDiffusion3("tiny").pipe
    pipe.save_pretrained(tmp_path / "whole")
    save_file(original_sd3(pipe.transformer.state_dict(), len(pipe.transformer.transformer_blocks)), tmp_path / "sd3.safetensors")
    again = StableDiffusion3(str(tmp_path / "sd3.safetensors"), single_file_config=str(tmp_path / "whole"))
    same(again.pipe, pipe, ("transformer", "vae", "text_encoder", "text_encoder_2"))


def test_what_a_single_file_lacks_comes_from_the_folder(sd15, tmp_path):
    policy, _, file = sd15
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith("cond_stage_model.")}
    save_file(tensors, tmp_path / "unet.safetensors")
    policy.pipe.save_pretrained(tmp_path / "whole")
    again = StableDiffusion(str(tmp_path / "unet.safetensors"), single_file_config=str(tmp_path / "whole"))
    same(again.pipe, policy.pipe, ("unet", "vae", "text_encoder"))
    without_weights(policy.pipe, tmp_path / "configs")
    with pytest.raises(ValueError, match="single_file_config: .*configs/text_encoder holds no weights"):
        StableDiffusion(str(tmp_path / "unet.safetensors"), single_file_config=str(tmp_path / "configs"))


def test_a_single_file_says_what_it_needs(sd15, tmp_path):
    _, configs, file = sd15
    with pytest.raises(ValueError, match="single_file_config: .*nowhere is neither a folder"):
        StableDiffusion(str(file), single_file_config=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="gone.safetensors is neither a file nor"):
        StableDiffusion(str(tmp_path / "gone.safetensors"), single_file_config=str(configs))
    with pytest.raises(ValueError, match="single_file_config is for a single file"):
        StableDiffusion(str(configs), single_file_config=str(configs))
    (tmp_path / "model.ckpt").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="model.ckpt is a pickled checkpoint; set allow_pickle"):
        StableDiffusion(str(tmp_path / "model.ckpt"), single_file_config=str(configs))
    with pytest.raises(ValueError, match="is for folders and hub ids"):
        StableDiffusion(str(file), single_file_config=str(configs), quantize="int4")


def test_without_a_folder_the_configs_are_those_that_ship(sd15, tmp_path, monkeypatch):
    """Told by the tensors; no network. A folder with the tokenizer alone is enough, and without one it says so."""
    policy, configs, file = sd15
    models = tmp_path / "models"
    shutil.copytree(configs, models / "tiny", ignore=shutil.ignore_patterns("tokenizer"))
    index = json.loads((models / "tiny/model_index.json").read_text())
    index["_repositories"] = ["stable-diffusion-v1-5/stable-diffusion-v1-5"]  # what diffusers takes such a file for
    (models / "tiny/model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(published, "MODELS", models)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published.repositories.cache_clear()
    shutil.copytree(configs / "tokenizer", tmp_path / "words/tokenizer")
    again = StableDiffusion(str(file), single_file_config=str(tmp_path / "words"))
    same(again.pipe, policy.pipe, ("unet", "vae", "text_encoder"))
    with pytest.raises(ValueError, match="without tokenizers, and .*stable-diffusion-v1-5 has no tokenizer or cannot"):
        StableDiffusion(str(file))
    published.repositories.cache_clear()


def test_weights_stored_in_eight_bits_are_read_as_what_they_say(sd15, tmp_path):
    policy, configs, file = sd15
    stored = {k: v.to(torch.float8_e4m3fn) for k, v in load_file(file).items()}
    save_file(stored, tmp_path / "fp8.safetensors")
    again = StableDiffusion(str(tmp_path / "fp8.safetensors"), single_file_config=str(configs))
    for ours, theirs in zip(again.pipe.unet.parameters(), policy.pipe.unet.parameters(), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs.to(torch.float8_e4m3fn).float())


def test_a_folder_in_shards(sd15, tmp_path):
    policy, _, _ = sd15
    policy.pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    same(StableDiffusion(str(tmp_path)).pipe, policy.pipe, ("unet", "vae", "text_encoder"))


def test_gguf(tmp_path):
    """A quantized denoiser of FLUX, frozen, under a LoRA that gets gradient; refused without the package or in full."""
    plain = Flux("tiny")
    plain.pipe.save_pretrained(tmp_path / "flux")
    file = tmp_path / "flux.gguf"
    file.write_bytes(b"")
    given = {"pretrained": str(file), "single_file_config": str(tmp_path / "flux")}
    if find_spec("gguf") is None:
        with pytest.raises(ValueError, match="flux.gguf is a GGUF file, which is read with the package gguf"):
            Flux(**given)
        return
    import gguf

    writer = gguf.GGUFWriter(str(file), "flux")
    for name, value in plain.denoiser.state_dict().items():
        blocks = value.ndim == 2 and value.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="weights are frozen: train through adapter: LoRA"):
        Flux(**given)
    policy = Flux(**given, adapter=LoRA(rank=2))
    torch.manual_seed(0)
    x, t = torch.randn(1, *policy.latent_shape), torch.tensor([0.5])
    cond = policy.condition(["a red circle"])
    torch.testing.assert_close(policy.denoise(x, t, cond), plain.denoise(x, t, cond), atol=2e-2, rtol=0)
    policy.denoise(x, t, cond).square().mean().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
