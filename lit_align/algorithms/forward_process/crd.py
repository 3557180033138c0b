"""CRD: regresses the policy's implicit reward on the given reward, both relative to their prompt's mean."""

from contextlib import AbstractContextManager

from torch import Tensor

from lit_align.algorithms.forward_process.forward_process import ForwardProcess, NoisedBatch

SAMPLING = "sampling"  # name of the behaviour policy's weights


class CRD(ForwardProcess):
    """Zhu et al. 2026, arXiv 2603.14128, as its first author wrote it for Flow-Factory (equation numbers unverified).
    With r = A / (2 A_max) + 1/2 and l(v) = mean |v - target|^2 / sg(mean |v - target|),

        R_theta = l(v_old) - l(v_theta),
        L = (A_max / beta) (beta (R_theta - mean R_theta) - (r - mean r))^2 + k(r) mean |v_theta - v_ref|^2,

    the means over a prompt's samples, which share t, so the partition function cancels. The reference is guided, so the
    policy learns to sample without guidance. k grows with the reward, from `kl_floor` to `kl_weight`. The behaviour
    policy is a third copy with its own decay: the old policy can lag behind while samples stay fresh. (Flow-Factory can
    weight the means by a softmax of r; here they are plain, its default.)

    Args:
        beta: of the implicit reward.
        kl_weight: k(1).
        kl_floor: k(0).
        reference_guidance: guidance scale of the reference.
        sampling_decay: of the behaviour policy, like `decay`.
    """

    grouped, uses_reference = True, True

    def __init__(
        self,
        beta: float = 1.0,
        kl_weight: float = 0.1,
        kl_floor: float = 1e-4,
        reference_guidance: float = 4.5,
        decay: tuple[float, float, float, int] = (0.25, 0.005, 0.999, 0),
        sampling_decay: tuple[float, float, float, int] = (0.0, 0.0075, 0.999, 75),
        **kwargs,
    ):
        super().__init__(decay=decay, **kwargs)
        self.beta, self.kl_weight, self.kl_floor = beta, kl_weight, kl_floor
        self.reference_guidance = reference_guidance
        self.decays[SAMPLING] = sampling_decay

    def sampling_policy(self) -> AbstractContextManager:
        return self.policy.old(SAMPLING)

    def centred(self, x: Tensor) -> Tensor:
        """x (M,) minus its prompt's mean."""
        x = x.view(-1, self.group_size)
        return (x - x.mean(1, keepdim=True)).flatten()

    def loss(self, b: NoisedBatch) -> Tensor:
        r = b.advantage / (2 * self.max_advantage) + 0.5
        implicit = self.normalised_error(b.old, b.target) - self.normalised_error(b.pred, b.target)
        gap = self.beta * self.centred(implicit) - self.centred(r)
        k = self.kl_floor + r * (self.kl_weight - self.kl_floor)
        return self.max_advantage / self.beta * gap.square() + k * self.policy.error(b.pred, b.ref)
