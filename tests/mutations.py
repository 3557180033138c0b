"""Breaks the library on purpose, one line at a time, and says which breaks the tests notice. It is no test itself.

    python tests/mutations.py                  every mutation, about 10 s each on an idle machine
    python tests/mutations.py --only dpo       those whose file has this in its name
    python tests/mutations.py --sample 20      as many, drawn by --seed
    python tests/mutations.py --check          whether every old text still stands in its file, once

A mutation is applied to a copy of the tree, and its own test files run there until the first failure.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
A, T = "lit_align/algorithms/", "tests/algorithms/"
PREFERENCE, PG, RG, FP, RW, TP, PARTS = (
    f"{A}{room}/" for room in ("preference", "policy_gradient", "reward_gradient", "forward_process", "reward_weighted", "trajectory_preference", "parts")
)
GAP = "-F.logsigmoid(self.beta * e.gap)"
TURNED = (GAP, "-F.logsigmoid(-self.beta * e.gap)")


def own(file: str) -> str:
    """The test file that mirrors a file of the library."""
    return file.replace("lit_align/", "tests/").replace(Path(file).name, f"test_{Path(file).name}")


MUTATIONS: list[tuple[str, str, list[tuple[str, str]]]] = [  # file, its test files ("": the one that mirrors it), (old, new)
    # preference
    (PREFERENCE + "dpo.py", "", [TURNED, ("self.beta * e.gap", "0.5 * self.beta * e.gap")]),
    (PREFERENCE + "online_dpo.py", "", [TURNED, ("pick(reward.argmax(1))", "pick(reward.argmin(1))"), ('self.samples_from == "reference"', 'self.samples_from == "policy"')]),
    (PREFERENCE + "spin.py", "", [TURNED, ("self.reference_latents(batch)", 'self.draw_latents(batch["prompt"])')]),
    (PREFERENCE + "offline_pso.py", "", [TURNED, ('"win_latents": self.latents(batch, "win"), "lose_latents": self.reference_latents(batch)', '"lose_latents": self.latents(batch, "win"), "win_latents": self.reference_latents(batch)'), ("self.reference_latents(batch)", 'self.draw_latents(batch["prompt"])'), ("grid = self.rollout.timesteps(self.policy).to(x_0.device)[:-1]", "grid = self.rollout.timesteps(self.policy).to(x_0.device)")]),
    (PREFERENCE + "dde.py", "", [("self.beta * self.weight(e.t) * e.gap", "self.beta * e.gap"), ("(process.sigma(t) * process.alpha(t)).square()", "process.sigma(t) * process.alpha(t)")]),
    (PREFERENCE + "rankdpo.py", "", [("lambdas(2**phi - 1,", "lambdas(phi,"), ("wins.mean(3).sum(2) - 0.5", "wins.mean(3).sum(2)")]),
    (PREFERENCE + "linear_dpo.py", "", [("e.gap.detach()", "e.gap"), (".clamp(self.eta, 1 - self.eta)", ".clamp(self.eta)"), ("self.policy.update_reference(self.reference_decay)", "self.policy.update_reference()")]),
    (PREFERENCE + "inpo.py", "", [("+= self.fresh_noise", "-= 0 * self.fresh_noise"), ("DDIM(self.eta)", "DDIM(1.0)"), ("clean, level = (x_s - s_s * eps) / a_s, t", "clean, level = (x_s - s_s * eps) / a_s, s"), ("torch.stack(predictions).mean(0)", "predictions[-1]"), ("self.policy.denoise(x, t, cond)", "self.policy.denoise(x, s, cond)")]),
    (PREFERENCE + "inversion_dpo.py", "", [("with self.policy.reference():", "if True:"), ("return clean, t, eps", "return x_0, t, eps")]),
    (PREFERENCE + "self_dpo.py", "", [('"win_latents": win, "lose_latents": win.roll(shift, 0)', '"lose_latents": win, "win_latents": win.roll(shift, 0)'), ("torch.randint(1, len(win), ())", "torch.randint(0, len(win), ())"), TURNED]),
    (PREFERENCE + "rpo.py", "", [("- (e.ref_lose - e.lose)", "+ (e.ref_lose - e.lose)"), ("(cosine - 1) / self.tau, 1", "(cosine - 1) / self.tau, 0"), ("t[:1].expand(len(t))", "t"), ("win @ lose.T", "lose @ win.T")]),
    (PREFERENCE + "nash_md.py", "", [("self.draw_latents(rows[\"prompt\"], mixture)", "self.draw_latents(rows[\"prompt\"])"), ("eps.lerp(state.eps, self.share)", "eps"), ("(first - second)", "(second - first)"), ("2 * e.batch[\"p\"] - 1", "e.batch[\"p\"]")]),
    (PREFERENCE + "fdpo.py", "", [("(-u).clamp(max=80).exp()", "(-u).exp()"), ("((alpha - 1) * u).clamp(max=80)", "((alpha - 1) * u)"), ("return F.logsigmoid(u)", "return F.logsigmoid(-u)")]),
    (PREFERENCE + "ipo.py", "", [("self.beta * e.gap - 1", "self.beta * e.gap + 1")]),
    (PREFERENCE + "cdpo.py", "", [("-(1 - flip) * F.logsigmoid(x) - flip", "-(1 - flip) * F.logsigmoid(x) + flip")]),
    (PREFERENCE + "rdpo.py", "", [("/ (1 - 2 * flip)", "/ (1 - flip)")]),
    (PREFERENCE + "dspo.py", "", [("torch.sigmoid(-self.beta * e.gap)", "torch.sigmoid(self.beta * e.gap)"), ("(prediction - reference)", "(reference - prediction)")]),
    (PREFERENCE + "npo.py", "", [("-F.logsigmoid(-self.beta * e.gap)", GAP), ("() if self.policy.in_reference else (NegativeBranch(),)", "()")]),
    (PREFERENCE + "mapo.py", "", [("1 - x / 2 + x.square() / 12", "1 + x / 2"), ("self.score(e.win) - self.score(e.lose)", "self.score(e.lose) - self.score(e.win)")]),
    (PREFERENCE + "simpo.py", "", [("- self.gamma", "+ self.gamma")]),
    (PREFERENCE + "orpo.py", "", [("e.lose - e.win", "e.win - e.lose")]),
    (PREFERENCE + "kto.py", "", [("torch.where(good, 1.0, -1.0)", "torch.where(good, -1.0, 1.0)"), ("y * self.beta * (h - z)", "y * self.beta * h")]),
    (PREFERENCE + "smpo.py", "", [("(self.high - self.low)", "self.high"), ("2 * self.label(e.batch) - 1", "self.label(e.batch)")]),
    (PREFERENCE + "capo.py", "", [("self.beta * w * gap(r.h)", "self.beta * gap(r.h)"), ("front(-r.scores)", "front(r.scores)")]),
    (PREFERENCE + "gpo.py", "", [("self.beta * e.gap", "-self.beta * e.gap")]),
    (PREFERENCE + "lipo.py", "", [("descending=True, stable=True", "stable=True"), ("2**r.score", "r.score")]),
    (PREFERENCE + "pro.py", "", [("-self.kappa * r.error", "self.kappa * r.error")]),
    (PREFERENCE + "rrhf.py", "", [("gaps(self.kappa * r.error)", "gaps(-self.kappa * r.error)")]),
    (PREFERENCE + "pl_dpo.py", "", [("self.beta * r.h", "-self.beta * r.h")]),
    (PREFERENCE + "flow_dpo.py", "", [("alpha(e.t).square()", "alpha(e.t)")]),
    (PREFERENCE + "preference.py", "", [("torch.cat([eps, eps])", "torch.randn_like(x_0)"), ("(1 - mu) * g_w", "(1 + mu) * g_w"), ("self.loss(e) * batch[\"weight\"].to(e.win)", "self.loss(e)"), ("torch.cat([t, t])", "torch.cat([t, t.flip(0)])")]),
    # policy gradients
    (PG + "flow_grpo.py", f"{T}policy_gradient/test_flow_grpo.py {T}policy_gradient/test_flash_grpo.py", [("((rho - 1).abs() > e)", "((rho - 1).abs() < e)"), ("kl = kl * (step.t - step.s)", "pass"), ("loss = loss / (step.t - step.s)", "pass"), ("steps[steps < self.rollout.steps - 1]", "steps"), ("m[\"share\"] / learnt", "m[\"share\"]")]),
    (PG + "flow_dppo.py", "", [("(rho - 1) * step.advantage > 0", "(rho - 1) * step.advantage < 0"), ("kl >= self.max_kl", "kl < self.max_kl")]),
    (PG + "flash_grpo.py", "", [("* scale / self.sensitivity(step.t, step.s)", "* scale * self.sensitivity(step.t, step.s)"), ("1 / (1 / self.sensitivity(grid[:-1], grid[1:])).mean()", "1.0"), ("/ still.std", "")]),
    (PG + "tempflow_grpo.py", "", [('f"{p} {row} {i}"', "p"), ("* step.gaussian.std.flatten(1)[:, 0] / std", ""), ("value[:, :1]", "value[:, -1:]"), ("trunk.x_t[:, i]", "trunk.x_t[:, 0]")]),
    (PG + "dense_grpo.py", "", [("reward[:, 1:] - reward[:, :-1]", "reward[:, :-1] - reward[:, 1:]"), ("sampler.transition = DDIM(0.0)", "pass"), ('f"{p} {k}"', 'f"{p}"')]),
    (PG + "tree_grpo.py", "", [(".mean(2)", ".amax(2)"), ("if state.i in self.splits:", "if True:")]),
    (PG + "branch_grpo.py", "", [("gaussian.mean + self.noise * (x_s - gaussian.mean)", "x_s"), ("reward.argmin(1)", "reward.argmax(1)"), ("node = reward.unflatten(1, (nodes, -1)).mean(2)", "node = reward.unflatten(1, (nodes, -1)).amax(2)")]),
    (PG + "ddrl.py", "", [("self.data_weight * m[\"share\"] * error", "self.data_weight * error"), ("return self.data_weight", "return -self.data_weight")]),
    (PG + "gardo.py", "", [("1 - self.gated", "self.gated"), ("torch.where(centred > 0, centred * weight, centred)", "centred * weight"), (".amin(2)", ".nan_to_num(posinf=0).amax(2)"), ("kl > self.max_kl", "kl < self.max_kl"), ("self.win_rate(reward) - torch", "-self.win_rate(reward) + torch")]),
    (PG + "ddpo.py", "", [("clipped_surrogate(rho, step.advantage, e)", "clipped_surrogate(rho, -step.advantage, e)")]),
    (PG + "dpok.py", "", [("step.advantage - value.detach()", "step.advantage"), ("+ self.kl_weight * kl", "- self.kl_weight * kl"), ("step.t)\n        advantage", "step.t * 0)\n        advantage")]),
    (PG + "prdp.py", "", [("torch.maximum(residual", "torch.minimum(residual"), ("- gap(advantage[:, 0])", "+ gap(advantage[:, 0])")]),
    (PG + "sdpo.py", "", [("self.discount * returns[:, k + 1]", "returns[:, k + 1]"), ("self.decay**k * pairs(x)", "pairs(x)")]),
    (PG + "tdpo_r.py", "", [('"share": 1 / len(part)', '"share": 1 / len(rows)'), ("residual = returns[:, None] - value", "residual = returns[:, None] + 0 * value"), ("score > self.dormant", "score <= self.dormant")]),
    (PG + "pcl.py", "", [("policy * step.log_prob", "-policy * step.log_prob")]),
    (PG + "policy_gradient.py", "", [("(self.log_prob - self.old_log_prob).exp()", "(self.old_log_prob - self.log_prob).exp()"), ("x.repeat_interleave(self.noise_group_size, 0)", "x.repeat(self.noise_group_size, 1, 1, 1)")]),
    # trajectory preferences
    (TP + "trajectory_preference.py", T + "trajectory_preference/test_d3po.py", [("torch.stack([(a - b).sign(), (b - a).sign()], 1)", "torch.stack([(b - a).sign(), (a - b).sign()], 1)"), ("clamp(1 - self.clip_range, 1 + self.clip_range)", "clamp(1 - self.clip_range)")]),
    (TP + "dense_reward.py", "", [("self.gamma ** torch.arange(len(grid), device=t.device)", "self.gamma ** torch.arange(len(grid), device=t.device).flip(0)")]),
    (TP + "spo.py", "", [("x[rows + score.argmax(1)], x[rows + score.argmin(1)]", "x[rows + score.argmin(1)], x[rows + score.argmax(1)]"), ("s if self.reward.needs_x0 else repeated(state.t)", "s"), ("rows + torch.randint(k, (n,), device=x.device)", "rows + score.argmax(1)")]),
    # reward gradients
    (RG + "draft.py", "", [("last_k(steps, self.K)", "last_k(steps, self.K + 1)"), ("x_0.detach()", "x_0")]),
    (RG + "drtune.py", "", [("state.x.detach()", "state.x"), ("stride = steps // self.K", "stride = 1")]),
    (RG + "adjoint_matching.py", "", [("-self.scale * reward.sum()", "self.scale * reward.sum()"), ("with torch.enable_grad(), self.policy.reference():", "with torch.enable_grad():"), ("-std * step.advantage.to(std)", "-step.advantage.to(std)")]),
    (RG + "nabla_gflownet.py", "", [("std.square(), self.reward_score(step)", "std, self.reward_score(step)"), ("alpha.square() * gradient", "alpha * gradient"), ("step.rows.tolist()", "range(len(step.t))"), ("self.rollout.predict(self.policy, x_s, step.s, step.cond)", "self.rollout.predict(self.policy, x_s, step.t, step.cond)")]),
    (RG + "refl.py", "", [("(self.threshold - reward).relu()", "(reward - self.threshold).relu()")]),
    (RG + "alignprop.py", "", [("self.target - reward", "reward")]),
    (RG + "elegant.py", "", [("- math.log(self.rollouts)", ""), ("self.alpha * self.path_kl - reward", "-self.alpha * self.path_kl - reward")]),
    (RG + "seiko.py", "", [("+ self.kl_weight * self.path_kl", "")]),
    # distillation
    (A + "distillation/diffusion_opd.py", "", [("0.5 / variance", "1.0 / variance"), ("self.policy.old(m[\"teacher\"])", "self.policy.old(next(iter(self.teachers)))"), ("i // self.samples_per_prompt % len(names)", "i % len(names)"), ("1 / (len(share) * steps)", "1 / steps")]),
    # forward process, reward weighted
    (FP + "nft.py", "", [("r * plus + (1 - r) * minus", "(1 - r) * plus + r * minus"), ("(1 + beta) * b.old - beta * b.pred", "(1 - beta) * b.old + beta * b.pred")]),
    (FP + "awm.py", "", [("b.advantage / self.max_advantage", "-b.advantage / self.max_advantage")]),
    (FP + "dgpo.py", "", [("rho > 1 + e, rho < 1 - e", "rho < 1 - e, rho > 1 + e"), ("(l_theta - l_ref)", "(l_ref - l_theta)")]),
    (FP + "crd.py", "", [("self.beta * self.centred(implicit) - self.centred(r)", "self.beta * self.centred(implicit) + self.centred(r)")]),
    (RW + "bond.py", "", [("(r_j <= r_i)", "(r_j < r_i - 1)"), ("at_most**self.n - below**self.n", "at_most - below")]),
    (RW + "max_min.py", "", [("mean.argmin()", "mean.argmax()"), ("- self.rate * mean", "+ self.rate * mean")]),
    # parts
    (PARTS + "path_kl.py", "", [("current = gaussian if state.needs_grad else Gaussian(gaussian.mean.detach(), gaussian.std)", "current = gaussian"), ("torch.set_grad_enabled(state.needs_grad)", "torch.set_grad_enabled(False)")]),
    (PARTS + "latent_critic.py", "", [("(self.times - t.float()[:, None]).abs().argmin(1)", "torch.zeros(len(t), dtype=torch.long)")]),
    (PARTS + "advantages.py", "", [("(total - reward) / (count - 1).clamp(min=1)", "total / count"), (".fill_diagonal_(0)", ""), ("equal_rewards(group, reward), 0.0)\n        if", "equal_rewards(group, reward) & False, 0.0)\n        if"), ("w * self.group(prompt_id, r)", "self.group(prompt_id, r)"), ("[: -self.max_prompts]", "[: -10 * self.max_prompts]")]),
    (PARTS + "clipping.py", "tests/algorithms/policy_gradient/test_ddpo.py tests/algorithms/policy_gradient/test_flow_grpo.py", [("torch.maximum(-advantage", "torch.minimum(-advantage")]),
    (PARTS + "consistency.py", "", [("times[i + 1]", "times[i]")]),
    (PARTS + "replay.py", "", [("[-self.size :]", "[: self.size]")]),
    # training
    (A + "online.py", T + "test_online.py", [("(self.batch_number + 1) % self.refresh_every", "self.batch_number % self.refresh_every")]),
    (A + "algorithm.py", T + "test_online.py", [("self.batch_number * self.trainer.world_size + self.global_rank", "self.global_rank"), ("self.batch_number * self.trainer.world_size + self.global_rank", "self.batch_number + self.global_rank"), ("seed * 1_000_003", "0")]),
    # diffusion
    ("lit_align/diffusion/transition.py", "", [("v + level.square() / (2 * t)", "v - level.square() / (2 * t)"), ("math.sin(self.a * math.pi / 2)", "self.a"), ("0.5 * self.eta**2 * score", "self.eta**2 * score"), ("0.5 * (ratio.square() + z.square() - 1)", "0.5 * z.square()"), ("(t >= self.low) & (t <= self.high)", "t <= self.high")]),
    ("lit_align/diffusion/process.py", "", [("(s * x_t + a * pred) / (a * a + s * s)", "(s * x_t - a * pred) / (a * a + s * s)"), ("a * eps - s * x_0", "a * eps + s * x_0"), ("(s_t.square() - (scale * s_s).square())", "(s_t.square() - s_s.square())")]),
    ("lit_align/diffusion/sampler.py", "", [("torch.arange(n) >= n - k", "torch.arange(n) < k")]),
    ("lit_align/diffusion/state.py", "tests/steering/test_best_of_n.py tests/diffusion/test_sampler.py tests/steering/test_random_search.py", [('f"{seed}/{k}{', 'f"{seed + k}/{0}{')]),
    # data
    ("lit_align/data/order.py", "tests/data/test_order.py tests/data/test_curriculum.py", [("argsort(descending=True, stable=True)", "argsort(stable=True)"), ("(stage + 1) // self.stages", "stage // self.stages"), ("batches * self.batch_size, None", "0, None"), ("first + self.rank", "first")]),
    ("lit_align/data/feedback.py", "", [("Pair(i, j, gap) if gap > 0 else Pair(j, i, -gap)", "Pair(j, i, gap) if gap > 0 else Pair(i, j, -gap)"), ("1.0 / size[group]", "1.0 * size[group]")]),
    # rewards
    ("lit_align/rewards/clip_score.py", "", [("return 100.0", "return float(self.model.logit_scale.exp())")]),
    ("lit_align/rewards/step_aware.py", "tests/rewards/test_rewards.py", [("torch.cat([angle.cos(), angle.sin()], 1)", "torch.cat([angle.sin(), angle.cos()], 1)")]),
    ("lit_align/rewards/image_reward.py", "", [("- self.mean) / self.std", "+ self.mean) / self.std")]),
    ("lit_align/rewards/jpeg.py", "", [("self.sign * torch.tensor", "-self.sign * torch.tensor")]),
    # steering
    ("lit_align/steering/fk_steering.py", "", [('-torch.inf) if self.potential == "max" else zero', '-torch.inf) if self.potential != "sum" else zero'), ("round((self.start + k * self.every) * steps)", "round((self.start + k * self.every) * steps) + 1")]),
    ("lit_align/steering/universal_guidance.py", "", [("state.eps = state.eps - push", "state.eps = state.eps + push"), ("loss = -judge", "loss = judge")]),
    ("lit_align/steering/pag.py", "", [("state.x0 + s * gap", "state.x0 - s * gap")]),
    ("lit_align/steering/cfgpp.py", "", [('state.branches["null"], state.x, state.t)', 'state.branches["cond"], state.x, state.t)')]),
    ("lit_align/steering/reneg.py", "", [("-reward.sum(), text", "reward.sum(), text")]),
    # callbacks
    ("callbacks/reward_overoptimization.py", "tests/callbacks/test_reward_overoptimization.py", [("held_out < self.best - self.min_delta", "held_out < self.best"), ("held_out > self.best + self.min_delta", "held_out > self.best"), ("proxy > self.best_proxy", "proxy < self.best_proxy")]),
    ("callbacks/lora_scaling.py", "tests/callbacks/test_lora_scaling.py", [("trainer.global_step / self.ramp", "1.0"), ("min(1.0, trainer.global_step / self.ramp)", "trainer.global_step / self.ramp")]),
    ("callbacks/ema.py", "tests/callbacks/test_ema.py", [("1 - decay**updates", "1 - decay"), ("(1 + self.step) / (10 + self.step)", "1.0")]),
]  # fmt: skip


def every() -> list[tuple[str, str, str, list[str]]]:
    """(file, old, new, test files) of each mutation."""
    return [(file, *pair, (tests or own(file)).split()) for file, tests, pairs in MUTATIONS for pair in pairs]


def check(mutations) -> list[str]:
    """What is wrong with the list: an old text that stands in its file not once, or a test file that is not there."""
    wrong = [f"{file}: {old!r} stands there {n} times" for file, old, _, _ in mutations if (n := (ROOT / file).read_text().count(old)) != 1]
    return wrong + [f"{file}: there is no {test}" for file, _, _, tests in mutations for test in tests if not (ROOT / test).is_file()]


def copy(folder: Path) -> Path:
    """The tree without what a run made; checkpoints are linked."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "checkpoints", "__pycache__", "*.egg-info"))
    (tree / "checkpoints").symlink_to(ROOT / "checkpoints")
    return tree


