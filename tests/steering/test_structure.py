import pytest
import torch
from hooked import at, draw, started, still
from parts import move, tiny

from lit_align.diffusion.sampler import Sampler
from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.policies.stable_diffusion3 import StableDiffusion3
from lit_align.steering.negative_branch import NegativeBranch
from lit_align.steering.structure import StructureDiffusion

PROMPTS = ["a red dog and a blue cat", "a dog"]


def hook():
    return StructureDiffusion(["dog", "cat"], ["red", "blue"])


class Averaged:
    """The mean over several texts of softmax(Q K^T) V_j, keys from the prompt."""

    def __init__(self, texts):
        self.texts = texts

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        heads = lambda x: attn.head_to_batch_dim(x)
        q, k = heads(attn.to_q(hidden_states)), heads(attn.to_k(encoder_hidden_states))
        probabilities = attn.get_attention_scores(q, k)
        outputs = [torch.bmm(probabilities, heads(attn.to_v(text))) for text in self.texts]
        out = attn.batch_to_head_dim(torch.stack(outputs).mean(0))
        return attn.to_out[0](out)


@pytest.mark.parametrize("family", [type(still()), StableDiffusionXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_papers_equation_in_every_cross_attention(family, w):
    policy = still(family)
    x, t, s = at(policy)
    x = x[:1]
    text = policy.condition(PROMPTS)["text"][:1]
    red_dog, blue_cat = (policy.condition([phrase])["text"] for phrase in ("red dog", "blue cat"))
    first, second = text.clone(), text.clone()  # a token a letter, after the beginning of text
    first[:, 2:8], second[:, 12:19] = red_dog[:, 1:7], blue_cat[:, 1:8]
    before = dict(policy.denoiser.attn_processors)
    policy.denoiser.set_attn_processor({k: Averaged([text, first, second]) if "attn2" in k else p for k, p in before.items()})
    want = policy.denoise(x, t[:1], policy.condition(PROMPTS[:1]))
    policy.denoiser.set_attn_processor(before)
    if w != 1:
        null = policy.denoise(x, t[:1], policy.null(1))
        want = null + w * (want - null)
    mine = hook()
    state, sampler = started(policy, mine, x, t[:1], PROMPTS[:1], w=w)
    with torch.no_grad():
        mine.predict(policy, state, sampler)
    torch.testing.assert_close(state.x0, policy.process.to_x0(want, x, t[:1]), atol=1e-4, rtol=1e-4)
    assert (want - policy.denoise(x, t[:1], policy.condition(PROMPTS[:1]), w)).abs().max() > 1e-4


def test_it_changes_samples_alone_and_together_alike():
    together = draw(still(), hook(), prompts=PROMPTS)
    assert (together - draw(still(), prompts=PROMPTS)).abs().max() > 1e-3
    torch.testing.assert_close(draw(still(), hook(), prompts=PROMPTS[:1], seeds=[3]), together[:1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(Sampler(4, 3.0, steering=[hook()], minibatch=1)(still(), PROMPTS, seeds=[3, 4]).x, together, atol=1e-4, rtol=1e-3)


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="which StableDiffusion3 lacks: use a UNet"):
        draw(still(StableDiffusion3), hook(), prompts=PROMPTS)
    policy = tiny()
    move(policy)
    with pytest.raises(ValueError, match="StructureDiffusion edits half of a guided forward, which NegativeBranch does not make"):
        draw(policy, hook(), NegativeBranch(), prompts=PROMPTS)
    x, t, s = at(still())
    with pytest.raises(ValueError, match="its steps cannot be evaluated one by one"):
        Sampler(4, 3.0, steering=[hook()]).gaussian(still(), x, t, s, still().condition(PROMPTS))
