"""A sampler around a sampler: methods that call the sampling loop several times."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lit_align.diffusion.hook import Hook
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import State


class OuterSampler(Sampler):
    """Base of the methods that search over samples of another sampler, which may itself be an OuterSampler. A method
    overrides `search`.

    Args:
        sampler: the inner sampler (default: 50 DDIM steps, guidance 7.5).
    """

    def __init__(self, sampler: Sampler | None = None):
        self.sampler = sampler or Sampler()
        super().__init__(
            self.sampler.steps, self.sampler.guidance_scale, self.sampler.transition, list(self.sampler.steering)
        )

    @abstractmethod
    def search(
        self, policy, cond: dict, rows: dict, seeds: list[int] | None, hooks: Sequence[Hook], x: Tensor | None
    ) -> State:
        """Final state of the search: one sample per prompt."""

    def plain(self) -> Sampler:
        return self.sampler.plain()

    @property
    def is_steered(self) -> bool:
        return True

    def __call__(
        self,
        policy,
        prompts: list[str] | None = None,
        *,
        cond: dict | None = None,
        columns: dict[str, list] | None = None,
        x: Tensor | None = None,
        seeds: list[int] | None = None,
        hooks: Sequence[Hook] = (),
        grad: Tensor | None = None,
        record: bool = False,
    ) -> State:
        """Runs the search; see Sampler. Raises ValueError for `grad` and `record`: a selected sample has neither a
        gradient nor a likelihood."""
        if grad is not None or record:
            name = type(self).__name__
            raise ValueError(
                f"{name} selects among finished samples, which cannot be trained through: use it in sampler."
            )
        cond = policy.condition(prompts) if cond is None else cond
        return self.search(policy, cond, {"prompt": prompts, "columns": columns or {}}, seeds, hooks, x)
