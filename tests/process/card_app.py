"""An app that tells in which process it is, and what that was started with."""

from __future__ import annotations

import os
from typing import Any

from falctl import App, endpoint


class CardApp(App):
    """Gives no hints: every runner is as good as any other."""

    @endpoint("/who")
    def who(self) -> dict[str, Any]:
        return {"runner": self.runner.runner, "pid": os.getpid(), "device": self.runner.device}

    @endpoint("/environ")
    def environ(self) -> dict[str, Any]:
        return {"runner": self.runner.runner, "environ": dict(os.environ)}
