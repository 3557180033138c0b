"""Makes what a prompt writer of Shapes starts from: a small GPT-2 with random weights whose tokens are the captions' words,
and the pairs that it learns to rewrite captions from.

`python -m lit_align.shapes.make.writer --out checkpoints/shapes-writer/start --pairs configs/shapes/prompts`
"""

import argparse
import json
import random
from pathlib import Path

from lit_align.shapes.reward import VOCABULARY
from lit_align.shapes.scenes import COLORS, RADII, Caption, parse, prompts

PIECE = r" ?[^\s,]+|,"  # a token: a word with the space before it, or a comma
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}


def equivalent(caption: Caption, rng: random.Random) -> Caption:
    """A caption that every image of which satisfies this one, too: the objects of a pair in another order, colours or
    sizes added where the captions of the world have one or the other."""
    objects, relation = caption.objects, caption.relation
    if len(set(objects)) > 1 and rng.random() < 0.5:
        objects, relation = objects[::-1], INVERSE[relation]
    counts, spec = len(objects) > 1 and len(set(objects)) == 1, objects[0]
    if counts and rng.random() < 0.5:
        objects = (spec._replace(color=spec.color or rng.choice(list(COLORS))),) * len(objects)
    if len(objects) == 1 and rng.random() < 0.7:
        color = spec.color or rng.choice((None, *COLORS))
        objects = (spec._replace(color=color, size=spec.size or rng.choice((None, *RADII))),)
    if len(objects) == 2 and not counts and not any(o.size or o.color for o in objects) and rng.random() < 0.7:
        if rng.random() < 0.5:
            objects = tuple(o._replace(size=rng.choice(list(RADII))) for o in objects)
        else:
            objects = tuple(o._replace(color=c) for o, c in zip(objects, rng.sample(list(COLORS), 2)))
    return Caption(objects, relation)


def pairs(n: int, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """n rows {"prompt", "target"} for Promptist, an equivalent caption after each, and n for PAE: nothing, or a comma
    and an equivalent caption. No caption of the held-out fifth is a prompt."""
    rng, captions = random.Random(seed), [row["prompt"] for row in prompts(n, held_out=False, seed=seed + 1)]
    new = [str(equivalent(parse(text), rng)) for text in captions]
    rewrites = [{"prompt": text, "target": target} for text, target in zip(captions, new)]
    suffixes = [{"prompt": text, "target": f", {t}" if rng.random() < 0.5 else ""} for text, t in zip(captions, new)]
    return rewrites, suffixes


def tokenizer():
    """A token for every word of a caption, at the beginning and after a space."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<end>", ",", " Rephrase:", *VOCABULARY, *(f" {word}" for word in VOCABULARY)]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "removed", invert=True)
    tokens.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokens, padding_side="left", model_max_length=64, **special)


def model(words, seed: int = 0):
    """A GPT-2 of two layers with random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    ends = {"bos_token_id": words.eos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=64, n_embd=64, n_layer=2, n_head=4, **ends))


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lit_align.shapes.make.writer", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--pairs", type=Path, help="folder of rewrites.jsonl and suffixes.jsonl")
    parser.add_argument("--n", type=int, default=6000, help="pairs in each")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    words = tokenizer()
    model(words, args.seed).save_pretrained(args.out)
    words.save_pretrained(args.out)
    if args.pairs:
        for name, rows in zip(("rewrites", "suffixes"), pairs(args.n, args.seed)):
            (args.pairs / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
