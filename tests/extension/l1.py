"""An l1 threat model, from outside the package."""

import torch
from torch import Tensor

from robustcords import Noise, ThreatModel


class L1(ThreatModel):
    """``sum |delta_j| <= epsilon``, with the sparse steps of Tramer and Boneh 2019."""

    autoattack_norm = "L1"

    def diameter(self, size: int) -> float:
        """Returns the number of pixels and channels."""
        return float(size)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the point of the ball next to ``x_adv`` (Duchi et al. 2008), clipped to [0, 1]."""
        delta = (x_adv - x).flatten(1)
        longest = delta.abs().sort(dim=1, descending=True).values
        excess = longest.cumsum(dim=1) - self.epsilon
        count = torch.arange(1, longest.shape[1] + 1, device=x.device)
        last = (longest - excess / count > 0).sum(dim=1, keepdim=True).clamp(min=1)
        threshold = (excess.gather(1, last - 1) / last).clamp(min=0)
        shrunk = delta.sign() * (delta.abs() - threshold).clamp(min=0)
        return (x + shrunk.view_as(x)).clamp(*self.bounds)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Returns a step on the twentieth of the pixels with the steepest gradient."""
        flat = gradient.flatten(1)
        count = max(1, flat.shape[1] // 20)
        steepest = flat.abs().topk(count, dim=1)
        step = torch.zeros_like(flat).scatter(1, steepest.indices, flat.gather(1, steepest.indices).sign())
        return x_adv + step_size / count * step.view_as(x_adv)

    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns points drawn uniformly from the ball: exponential lengths, of which one is no pixel's."""
        size = x[0].numel()
        lengths = -(1 - noise.uniform((size + 1,))).log()
        signs = noise.uniform((size,), draw=1).sub(0.5).sign()
        delta = self.epsilon * signs * lengths[:, :size] / lengths.sum(dim=1, keepdim=True)
        return self.project(x + delta.view_as(x).to(x.dtype), x)
