import pytest
import torch
from hooked import PROMPTS, at, draw, estimates, still
from parts import FAMILIES

from lit_align.policies.sdxl import StableDiffusionXL
from lit_align.steering.chats import CHATS


@pytest.mark.parametrize("family", [*FAMILIES.args[1], StableDiffusionXL], ids=lambda c: c.__name__)
@pytest.mark.parametrize("s", [0.7, 5.0])
def test_the_papers_equation(family, s):
    policy, lose = still(family), still(family, 0.3)
    x, t, u = at(policy)
    cond, null = policy.condition(PROMPTS), policy.condition(["", ""])
    if family is StableDiffusionXL:  # its empty prompt is zeros
        null |= {k: torch.zeros_like(null[k]) for k in ("text", "pooled")}
    beyond = {k: null[k] - 0.5 * (cond[k] - null[k]) for k in cond}
    win, away = policy.denoise(x, t, cond), lose.denoise(x, t, beyond)
    x0, _ = estimates(policy, x, t, u, CHATS(lose, 0.5), w=1 + s)
    torch.testing.assert_close(x0, policy.process.to_x0(win + s * (win - away), x, t), atol=1e-4, rtol=1e-4)


def test_with_one_network_and_alpha_0_it_is_classifier_free_guidance():
    torch.testing.assert_close(draw(still(), CHATS(still(), 0.0)), draw(still()), atol=1e-4, rtol=1e-4)


def test_it_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="the losing policy does nothing"):
        draw(still(), CHATS(still(shift=0.3)), w=1.0)
