"""The optimisation that every network of the demo is trained with."""

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter

_GRADIENT_NORM_MAX: Final = 1.0
_PEAK_RATE: Final = 3e-3


class Descent:
    """AdamW under a one-cycle learning rate with clipped gradients, for a fixed number of steps."""

    def __init__(
        self, parameters: Iterable[Parameter], *, steps: int, weight_decay: float, warm_up: float
    ) -> None:
        """Prepare a run; `warm_up` is the share of the steps over which the learning rate rises."""
        self._parameters = list(parameters)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=_PEAK_RATE, weight_decay=weight_decay)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=_PEAK_RATE, total_steps=steps, pct_start=warm_up
        )

    def step(self, loss: Tensor) -> None:
        """Move the parameters one step down the gradient of the loss."""
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, _GRADIENT_NORM_MAX)
        self._optimizer.step()
        self._schedule.step()
