"""The untrained pipelines."""

import pytest
import torch

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.stable_diffusion import StableDiffusion
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.shapes.make.pipelines import LENGTH, main, tokenizer
from lit_align.shapes.scenes import SKILLS, prompts


def test_every_word_of_the_grammar_is_one_token():
    words, rows = tokenizer(), prompts(60, held_out=False)
    for row in rows:
        ids = words(row["prompt"]).input_ids
        assert len(ids) == len(row["prompt"].split()) + 2 <= LENGTH
        assert words.decode(ids, skip_special_tokens=True).strip() == row["prompt"]
    assert {row["skill"] for row in rows} == set(SKILLS)


@pytest.mark.parametrize("kind", ["sd", "flow"])
def test_the_command_makes_the_layout_that_ships(kind, tmp_path, shapes_sd, shapes_flow):
    main([kind, "--vae", f"{shapes_sd}/vae", "--out", str(tmp_path)])
    load = StableDiffusion if kind == "sd" else lambda path: StableDiffusion3(path, max_sequence_length=1)
    made, shipped = load(str(tmp_path)), load(shapes_sd if kind == "sd" else shapes_flow)
    shape = lambda policy: {name: p.shape for name, p in policy.denoiser.named_parameters()}
    assert shape(made) == shape(shipped)
    with torch.no_grad():
        x = Sampler(2)(made, ["a red circle"], seeds=[0]).x
    assert x.shape == (1, 8, 8, 8) and x.isfinite().all()
