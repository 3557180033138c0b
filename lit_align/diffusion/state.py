"""What the sampling loop carries: the particles on their way, and the record of a finished rollout."""

import copy
import zlib
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_align.diffusion.conditioning import cat_conditioning

if TYPE_CHECKING:
    from lit_align.diffusion.hook import Hook
    from lit_align.diffusion.sampler import Sampler


def select_rows(value: Any, rows: list[int]) -> Any:
    """The given rows of a tensor or list, and of every tensor and list in a dict; anything else stays as it is."""
    if isinstance(value, Tensor) and value.ndim:
        return value[torch.tensor(rows, device=value.device)]
    if isinstance(value, dict):
        return {k: select_rows(v, rows) for k, v in value.items()}
    return [value[i] for i in rows] if isinstance(value, list) else value


def randn_like(x: Tensor, generators: list[torch.Generator] | None) -> Tensor:
    """Standard normal noise in the shape of x (P, ...); with generators, row p is drawn from generators[p]."""
    if generators is None:
        return torch.randn_like(x)
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)


def rand(n: int, generators: list[torch.Generator] | None) -> Tensor:
    """n uniform numbers in [0, 1), on the CPU; with generators, the p-th is drawn from generators[p]."""
    return torch.rand(n) if generators is None else torch.tensor([torch.rand((), generator=g) for g in generators])


def derived_seed(seed: int, k: int, depth: int = 1) -> int:
    """The k-th further seed of a seed; the 0th is the seed itself. Samplers around samplers derive at a depth each, so
    that no two of their runs share a seed. (Torch's CPU generator reads the low 32 bits of a seed alone, so a seed plus
    2**32 would give the same stream.)"""
    return zlib.crc32(f"{seed}/{k}{f'/{depth}' * (depth > 1)}".encode()) if k else seed


@dataclass
class Trajectory:
    """A recorded rollout of B samples and T steps. The latents lie on the CPU, whatever the policy's device."""

    x_t: Tensor  # (B, T, ...)
    x_s: Tensor  # (B, T, ...) the result of each step
    t: Tensor  # (B, T)
    s: Tensor  # (B, T)
    log_prob: Tensor  # (B, T), mean over the sample's axes; 0 for a deterministic step
    mean: Tensor  # (B, T, ...) of the Gaussian that x_s was drawn from
    cond: dict  # conditioning, (B, ...) each
    prompts: list[str] | None

    @staticmethod
    def cat(parts: list["Trajectory"]) -> "Trajectory":
        """Concatenates rollouts along B."""
        if len(parts) == 1:
            return parts[0]
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Trajectory)}
        cond = cat_conditioning(columns.pop("cond"))  # texts may differ in length
        return Trajectory(**{name: concatenate(values) for name, values in columns.items()}, cond=cond)

    def minibatch(self, rows: Tensor, steps: Tensor) -> dict:
        """The single steps (rows[m], steps[m]) on the policy's device: x_t, x_s, mean (M, ...), t, s, log_prob (M,)
        and cond."""
        names, device = ("x_t", "x_s", "t", "s", "log_prob", "mean"), self.t.device
        step = {name: getattr(self, name)[rows, steps].to(device) for name in names}
        return step | {"cond": select_rows(self.cond, rows.tolist())}


def concatenate(values: list) -> Any:
    """Joins tensors, lists, or dicts of them along the first axis; of anything else the first value."""
    first = values[0]
    if isinstance(first, dict):
        return {k: concatenate([v[k] for v in values]) for k in first}
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat(values)
    return sum(values, []) if isinstance(first, list) else first


