"""Errors of the command line: one sentence that says what is wrong and how to mend it."""

import difflib
import importlib
import linecache
import re
import sys
import traceback
import typing
from collections.abc import Iterable
from inspect import isfunction, signature
from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_align.configs import load_config, merge
from lit_align.overview import tools
from lit_align.paths import PACKAGE, ROOT

MAKES = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}  # option -> what the class or function it names makes


def subclasses(base: type) -> set[type]:
    return {base}.union(*(subclasses(c) for c in base.__subclasses__()))


def options(*classes: type) -> set[str]:
    """The names of the arguments of these classes and of those they inherit from."""
    return set().union(*(signature(c.__init__).parameters for cls in classes for c in cls.__mro__ if c is not object))


def takers_of(option: str, classes: set[type]) -> list[str]:
    """The names of those classes whose own signature has the option."""
    return sorted(c.__name__ for c in classes if option in signature(c.__init__).parameters)


def owners(option: str, classes: set[type]) -> str:
    """Which of the classes takes an option, in words; empty if none does."""
    takers = takers_of(option, classes)
    some = f"{len(takers)} classes, such as {takers[0]}" if len(takers) > 1 else "".join(takers)
    return f"{option} is an option of {some}" if takers else ""


def perhaps(wrong: str, known: Iterable[str], otherwise: str = ".") -> str:
    """What was perhaps meant, as the end of a sentence."""
    matches = difflib.get_close_matches(wrong, sorted(known), 3)
    return f"; did you mean {', '.join(matches)}?" if matches else otherwise


def of_the_user(error: BaseException) -> bool:
    """Whether an error is worded for the user: raised by a `raise` of this project, or the system's (a full disk, a
    missing file). Everything else is a bug and keeps its traceback."""
    if isinstance(error, (OSError, MisconfigurationException)):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(PACKAGE) or Path(last.filename).is_relative_to(ROOT / "callbacks")
    return ours and linecache.getline(last.filename, last.lineno).lstrip().startswith("raise ")


