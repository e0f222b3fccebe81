"""Works on its card, and can break it."""

from __future__ import annotations

from falctl import App, endpoint


class Breaks(App):
    @endpoint("/")
    def add(self) -> int:
        import torch

        return int(torch.ones(8, device="cuda").sum().item())

    @endpoint("/break")
    def index_beyond_the_end(self) -> int:
        import torch

        found = torch.ones(8, device="cuda")[torch.tensor([1 << 20], device="cuda")]
        return int(found.item())  # here CUDA tells of the assertion that failed on the device

    @endpoint("/refused")
    def ask_what_cuda_refuses(self) -> int:
        import torch

        code = int(torch.cuda.cudart().cudaHostRegister(0, 0, 0))
        torch.zeros(1, device="cuda").add_(1)  # here CUDA tells of the invalid argument
        return code
