"""DiffusionOPD: one policy learns from several aligned ones, on its own rollouts."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms.online import Online, repeat_rows
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.state import Trajectory, select_rows


class DiffusionOPD(Online):
    """On-policy distillation (Li et al. 2026, arXiv 2605.15055): at every step of the policy's own rollouts,
    KL(p_theta(x_s | x_t, c) || p_teacher(x_s | x_t, c)) = mean |mu_theta - mu_teacher|^2 / (2 std^2), with the means
    alone at a deterministic step. Each prompt has one teacher.

    Logs `train/distance/<teacher>`, the mean squared distance of the means.

    Args:
        teachers: name -> where its weights are: for adapter LoRA a LoRA file or its folder, such as a run's policy/;
            else the folder of a pipeline.
        route: column of the prompts whose cells name the teacher; none: a batch's prompts take them in turn.
        rollout: a sampler, noisy or not.
        samples_per_prompt: trajectories per prompt.
    """

    feedback = ("prompt",)

    def __init__(
        self,
        teachers: dict[str, str],
        route: str | None = None,
        rollout: Sampler | None = None,
        samples_per_prompt: int = 1,
        updates: int = 1,
        **kwargs,
    ):
        super().__init__(rollout=rollout, updates=updates, **kwargs)
        if not teachers:
            raise ValueError("DiffusionOPD learns from aligned policies: name one of model.teachers.")
        self.teachers, self.route, self.samples_per_prompt = teachers, route, samples_per_prompt

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            for name, source in self.teachers.items():
                self.policy.add_frozen(name, source)

    def teachers_of(self, rows: dict) -> list[str]:
        """The teacher of each row."""
        if self.route is None:
            names = list(self.teachers)
            return [names[i // self.samples_per_prompt % len(names)] for i in range(len(rows["prompt"]))]
        if self.route not in rows["columns"]:
            found = ", ".join(rows["columns"]) or "none"
            raise ValueError(f"the prompts have no column {self.route}; columns are {found}: set --model.route.")
        named = rows["columns"][self.route]
        if unknown := [name for name in named if name not in self.teachers]:
            raise ValueError(
                f"column {self.route} names {unknown[0]!r}, and the teachers are {', '.join(self.teachers)}: add it to "
                "--model.teachers, or leave the prompt out."
            )
        return named

    @torch.no_grad()
    def collect(self, batch: dict) -> tuple[Trajectory, list[str]]:
        rows, parts = repeat_rows(batch, self.samples_per_prompt), []
        for part in torch.arange(len(rows["prompt"])).split(self.minibatch):
            own = select_rows(rows, part.tolist())
            state = self.rollout(self.policy, own["prompt"], columns=own["columns"], record=True)
            parts.append(state.trajectory)
        return Trajectory.cat(parts), self.teachers_of(rows)

    def optimizer_steps(self, collected: tuple[Trajectory, list[str]]) -> Iterator[list[dict]]:
        """Each optimizer step trains all steps of its share of the trajectories, a teacher's in minibatches of its
        own."""
        trajectory, names = collected
        n, steps = trajectory.t.shape
        for share in self.shares(n):
            minibatches = []
            for teacher in self.teachers:
                rows = torch.tensor([i for i in share.tolist() if names[i] == teacher], dtype=torch.long)
                cells = torch.cartesian_prod(rows, torch.arange(steps)).view(-1, 2)
                for part in cells[torch.randperm(len(cells))].split(self.minibatch) if len(cells) else ():
                    m = {"trajectory": trajectory, "teacher": teacher, "rows": part[:, 0], "steps": part[:, 1]}
                    minibatches.append(m | {"share": 1 / (len(share) * steps)})
            yield minibatches

    def batch_loss(self, m: dict) -> Tensor:
        step = m["trajectory"].minibatch(m["rows"], m["steps"])
        given = self.policy, step["x_t"], step["t"], step["s"], step["cond"]
        mean, std = self.rollout.gaussian(*given)[0]
        with torch.no_grad(), self.policy.old(m["teacher"]):
            target = self.rollout.gaussian(*given)[0].mean
        distance = self.policy.error(mean, target)  # (M,)
        self.log_mean(f"train/distance/{m['teacher']}", distance.detach().mean(), len(distance))
        variance = std.flatten(1)[:, 0].square().expand(len(distance))
        weight = torch.where(variance > 0, 0.5 / variance.clamp(min=1e-12), 1.0)
        return (weight * distance).sum() * m["share"]
