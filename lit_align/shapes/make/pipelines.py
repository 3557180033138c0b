"""Makes the two untrained Shapes pipelines: random weights, the layout of Stable Diffusion 1 and 3.

`python -m lit_align.shapes.make.pipelines sd --vae checkpoints/shapes-sd/vae --out checkpoints/shapes-sd-init`
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch

from lit_align.shapes.scenes import SKILLS, random_caption

LENGTH = 16  # tokens of a caption with its begin and end; the longest caption has 12


def tokenizer():
    """A CLIPTokenizer in which every word of the caption grammar is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = random.Random(0)
    captions = [str(random_caption(rng.choice(SKILLS), rng)) for _ in range(5000)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=special,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        bpe.model.save(folder)
        merges = [tuple(line.split()) for line in Path(folder, "merges.txt").read_text().splitlines()[1:]]
    words = special + sorted(set(bpe.get_vocab()) - set(special))
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=LENGTH)


def text_config(words, width: int, layers: int):
    """The config of a small CLIP text encoder for the tokenizer `words`."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def shapes_sd(vae):
    """A small Stable Diffusion 1: UNet of 2.4 M parameters, latents 8x8x8, one text encoder, epsilon prediction."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(48, 96),
        norm_num_groups=16,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,  # diffusers reads this as the number of heads
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text_config(words, 64, 2)), words, unet, scheduler, None, None, requires_safety_checker=False
    )


def shapes_flow(vae):
    """A small Stable Diffusion 3: an MM-DiT on 8x8x8 latents, two CLIP text encoders and no T5, flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    words = tokenizer()
    vae.register_to_config(shift_factor=0.0)  # the pipeline requires a number
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=8,
        out_channels=8,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=96,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae,
        CLIPTextModelWithProjection(text_config(words, 64, 2)),
        words,
        CLIPTextModelWithProjection(text_config(words, 32, 1)),
        words,
        None,
        None,
    )


def main(args: list[str] | None = None) -> None:
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.pipelines", description=__doc__)
    parser.add_argument("kind", choices=("sd", "flow"))
    parser.add_argument("--vae", required=True, help="folder of the trained AutoencoderKL")
    parser.add_argument("--out", required=True, help="folder to write the pipeline to")
    args = parser.parse_args(args)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae)
    {"sd": shapes_sd, "flow": shapes_flow}[args.kind](vae).save_pretrained(args.out)


if __name__ == "__main__":
    main()
