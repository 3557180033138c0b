"""A run that is stopped from outside loses nothing."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveOnInterrupt(L.Callback):
    """Makes every ModelCheckpoint save when training is stopped by SIGTERM or Ctrl-C, and not on other errors, whose
    weights may be bad. Lightning calls checkpoint callbacks last, so they see what is set here."""

    def on_exception(self, trainer, module, exception) -> None:
        if trainer.state.fn == "fit" and isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.save_on_exception = True
