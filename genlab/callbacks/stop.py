"""Commands that keep nothing in hand stop at once."""

from __future__ import annotations

import signal
from typing import Any

from pytorch_lightning.callbacks import Callback


class StopAtOnce(Callback):
    """Keeps the handler of SIGTERM that was set when this was made.

    Lightning's only sets a flag, which nothing asks but training.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._keep()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._keep()

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._keep()

    def _keep(self) -> None:
        signal.signal(signal.SIGTERM, self._handler)
