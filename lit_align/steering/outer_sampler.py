"""A sampler around a sampler: methods that call the sampling loop several times."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_align.diffusion.budget import Budget
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.process import append_dims
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State
from lit_align.rewards.reward import Reward, judge, refuse_masks


class Best:
    """The best sample of each row among those that were offered: x (P, ...) and reward (P,)."""

    x: Tensor | None = None
    reward: Tensor | None = None

    def offer(self, x: Tensor, reward: Tensor) -> Tensor:
        """Takes over the samples with a higher reward than the best so far, and says which (P,)."""
        if self.x is None:
            self.x, self.reward = x, reward
            return torch.ones_like(reward, dtype=torch.bool)
        better = reward > self.reward
        self.x = torch.where(append_dims(better, x), x, self.x)
        self.reward = torch.where(better, reward, self.reward)
        return better


class OuterSampler(Sampler):
    """Base of the methods that search over samples of another sampler, which may itself be an OuterSampler. A method
    overrides `search`, and `check` where it cannot work with every inner sampler.

    Args:
        reward: of finished samples; None for methods without one.
        sampler: the inner sampler (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards and backwards that a prompt may take, guidance included. The search ends where its
            next run would take more.
    """

    needs_steps = False  # True if it runs single steps, which an OuterSampler inside does not have
    takes_several_rewards = False  # True if it ranks by a reward of R numbers

    def __init__(self, reward: Reward | None, sampler: Sampler | None = None, max_nfe: int | None = None):
        if reward is not None:
            refuse_masks(reward, type(self).__name__)
        self.reward, self.sampler = reward and reward.eval().requires_grad_(False), sampler or Sampler()
        inner = self.sampler
        super().__init__(
            inner.steps, inner.guidance_scale, inner.transition, list(inner.steering), inner.minibatch, max_nfe
        )
        self.depth = inner.depth + 1
        if self.needs_steps and isinstance(inner, OuterSampler):
            raise ValueError(
                f"{type(self).__name__} runs single steps of its sampler, and {type(inner).__name__} has none: "
                f"put {type(inner).__name__} around {type(self).__name__}."
            )

    @abstractmethod
    def search(self, policy, start: State, hooks: Sequence[Hook], budget: Budget) -> State:
        """Final state of the search: one sample per row of `start`, which holds the initial noise."""

    def check(self, policy) -> None:
        """Raises ValueError if the search cannot work, or would do nothing, with this policy and the inner sampler."""

    def plain(self) -> Sampler:
        return self.sampler.plain()

    @property
    def is_steered(self) -> bool:
        return True

    def nfe(self, first: int = 0, last: int | None = None, hooks: Sequence[Hook] = ()) -> float:
        """The least that a search takes: one run of the inner sampler."""
        return self.sampler.nfe(hooks=hooks)

    def start(self, start: State, k: int = 0) -> State:
        """The k-th start of a run; the 0th is that of plain sampling."""
        return start.another(k, self.depth)

    def starts(self, start: State, n: int, first: int = 0) -> State:
        """The starts `first` .. first + n - 1 of each row in one state: a a b b."""
        every = [self.start(start, k) for k in range(first, first + n)]
        together = self.start(start)
        together.reindex(torch.arange(len(start.x)).repeat_interleave(n))
        together.x = torch.stack([one.x for one in every], 1).flatten(0, 1)
        if start.generators is not None:
            together.generators = [one.generators[i] for i in range(len(start.x)) for one in every]
        return together

    def score(self, policy, state: State) -> Tensor:
        """The reward of finished samples. Raises ValueError for R numbers per image where the method takes one."""
        reward = judge(self.reward, policy, state.x, state.rows, state.minibatch)
        if reward.ndim > 1 and not self.takes_several_rewards:
            raise ValueError(
                f"{type(self).__name__} takes one number per image and {self.reward.name} gives {reward.shape[1]}: put "
                "the rewards into a WeightedSum."
            )
        return reward

    def result(self, start: State, x: Tensor, reward: Tensor) -> State:
        """A finished search's state: x_0 (P, ...) and its rewards."""
        rows = {"prompts": start.prompts, "columns": start.columns, "texts": start.texts}
        done = State(x, start.cond, generators=start.generators, steps=self.steps, minibatch=start.minibatch, **rows)
        done.extras[self] = {"reward": reward}
        return done

    def run(
        self, policy, state: State, hooks: Sequence[Hook] = (), grad: Tensor | None = None, record: bool = False
    ) -> State:
        """Runs the search from a state that holds rows and noise. Raises ValueError for `grad` and `record`: a selected
        sample has neither a gradient nor a likelihood."""
        name = type(self).__name__
        if grad is not None or record:
            raise ValueError(
                f"{name} selects among finished samples, which cannot be trained through: use it in sampler."
            )
        self.check(policy)
        state.minibatch = state.minibatch or self.minibatch or len(state.x)
        budget = Budget(policy, len(state.x), self.max_nfe)
        if not budget.allows(need := self.nfe(hooks=hooks)):
            raise ValueError(f"{name}: max_nfe is {self.max_nfe}, and it takes at least {need:.0f}: raise it.")
        state = self.search(policy, state, hooks, budget)
        state.calls = budget.calls()
        return state

    def refuse_forgotten_noise(self, policy) -> None:
        """Raises ValueError if the initial noise that is searched does not matter."""
        if self.sampler.forgets_noise(policy):
            raise ValueError(
                f"{type(self).__name__} searches over the initial noise, which this sampler's first step replaces: "
                "give it a deterministic transition (DDIM with eta 0)."
            )
