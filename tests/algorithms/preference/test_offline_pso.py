import torch
from parts import prompts, sgd, spy, tiny, trainer

from lit_align.algorithms.preference.offline_pso import OfflinePSO
from lit_align.diffusion.sampler import Sampler
from lit_align.diffusion.transition import DDIM


def test_offline_pso_learns_at_the_samplers_times_alone(tmp_path):
    policy = tiny()
    method = OfflinePSO(policy=policy, rollout=Sampler(3, 1.0, DDIM(1.0)), updates=2, optimizer=sgd())
    with spy(method, "loss") as loss:
        trainer(tmp_path).fit(method, prompts(8, win=torch.rand(8, 3, 16, 16)))
    seen = [call.args[0] for call in loss.call_args_list]
    times = torch.cat([e.t for e in seen])
    assert set(times.tolist()) == set(policy.process.timesteps(3)[:-1].tolist())
    assert seen[0].gap.abs().max() == 0 and seen[-1].gap.abs().max() > 0
