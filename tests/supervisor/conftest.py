"""Machines with NVIDIA cards, for the tests of this folder."""

from tests.fakes.nvml.fixtures import make_nvml, nvml_library

__all__ = ["make_nvml", "nvml_library"]
