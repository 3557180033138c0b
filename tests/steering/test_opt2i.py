import pytest
import torch
from hooked import PROMPTS, SEEDS, still
from parts import BlackBox

from lit_align.diffusion.sampler import Sampler
from lit_align.rewards.reward import Reward
from lit_align.steering.language_model import CausalLM, LanguageModel
from lit_align.steering.opt2i import OPT2I

SAMPLER = Sampler(2, 2.0)


class Scripted(LanguageModel):
    """Gives its answers in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.asked = list(answers), []

    def answer(self, texts, n=1, **how):
        self.asked.append((texts, n, how))
        given = self.answers[min(len(self.asked), len(self.answers)) - 1]
        return [[given] * n for _ in texts]


class Red(Reward):
    """The mean of the first channel."""

    name, differentiable = "red", False

    def forward(self, images, prompts):
        return images[:, 0].mean((1, 2))


def plain(texts, seeds):
    policy = still()
    return policy.decode(SAMPLER(policy, texts, seeds=seeds).x), SAMPLER(policy, texts, seeds=seeds).x


def test_the_prompt_with_the_best_mean_reward_is_chosen():
    """By hand: every prompt from the same noises, two images each."""
    texts = ["x", "yy", "zzz", "the moon"]
    lm = Scripted("1. x\n2) \"yy\"\n\n- zzz", "1. the moon\n2. x")
    search = OPT2I(Red(), lm, iterations=2, candidates=3, images=2, sampler=SAMPLER)
    got = search(still(), PROMPTS, seeds=SEEDS)
    from lit_align.diffusion.state import derived_seed

    for row, prompt in enumerate(PROMPTS):
        seeds = [SEEDS[row], derived_seed(SEEDS[row], 1)]
        scores = {t: Red()(plain([t, t], seeds)[0], [""] * 2).mean().item() for t in (prompt, *texts)}
        best = max(scores, key=scores.get)
        assert got.texts[row] == best and got.prompts[row] == prompt
        torch.testing.assert_close(got.extras[search]["reward"][row].item(), scores[best], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.x[row : row + 1], plain([best], seeds[:1])[1], atol=1e-4, rtol=1e-4)
    (asked, n, how), (again, _, _) = lm.asked
    assert n == 1 and "Write 3 new versions" in asked[0] and PROMPTS[0] in asked[0] and len(set(how["seeds"])) == 2
    shown = [line for line in again[1].splitlines() if line[:1].isdigit()]
    assert len(shown) == 4 and [float(line.split(":")[0]) for line in shown] == sorted(float(line.split(":")[0]) for line in shown)
    assert got.calls["nfe_forward"] == 2 * 2 * 2 * (1 + 3 + 1) and got.calls["reward_calls"] == 2 * 5


def test_rewards_see_the_users_prompt_and_no_iteration_is_plain_sampling():
    reward, lm = BlackBox(), Scripted("nothing new")
    search = OPT2I(reward, lm, iterations=0, images=1, sampler=SAMPLER)
    got = search(still(), PROMPTS, seeds=SEEDS)
    assert torch.equal(got.x, SAMPLER(still(), PROMPTS, seeds=SEEDS).x) and got.texts == PROMPTS and not lm.asked
    OPT2I(reward, lm, iterations=1, images=1, sampler=SAMPLER)(still(), PROMPTS, seeds=SEEDS)
    assert set(reward.asked) == set(PROMPTS)


def test_it_ends_at_the_goal_and_at_the_budget():
    lm = Scripted("1. x")
    OPT2I(Red(), lm, images=1, goal=-1.0, sampler=SAMPLER)(still(), PROMPTS, seeds=SEEDS)
    assert not lm.asked
    got = OPT2I(Red(), lm, images=1, candidates=2, sampler=SAMPLER, max_nfe=4 + 8)(still(), PROMPTS, seeds=SEEDS)
    assert len(lm.asked) == 1 and got.calls["nfe_forward"] == 8  # a second iteration might have taken 8 more
    with pytest.raises(ValueError, match="OPT2I: images is 0; give 1 or more"):
        OPT2I(Red(), lm, images=0)


def test_a_trained_rewriter_proposes_whole_answers():
    lm = CausalLM("tiny")
    search = OPT2I(Red(), lm, 1, 2, 1, answers=3, instruction="{prompt} Rephrase:", max_new_tokens=4, sampler=SAMPLER)
    assert search.question("a", {"a": 1.0}) == "a Rephrase:"
    assert search.read(["b c", " b  c ", "a", "", "d", "e"], {"a": 1.0}) == ["b c", "d"]
    one, two = (search(still(), PROMPTS, seeds=SEEDS) for _ in range(2))
    assert one.texts == two.texts and torch.equal(one.x, two.x)  # the seeds are the rows'
    alone = search(still(), PROMPTS[1:], seeds=SEEDS[1:])
    assert alone.texts == one.texts[1:]
