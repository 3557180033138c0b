"""What two configurations differ in, of what decides how a run trains; as words, and as the name of a folder.

What a run watches (validation, test, logger) and where it runs (devices, strategy) does not count.
"""

import hashlib
import re
import sys
from inspect import signature
from pathlib import Path

TRAINS = (  # the Trainer's options that change what is trained
    *("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs", "limit_train_batches", "overfit_batches"),
    *("fast_dev_run", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision"),
)
WATCHERS = {  # callbacks that leave training as it is
    *("ImageGrid", "Comparison", "SampleWriter", "SaveOnInterrupt", "Throughput", "Progress", "Summary"),
    *("ModelCheckpoint", "OnExceptionCheckpoint", "LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor"),
    *("TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary"),
}
WATCHES = (  # beginnings of other options that do
    *("model.sampler", "model.rewards", "data.val_", "data.test_", "data.predict_", "data.num_workers"),
    *("model.metrics", "model.policy.compile", "model.policy.gradient_checkpointing", "model.policy.allow_pickle"),
)


def training(config: dict) -> dict:
    """What decides how a run trains, of a parsed configuration."""
    trainer = config.get("trainer") or {}
    callbacks = trainer.get("callbacks") or []
    callbacks = [callbacks] if isinstance(callbacks, dict) else callbacks
    counted = {class_name(c): given(c) for c in callbacks if class_name(c) not in WATCHERS}
    return {
        "seed_everything": config.get("seed_everything"),
        "model": config.get("model"),
        "data": config.get("data"),
        "trainer": {name: trainer.get(name) for name in TRAINS} | {"callbacks": counted},
    }


def differences(old, new, option: str = "") -> dict[str, tuple]:
    """{option: (old value, new value)} of two `training` parts, the option as on the command line. Of one class,
    arguments that only one of the two has are left out: they came or went with a version of the class."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new or option.startswith(WATCHES) else {option: (old, new)}
    found, inside = {}, lambda key: f"{option}.{key}".lstrip(".")
    for key in sorted({*old, *new}, key=str):
        if key == "init_args":
            before, now = old.get(key) or {}, new.get(key) or {}
            own = given(new) if old.get("class_path") != new.get("class_path") else {}
            for argument in sorted({*before} & {*now} | {*own}):
                found |= differences(before.get(argument), now[argument], inside(argument))
        else:
            at = option if key in ("class_path", "dict_kwargs") else inside(key)
            found |= differences(old.get(key), new.get(key), at)
    return found


def given(part: dict) -> dict:
    """The `init_args` of a class or function that are not its defaults; all of them if it is not loaded."""
    module, _, attribute = part["class_path"].rpartition(".")
    made = getattr(sys.modules.get(module), attribute, None)
    if made is None:
        return part.get("init_args") or {}
    calls = [c.__init__ for c in made.__mro__[::-1]] if isinstance(made, type) else [made]
    defaults = {name: p.default for call in calls for name, p in signature(call).parameters.items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    return {name: value for name, value in (part.get("init_args") or {}).items() if value != plain.get(name)}


def tell(found: dict[str, tuple]) -> str:
    """Differences in words: `model.beta 500.0 in place of 100.0`."""
    parts = [f"{option} {as_name(old)} in place of {as_name(new)}" for option, (old, new) in found.items()]
    return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if parts[3:] else "")


def folder_name(found: dict[str, tuple]) -> str:
    """Differences as the name of a folder: `beta=100.0,path=pairs.csv`."""
    last = [last_word(option) for option in found]
    keys = [option if last.count(last_word(option)) > 1 else last_word(option) for option in found]
    text = ",".join(f"{key}={as_name(new)}" for key, (_, new) in zip(keys, found.values()))
    return text if len(text) <= 100 else f"{text[:90]}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"


def last_word(option: str) -> str:
    """Of an option; with the word before it if it is the number of a list's element."""
    words = option.split(".")
    return ".".join(words[-2:]) if words[-1].isdecimal() else words[-1]


def as_name(value) -> str:
    """A value as a part of a file's name: of a path or an import path the last part, of a class what is not default."""
    if isinstance(value, list):
        return "+".join(map(as_name, value)) or "none"
    if isinstance(value, dict):
        parts = given(value) if "class_path" in value else value
        names = [class_name(value)] if "class_path" in value else []
        return "-".join([*names, *(f"{key}-{as_name(part)}" for key, part in parts.items())]) or "on"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        value = class_name(value) if re.fullmatch(r"(\w+\.)+[A-Z]\w*", value) else Path(value).name
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text)[:40] or "empty"


def class_name(part) -> str:
    return str(part.get("class_path") if isinstance(part, dict) else part).rsplit(".", 1)[-1]
