"""DyMO: guidance by a preference model and by attention, with dynamic weights and recurrence."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_align.diffusion.state import State
from lit_align.diffusion.transition import Gaussian
from lit_align.policies.attention import cells
from lit_align.rewards.reward import Reward, judge
from lit_align.rewards.step_reward import StepReward
from lit_align.steering.attention_edit import check_halves
from lit_align.steering.phrases import Phrase, PhraseHook
from lit_align.steering.reward_guidance import RewardGuidance, check_gradient, guidance_size, normalised


def standardised(x: Tensor) -> Tensor:
    """Latents (P, C, h, w) with mean 0 and variance 1 in each channel."""
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True) + 1e-5).sqrt()


def semantic(maps: Tensor, phrases: list[Phrase]) -> Tensor:
    """The mean distance, 1 - cosine, of objects' maps and their attributes', minus that of objects' maps and other
    objects': a scalar, from one particle's maps (h, w, L)."""
    of = lambda tokens: maps[..., tokens].mean(-1).flatten()
    gap = lambda a, b: 1 - F.cosine_similarity(of(a), of(b), dim=0)
    pairs = [(p.object, q.object) for k, p in enumerate(phrases) for q in phrases[:k]]
    bound = [(p.object, a) for p in phrases for a in p.attributes]
    mean = lambda pairs: torch.stack([gap(*pair) for pair in pairs]).mean() if pairs else 0 * maps.sum()
    return mean(bound) - mean(pairs)


class DyMO(RewardGuidance, PhraseHook):
    """Xie et al., CVPR 2025 (arXiv 2412.00759), algorithm 1: x_s <- x_s - strength rho grad_x_t L(x_t), with L the
    semantic loss early (maps of attributes lie on their objects', objects' maps apart), minus the reward of x_0-hat
    late, and both in between. Their weights there are semantic_weight (1 - exp(-D)) and exp(-D), D the relative change
    of x_0-hat since the last step. rho gives the gradient the size of guidance's correction, early 0.2 guidance_scale
    times that.

    Each step is taken again from noise added again, int(rounds |grad|) times, measured at its first gradient: `rounds`
    in the first two phases, `late_rounds` in the last; measuring takes an evaluation more. The maps are those of the
    conditional prediction (the release averages the unconditional ones in), and the reward is that of x_0-hat alone
    (the release takes the norm over it and ten augmented views, whose gradient is about three times as large).

    Args:
        reward: of the image, or of a step (SPO's step-aware preference model, as published).
        objects, attributes: words of the prompt, see PhraseHook.
        strength: of the shift.
        semantic_weight: 10 for SD 1.5, 50 for SDXL.
        early, late: fractions of the run where the first phase ends, and where the last one begins.
        rounds, late_rounds: recurrences per norm of the gradient; 0 for none.
        cell: latents to a side of the maps' cells.
    """

    needs_start = True

    def __init__(
        self,
        reward: Reward | StepReward,
        objects: list[str] | None = None,
        attributes: list[str] | None = None,
        strength: float = 1.0,
        semantic_weight: float = 10.0,
        early: float = 0.16,
        late: float = 0.5,
        rounds: float = 1.0,
        late_rounds: float = 3.0,
        cell: int = 4,
    ):
        RewardGuidance.__init__(self, reward)
        PhraseHook.__init__(self, objects, attributes)
        self.strength, self.semantic_weight, self.early, self.late = strength, semantic_weight, early, late
        self.rounds, self.late_rounds, self.cell = rounds, late_rounds, cell

    def check(self, policy, sampler):
        PhraseHook.check(self, policy, sampler)
        check_gradient("DyMO", self.reward if isinstance(self.reward, Reward) else None)
        check_halves("DyMO", sampler)
        if sampler.guidance_scale == 1:
            raise ValueError("DyMO measures its steps by guidance's correction, and guidance_scale is 1: set another.")
        if self.cell not in (known := cells(policy)):
            raise ValueError(f"DyMO: cell is {self.cell}; this denoiser's maps have {sorted(known)}: set one of them.")

    def nfe(self, inside, steps):
        return 2 * inside  # without recurrence

    def on_init(self, policy, state):
        super().on_init(policy, state)
        state.extras[self] |= {"x0": torch.zeros_like(state.x), "shift": torch.zeros_like(state.x)}

    def record(self, call, n: int):
        """Maps (n, h, w, L) of the conditional samples, the second half of a guided forward."""
        if call.kind != "self" and call.cell == self.cell and len(call.query) == 2 * n:
            return call.rows(slice(n, None)).words().mean(1).unflatten(1, call.grid)

    def predict(self, policy, state, sampler):
        own, done, n = state.extras[self], state.i / state.steps, len(state.x)
        with policy.attention(record=lambda call: self.record(call, n)) as own["maps"]:
            gradient = self.gradient(policy, state, sampler)
        del own["maps"]
        size = guidance_size(state) * (0.2 * sampler.guidance_scale if done < self.early else 1.0)
        own["shift"], own["norm"] = self.strength * normalised(gradient, size), gradient.flatten(1).norm(dim=1)
        own["x0"] = state.x0.detach()

    def transition(self, policy, state, sampler):
        gaussian = super().transition(policy, state, sampler)
        return Gaussian(gaussian.mean + state.extras[self]["shift"], gaussian.std)

    def before_step(self, policy, state, sampler):
        super().before_step(policy, state, sampler)
        rounds = self.late_rounds if state.i / state.steps >= self.late else self.rounds
        if not rounds:
            return
        sampler.estimate(policy, state, self)
        own, state.x = state.extras[self], state.x.clone()
        left, measured = (rounds * own["norm"]).long(), True
        while left.any():
            rows = (left > 0).nonzero().flatten()
            part = state.part(rows)
            if not measured:
                sampler.estimate(policy, part, self)
            self.travel(policy, part, sampler)
            state.x[rows], own["x0"][rows] = part.x, part.extras[self]["x0"]
            left, measured = (left - 1).clamp(min=0), False

    def value(self, policy, state):
        """Minus the loss (P,)."""
        own, done = state.extras[self], state.i / state.steps
        before = standardised(own["x0"]).flatten(1)
        d = (standardised(state.x0.detach()).flatten(1) - before).norm(dim=1) / before.norm(dim=1).clamp(min=1e-6)
        of_meaning, of_reward = self.semantic_weight * (1 - torch.exp(-d)), torch.exp(-d)
        if done < self.early:
            of_meaning, of_reward = self.semantic_weight + 0 * d, 0 * d
        elif done >= self.late:
            of_meaning, of_reward = 0 * d, 1 + 0 * d
        value = of_reward * self.preference(policy, state) if of_reward.any() else 0 * state.x.flatten(1).sum(1)
        if of_meaning.any():
            maps = torch.stack(own["maps"]).mean(0)
            losses = [semantic(maps[p], phrases) for p, phrases in enumerate(own["phrases"])]
            value = value - of_meaning * torch.stack(losses)
        return value

    def preference(self, policy, state: State) -> Tensor:
        if isinstance(self.reward, StepReward):
            return self.reward(policy, state.x, state.x0, state.t, state.prompts)
        return judge(self.reward, policy, state.x0, state.rows)