class Parser(LightningArgumentParser):
    """Says what is wrong in one sentence."""

    bases: tuple[type, ...] = ()  # the classes whose subclasses a config may name
    debug = False  # whether errors show their traceback
    reading = ""  # the config file that is being read
    typed: list[str] = []  # the words of the command line

    def parse_args(self, args=None, *more, **kwargs):
        """Turns `--key=None`, as jsonargparse writes a nested flag `--key null` again, back into null."""
        nulled = args and [f"{arg[:-4]}null" if arg.endswith("=None") else arg for arg in args]
        return super().parse_args(nulled, *more, **kwargs)

    def parse_path(self, path, **kwargs):
        """Reads a config file with its base merged in."""
        try:
            content = yaml.safe_dump(load_config(path), sort_keys=False)
        except ValueError as error:
            self.reading = ""  # the message names the file
            self.error(str(error), error)
        return self.parse_string(content, path=Path(path).name, **kwargs)

    def error(self, message: str, ex: Exception | None = None):
        if not self.exit_on_error:  # a trial parse
            super().error(message, ex)
        self.end(self.reading + self.sentence(message), 2)

    def end(self, sentence: str, code: int) -> None:
        """Prints the error, under --debug with where it comes from, and leaves."""
        if self.debug and sys.exc_info()[1]:
            traceback.print_exc()
        elif self.debug:
            traceback.print_stack()
        sys.stderr.write(f"lit_align: {' '.join(sentence.split())}\n")
        raise SystemExit(code)

    def sentence(self, message: str) -> str:
        """The cause out of jsonargparse's nested report, with the closest names that would have been right."""
        known = set().union(*(subclasses(base) for base in self.bases))
        option = r"ption '([\w.]+)' is not|accept option '([\w.]+)'|unrecognized arguments: -*([\w.]+)"
        if m := re.search(option, message):
            return self.no_option(message, m[1] or m[2] or m[3], known)
        name = r"a dot import path string: ([\w.]+)|has no attribute '(\w+)'|No module named '([\w.]+)'"
        if m := re.search(name, message):
            name = m[1] or m[2] or m[3]
            names = {c.__name__ for c in known}
            if f"Diffusion{name}" in names:
                return f"there is no class {name}; did you mean Diffusion{name}?"
            return f"there is no {'module' if m[3] else 'class'} {name}" + perhaps(name, names)
        if m := re.search(r"argument subcommand: invalid choice: '([^']*)'", message):
            commands = ["fit", "validate", "test", "predict", "export", "list", *tools()]
            return f"there is no command {m[1]}" + perhaps(m[1], commands, f"; there are {', '.join(commands)}.")
        maker = r"Expected '([\w.]+)' to be a (?:function that returns|subclass of) (?:Union\[|<class ')?(\w+)"
        if m := re.search(maker, message):
            return f"{m[1]} makes no {m[2]}: name a class or a function that does."
        if m := re.search(r"arguments are required: (.+)", message):
            return f"{m[1]} not given: name a file under configs/ with --config, or give --model and --data."
        return self.cause(message)

    def no_option(self, message: str, option: str, known: set[type]) -> str:
        """Names the class that refused an option, the innermost one that was being read, and those that take it."""
        refused = re.findall(
            r"given class_path '([\w.]+)'|is not accepted\. Got value: \w+\(class_path='([\w.]+)'", message
        )
        name = "".join(refused[-1]).rsplit(".", 1)[-1] if refused else ""
        classes = [c for c in known if c.__name__ == name]
        if not classes:
            every = {"model", "data", "trainer", "class_path", "init_args"} | options(*known)
            wrong = next((part for part in option.split(".") if part not in every), option)
            if here := self.places(wrong, known) or owners(wrong, known):  # a known option, in another place
                return f"there is no option {option} at this place; {here}."
            return f"there is no option {option}" + perhaps(wrong, every)
        own = options(*classes) - {"self", "args", "kwargs"}
        wrong = next((part for part in option.split(".") if part not in own), option)
        if here := self.places(wrong, known):
            return f"{name} has no option {wrong}; {here}."
        kin = set().union(*(subclasses(base) for base in self.bases if issubclass(classes[0], base)))
        if takers := takers_of(wrong, kin):
            some = ", ".join(takers[:4]) + (f" and {len(takers) - 4} more" if takers[4:] else "")
            return f"{name} has no option {wrong}, which is one of {some}" + perhaps(wrong, own)
        if len(own) < 8:
            return f"{name} has no option {wrong}" + perhaps(wrong, own, f"; it has {', '.join(sorted(own))}.")
        other = owners(wrong, known)
        return f"{name} has no option {wrong}" + perhaps(wrong, own, f"; {other}." if other else ".")

    def places(self, wrong: str, known: set[type]) -> str:
        """What to type for an option of this name, from the classes that this command's configs and flags name; empty
        if none of them takes it."""
        try:
            config = self.named()
        except (ValueError, OSError):
            return ""
        classes, found = {c.__name__: c for c in known}, []
        left = [(config.get(part), part) for part in ("model", "data")]
        while left:
            part, path = left.pop(0)
            if not isinstance(part, dict):
                continue
            cls = classes.get(str(part.get("class_path")).rsplit(".", 1)[-1])
            if cls and wrong in options(cls) - {"self", "args", "kwargs"}:
                found.append(f"--{path}.{wrong}")
            left += [(value, f"{path}.{key}") for key, value in (part.get("init_args") or {}).items()]
        if wrong in signature(Trainer.__init__).parameters:
            found.append(f"--trainer.{wrong}")
        more = f" (and {len(found) - 3} more)" if found[3:] else ""
        return f"type {' or '.join(found[:3])}{more}" if found else ""

    def named(self) -> dict:
        """The content of this command's --config files, with the classes of --model and --data."""
        words = [word for typed in self.typed for word in typed.split("=", 1)]
        config: dict = {}
        for flag, value in zip(words, words[1:]):
            if flag == "--config":
                config = merge(config, load_config(value))
            elif flag in ("--model", "--data"):
                config = merge(config, {flag[2:]: {"class_path": value}})
        return config

    @staticmethod
    def cause(message: str) -> str:
        """The innermost key and the lines indented under it."""
        key, lines = "", message
        for m in re.finditer(r'^( *)Parser key "([\w.]+)":(?=((?:\n\1 .*|\n)+))', message, re.M):
            key, lines = f"{m[2]}: ", m[3]
        noise = "Expected a <class 'NoneType'>|Expected a path|Does not validate"
        reasons = re.findall(rf"^ *- (?!{noise})(.+)$", lines, re.M) or [lines]
        value = re.search(r"Given value: (?!Namespace)(.+)", lines)
        text = " or ".join(reasons).replace("or Expected a ", "or ") + (f", got {value[1]}" if value else "")
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "").replace(". Got value:", ", got")
        return key + text

    def check_makers(self, part, key: str = "") -> None:
        """Refuses an optimizer or lr_scheduler that names something else, before anything is called: a config must not
        run a command by `optimizer: {class_path: os.system}`."""
        if isinstance(part, list):
            part = dict(enumerate(part))
        if not isinstance(part, dict | Namespace):
            return
        makes = MAKES.get(key.rsplit(".", 1)[-1])
        if makes and "class_path" in part and not makes_a(part["class_path"], makes):
            self.error(f"{key}: {part['class_path']} makes no {makes.__name__}: name a class or a function that does.")
        for name, inside in (part if isinstance(part, dict) else vars(part)).items():
            self.check_makers(inside, f"{key}.{name}".lstrip("."))


def makes_a(path: str, what: type) -> bool:
    """Whether an import path names a subclass of `what`, or a function whose annotation says that it returns one."""
    module, name = path.rsplit(".", 1)
    made = getattr(importlib.import_module(module), name)
    if isfunction(made):
        made = typing.get_type_hints(made).get("return")
    return isinstance(made, type) and issubclass(made, what)