def preload() -> None:
    """Imports what takes long to import and is not mutated."""
    import datasets  # noqa: F401
    import lightning  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401

    torch.set_num_threads(1)


def run(tree: Path, tests: list[str]) -> int:
    """pytest's exit code in a child process, which imports the tree anew; 1 after ten minutes."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        return 1 if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else os.waitstatus_to_exitcode(status)
    import pytest

    signal.alarm(600)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1), os.dup2(nothing, 2)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def verdict(tree: Path, file: str, old: str, new: str, tests: list[str]) -> str:
    """noticed, survived, or broken: the tests could not run."""
    path, text = tree / file, (ROOT / file).read_text()
    path.write_text(text.replace(old, new))
    try:
        code = run(tree, tests)
    finally:
        path.write_text(text)
    return {0: "survived", 1: "noticed"}.get(code, "broken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of files' names")
    parser.add_argument("--sample", type=int, help="how many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="run nothing")
    given = parser.parse_args()
    chosen = [m for m in every() if any(part in m[0] for part in given.only)]
    if wrong := check(chosen):
        sys.exit("\n".join(wrong))
    if given.check:
        return print(f"{len(chosen)} mutations of {len({m[0] for m in chosen})} files")
    if given.sample:
        chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # for what the tests start
    sys.dont_write_bytecode = True
    preload()
    noticed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copy(Path(folder))
        os.environ["PYTHONPATH"] = str(tree)
        for file, old, new, tests in chosen:
            found = verdict(tree, file, old, new, tests)
            noticed += found == "noticed"
            print(f"{found:9} {file}: {old!r} -> {new!r}", flush=True)
    print(f"{noticed} of {len(chosen)} noticed ({noticed / len(chosen):.0%})")


if __name__ == "__main__":
    main()
