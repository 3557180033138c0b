"""A sampler around a sampler: methods that call the sampling loop several times."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lit_align.diffusion.budget import Budget
from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State


class OuterSampler(Sampler):
    """Base of the methods that search over samples of another sampler, which may itself be an OuterSampler. A method
    overrides `search`, and `check` where it cannot work with every inner sampler.

    Args:
        sampler: the inner sampler (default: 50 DDIM steps, guidance 7.5).
        max_nfe: network forwards and backwards that a prompt may take, guidance included. The search ends where its
            next run would take more.
    """

    needs_steps = False  # True if it runs single steps, which an OuterSampler inside does not have

    def __init__(self, sampler: Sampler | None = None, max_nfe: int | None = None):
        self.sampler = inner = sampler or Sampler()
        super().__init__(
            inner.steps, inner.guidance_scale, inner.transition, list(inner.steering), inner.minibatch, max_nfe
        )
        self.level = inner.level + 1
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

    def start(self, start: State, k: int) -> State:
        """The k-th start of a run; the 0th is that of plain sampling."""
        return start.another(k, self.level)

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
        budget = Budget(policy, len(state.x), self.max_nfe)
        if not budget.allows(need := self.nfe(hooks=hooks)):
            raise ValueError(f"{name}: max_nfe is {self.max_nfe}, and its first run alone takes {need:.0f}: raise it.")
        state = self.search(policy, state, hooks, budget)
        state.calls = budget.calls()
        return state
