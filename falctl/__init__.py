"""falctl: every GPU in a workstation behind one local endpoint."""

from falctl.app import App, RunnerContext, endpoint
from falctl.version import __version__

__all__ = ["App", "RunnerContext", "__version__", "endpoint"]
