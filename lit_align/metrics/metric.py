"""The bases of the metrics."""

import hashlib
from abc import abstractmethod
from inspect import Parameter, signature

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Z = 1.96  # two-sided 95 % of a normal


class Measure(Metric):
    """Base of all metrics here: a torchmetrics.Metric whose `compute` gives {name: number}.

    Attributes: `name` labels its numbers; the others say what a user must know of it (docs/evaluation.md lists them).
    """

    full_state_update = False
    name: str
    artefact = ""  # the published weights it loads: hub id or file
    blind_to = ""  # what it does not see

    def __init__(self):
        super().__init__()
        self.empty: dict[str, Tensor] = {}  # what a process that saw nothing brings to the lists of rows

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """The numbers of all that `update` was given since `reset`, on all processes."""

    def add_rows(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """A state to which `update` appends tensors (N, *shape)."""
        self.add_state(name, [], dist_reduce_fx="cat")
        self.empty[name] = torch.zeros(0, *shape, dtype=dtype)

    def add_sum(self, name: str, *shape: int) -> None:
        """A state (*shape) in float64 to which `update` adds."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _sync_dist(self, *args, **kwargs) -> None:
        for name, empty in self.empty.items():
            if not getattr(self, name):
                setattr(self, name, [empty.to(self.device)])
        super()._sync_dist(*args, **kwargs)


class ImageMetric(Measure):
    """Base of the metrics of a set of samples: one of `metrics` of a model, and of `python -m lit_align evaluate`.

    A subclass gives `update(self, images, prompts, **columns)`: images (N, 3, H, W) in [0, 1], their N prompts, and as
    keyword arguments those columns of the prompts' file that it names, each a list of N. An argument with a default is
    optional. Weights are frozen and in eval mode.
    """

    @property
    def columns(self) -> dict[str, bool]:
        """Columns of the data that `update` takes -> True if required (no default)."""
        parameters = list(signature(type(self).update).parameters.values())[3:]
        return {p.name: p.default is Parameter.empty for p in parameters}

    def train(self, mode: bool = True):
        return super().train(False)

    def records(self) -> list[dict]:
        """What this process saw of each image since `reset`, in the order of `update`; empty where a metric has nothing
        to say of one image. `evaluate` writes it."""
        return []

    def files(self, records: list[dict]) -> dict[str, str]:
        """Name -> content of the files of the benchmark's published format, from `records`."""
        return {}


def given(metric: ImageMetric, rows: dict) -> dict[str, list]:
    """The columns that a metric takes, out of rows {"prompt", "columns"}. ValueError if one lacks."""
    available = rows.get("columns", {})
    if missing := [name for name, needed in metric.columns.items() if needed and name not in available]:
        names = ", ".join(available) or "none besides the prompt"
        raise ValueError(
            f"the metric {metric.name} needs the column `{missing[0]}`; the data has {names}: take the published file "
            "of prompts, or add the column."
        )
    return {name: available[name] for name in metric.columns if name in available}


def text_id(text: str) -> int:
    """A number for a text, the same in every process: states are tensors."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def ids_of(texts: list[str], device) -> Tensor:
    """`text_id` of each, (N,) int64."""
    return torch.tensor([text_id(text) for text in texts], dtype=torch.int64, device=device)


def cat(state) -> Tensor:
    """A state with dist_reduce_fx "cat" as one tensor. ValueError if nothing was given."""
    if isinstance(state, list) and not state or not len(dim_zero_cat(state)):
        raise ValueError("nothing was measured: no image came in.")
    return dim_zero_cat(state)


def group_means(ids: Tensor, values: Tensor) -> Tensor:
    """The mean of `values` (N,) of each distinct id, in the order of ids."""
    distinct, place, n = ids.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(distinct), dtype=values.dtype, device=values.device).index_add(0, place, values) / n


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n."""
    centre, half = share + Z**2 / (2 * n), Z * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    return (centre - half) / (1 + Z**2 / n), (centre + half) / (1 + Z**2 / n)