@dataclass
class State:
    """P particles in the loop. Every tensor, list and dict of tensors has the particles on its first axis."""

    x: Tensor  # (P, ...) latents, float32
    cond: dict  # conditioning, (P, ...) each
    prompts: list[str] | None = None
    columns: dict[str, list] = field(default_factory=dict)  # further columns of the prompts' rows, for rewards
    generators: list[torch.Generator] | None = None  # one per particle, where samples are seeded
    steps: int = 0  # of the run
    minibatch: int = 0  # particles in a network forward, decode or reward call; 0: all
    i: int = -1  # the step; -1 where single steps are evaluated outside the loop
    t: Tensor = None  # (P,) the time of the step
    s: Tensor = None  # (P,) the time it leads to
    x0: Tensor = None  # (P, ...) the estimate of x_0 at this step
    eps: Tensor = None  # (P, ...) the noise direction of this step
    branches: dict[str, Tensor] = field(default_factory=dict)  # the step's predictions that guidance combines
    null: dict | None = None  # conditioning that guidance leads away from; None: the policy's own
    needs_grad: bool = False  # True if this step's prediction keeps its gradient
    sampler: "Sampler" = None  # that runs the loop
    hooks: tuple["Hook", ...] = ()  # the outermost first; the last one is plain sampling
    extras: dict = field(default_factory=dict)  # what a hook carries per particle: extras[hook]
    history: list[dict] = field(default_factory=list)  # recorded steps
    calls: Counter = field(default_factory=Counter)  # what the run cost per prompt, see Budget
    trajectory: Trajectory | None = None
    texts: list[str] | None = None  # what is encoded: the prompts, or what hooks have made of them

    def __post_init__(self):
        self.texts = self.prompts if self.texts is None else self.texts

    @property
    def rows(self) -> dict:
        """Prompts and columns of the particles, as `judge` takes them."""
        return {"prompt": self.prompts, "columns": self.columns}

    def read(self, process, prediction: Tensor) -> None:
        """Sets x0 and eps from a prediction at x."""
        self.x0, self.eps = process.to_x0(prediction, self.x, self.t), process.to_eps(prediction, self.x, self.t)

    def inside(self, hook: "Hook") -> "Hook":
        """The hook that `hook` wraps: the next one of `hooks`."""
        return self.hooks[self.hooks.index(hook) + 1]

    def another(self, k: int, depth: int = 1) -> "State":
        """A start for the same rows with noise of its own, from the k-th further seeds; k = 0: this start again."""
        streams = self.generators
        if streams is not None:
            seeds = [derived_seed(g.initial_seed(), k, depth) for g in streams]
            streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = randn_like(self.x, streams) if k or streams else self.x
        start = State(noise if k else self.x, self.cond, self.prompts, self.columns, streams, texts=self.texts)
        start.minibatch = self.minibatch
        return start

    def part(self, rows: Tensor) -> "State":
        """These particles as a state of their own, without a history."""
        part = copy.copy(self)
        part.history = []
        part.reindex(rows)
        return part

    def join(self, parts: list["State"]) -> None:
        """Takes over what was estimated in `parts`, which hold this state's particles in their order."""
        for f in fields(self):
            if f.name not in ("x", "cond", "prompts", "texts", "columns", "generators", "history", "calls", "hooks"):
                setattr(self, f.name, concatenate([getattr(part, f.name) for part in parts]))

    def reindex(self, rows: Tensor) -> None:
        """Particle p becomes a copy of particle rows[p], in every field. The first copy keeps the generator of its
        parent; every further one continues with a new noise stream."""
        rows, seen, parents = rows.tolist(), set(), self.generators
        for f in fields(self):
            if f.name not in ("generators", "history", "calls", "hooks"):
                setattr(self, f.name, select_rows(getattr(self, f.name), rows))
        self.history = [select_rows(step, rows) for step in self.history]
        if parents is not None:
            self.generators = [parents[i] if i not in seen and not seen.add(i) else _branch(parents[i]) for i in rows]


def _branch(parent: torch.Generator) -> torch.Generator:
    seed = torch.randint(2**62, (), generator=parent).item()
    return torch.Generator().manual_seed(seed)
