"""Adversarial frames: a threat model from outside the package, on top of one of its own."""

from torch import Tensor

from robustcords.threats.linf import Linf


class Frame(Linf):
    """Pixels at most ``thickness`` from an edge may change, by epsilon."""

    norm: str = ""
    thickness: int = 1

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns ``x_adv`` clipped, with the middle of ``x``."""
        inside = (..., *(slice(self.thickness, -self.thickness),) * 2)
        framed = super().project(x_adv, x)
        framed[inside] = x[inside]
        return framed
