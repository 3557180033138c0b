"""Third-party messages that tell a user of the command line nothing, each by its own words; all others stay."""

import logging
import os
import re
import sys
import warnings

LOGS = {  # logger -> messages that it does not print
    "lightning.fabric.utilities.seed": r"Seed set to",  # the summary says it
    "lightning.pytorch.utilities.rank_zero": (
        r"💡 Tip: For seamless cloud logging"
        r"|[GT]PU available: \w+( \(\w+\))?, us(ed|ing): "  # the summary names the device
        r"|Trainer already configured with model summary callbacks"
        r"|Loaded model weights from the checkpoint"  # after "Restoring states from the checkpoint"
    ),
    "diffusers.loaders.lora_base": r"No LoRA keys associated to",  # of the text encoder; policy.lora checks all keys
    "diffusers.models.modeling_utils": r"There are modules in \w+ that should be kept in float32: \[\]",  # none
    "transformers.utils.import_utils": r"`\w+` requires torchvision \(not installed\); falling back to",
}
WARNINGS = (
    r"`torch_dtype` is deprecated",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # policies have no dropout: on purpose
)


def quiet() -> None:
    """Call it before anything imports tqdm. Bars of a few seconds, such as those of loading weights, do not show; in a
    log file a bar is written twice a minute."""
    for name, messages in LOGS.items():
        logging.getLogger(name).addFilter(lambda record, m=messages: not re.match(m, record.getMessage()))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("TQDM_DELAY", "4")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
