import pytest
import torch
from hooked import SEEDS, draw, noise, still

from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.pag import PAG
from lit_align.steering.prompt2prompt import PromptToPrompt, alignment

SOURCES, TARGETS = ["a red dog", "a dog"], ["a big red cat", "a fish"]


def run(policy, hook, prompts=TARGETS, sources=SOURCES, **kwargs):
    return draw(policy, *([hook] if hook else []), prompts=prompts, columns={"source": sources}, **kwargs)


def columns_of(matrix, own):
    """Target token -> the source tokens it takes its map from, where it does."""
    return {j: matrix[:, j].nonzero().flatten().tolist() for j in range(len(own)) if not own[j]}


def test_words_are_aligned():
    """A token a letter: 0 begin, a 1, red 2-4, dog 5-7, end 8; a 1, big 2-4, red 5-7, cat 8-10, end 11."""
    matrix, own = alignment(still(), "a red dog", "a big red cat", True)
    got = columns_of(matrix, own)
    pads = {j: [j] for j in range(12, 77)}
    assert got == {0: [0], 1: [1], 5: [2], 6: [3], 7: [4], 8: [5], 9: [6], 10: [7], 11: [8]} | pads
    assert torch.equal(matrix.sum(0), 1 - own)
    kept = columns_of(*alignment(still(), "a red dog", "a big red cat", False))
    assert not {8, 9, 10} & kept.keys() and kept[6] == [3]
    matrix, own = alignment(still(), "a dog", "a fish", True)  # three letters to four: a share each
    assert not own[[2, 3, 4, 5]].any() and torch.equal(matrix[2:5, 2:6], torch.full((3, 4), 0.25))


def test_the_same_prompt_gives_its_original():
    policy = still()
    torch.testing.assert_close(run(policy, PromptToPrompt(1.0, 1.0), SOURCES), draw(policy, prompts=SOURCES), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", [type(still()), StableDiffusionXL], ids=["sd", "sdxl"])
def test_without_shared_attention_it_changes_nothing_to_the_last_bit(family):
    policy = still(family)
    assert torch.equal(run(policy, PromptToPrompt(0.0, 0.0)), draw(policy, prompts=TARGETS))


class Shared:
    """The release's controller in a batch (null source, null target, source, target): edits the last fourth."""

    def __init__(self, matrix, own, cross, self_, scale):
        self.matrix, self.own, self.cross, self.self_, self.scale = matrix, own, cross, self_, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(m) for m in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        p = attn.get_attention_scores(q, k).unflatten(0, (4, -1)).clone()
        if encoder_hidden_states is not None:
            if self.cross:
                p[3] = p[2] @ self.matrix + p[3] * self.own
            p[3] = p[3] * self.scale
        elif self.self_:
            p[3] = p[2]
        return attn.to_out[0](attn.batch_to_head_dim(torch.bmm(p.flatten(0, 1), v)))


@pytest.mark.parametrize("reweight", [None, {"red": 3.0}])
def test_the_release_written_out(reweight):
    """Cross-attention is the original's in 3 of 4 steps, self-attention in 2."""
    policy, source, target = still(), SOURCES[0], TARGETS[0]
    matrix, own = alignment(policy, source, target, True)
    scale = torch.ones(77)
    scale[5:8] = 3.0 if reweight else 1.0
    a, grid = torch.as_tensor(policy.pipe.scheduler.alphas_cumprod), policy.process.timesteps(4).tolist()
    text = policy.condition(["", "", source, target])["text"]
    x, before = noise(policy, 1).expand(2, -1, -1, -1), dict(policy.denoiser.attn_processors)
    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:])):
        policy.denoiser.set_attn_processor(Shared(matrix, own, i < 3, i < 2, scale))
        with torch.no_grad():
            null, cond = policy.denoiser(torch.cat([x, x]), t, text).sample.chunk(2)
        e = null + 3 * (cond - null)
        x = a[s].sqrt() * (x - (1 - a[t]).sqrt() * e) / a[t].sqrt() + (1 - a[s]).sqrt() * e
    policy.denoiser.set_attn_processor(before)
    got = run(policy, PromptToPrompt(0.75, 0.5, reweight=reweight), TARGETS[:1], SOURCES[:1], seeds=SEEDS[:1])
    torch.testing.assert_close(got, x[1:], atol=2e-3, rtol=1e-3)
    assert (got - draw(policy, prompts=TARGETS[:1], seeds=SEEDS[:1])).abs().max() > 1e-2


def test_outside_of_the_blended_words_the_original_stays():
    policy, original = still(), draw(still(), prompts=SOURCES)
    whole = run(policy, PromptToPrompt(blend=["cat", "dog", "fish"], blend_cell=2, blend_threshold=0.0))
    torch.testing.assert_close(whole, run(policy, PromptToPrompt()), atol=1e-4, rtol=1e-3)
    part = run(policy, PromptToPrompt(blend=["cat", "dog", "fish"], blend_cell=2, blend_threshold=0.999))
    same = ((part - original).abs() < 1e-5).all(1)  # pixels
    assert 0.05 < same.float().mean() < 1 and (part - original).abs().max() > 1e-2
    with pytest.raises(ValueError, match="has none of the words in blend"):
        run(policy, PromptToPrompt(blend=["cat"], blend_cell=2))


def test_samples_alone_and_in_minibatches_and_with_pag():
    together = run(still(), PromptToPrompt())
    for k in range(2):
        alone = run(still(), PromptToPrompt(), TARGETS[k : k + 1], SOURCES[k : k + 1], seeds=SEEDS[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], atol=1e-3, rtol=1e-3)
    sampler = Sampler(4, 3.0, DDIM(0.0), [PromptToPrompt()], minibatch=1)
    state = sampler(still(), TARGETS, seeds=SEEDS, columns={"source": SOURCES})
    torch.testing.assert_close(state.x, together, atol=1e-3, rtol=1e-3)
    assert state.calls["nfe_forward"] == 2 * 2 * 4
    both = draw(still(), PAG(2.0), PromptToPrompt(), prompts=TARGETS, columns={"source": SOURCES})
    assert (both - together).abs().max() > 1e-3


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="give the file of prompts a column source"):
        draw(still(), PromptToPrompt())
    with pytest.raises(ValueError, match="which StableDiffusion3 lacks"):
        run(still(StableDiffusion3), PromptToPrompt())
    with pytest.raises(ValueError, match="alike: set DDIM's eta to 0"):
        run(still(), PromptToPrompt(), eta=1.0)
    with pytest.raises(ValueError, match="blend_cell is 4; this UNet's maps have 2"):
        run(still(), PromptToPrompt(blend=["dog"]))
