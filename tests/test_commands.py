"""Every command that README, docs and the headers of configs show has options that exist; those of the README run in
their order, from an empty folder, with shipped classes and tiny weights. (docs/own_data.md: test_own_data.py;
docs/served_rewards.md: rewards/test_http.py; own and published data: test_configs.py, data/test_published.py.)"""

import inspect
import re
import shlex
from importlib import import_module

import pytest

from lit_align import configs, overview
from lit_align.cli import main
from lit_align.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "checkpoints/README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADERS = sorted(configs.CONFIGS.rglob("*.yaml"))
COMMAND = re.compile(r"-m lit_align (\w+)((?: --[\w.+]+(?:[ =](?:'[^']*'|<[^>]*>|[^\s'<#-][^\s<]*))?)*)")
OF_THE_USER = ("shapes/hinge", "weak.yaml", "checkpoints/first")  # files that the text tells the reader to write


def commands(text: str) -> list[list[str]]:
    """The commands in a text, with something in the place of what the reader fills in."""
    text = text.replace("<recipe>", "dpo_sdxl").replace("<method>", "ddpo").replace("\\\n", " ")
    found = [[name, *shlex.split(re.sub("<[^>]*>", "file.jsonl", rest))] for name, rest in COMMAND.findall(re.sub(" +", " ", text))]
    return [[word.rstrip(",;:.`)") for word in words] for words in found]


def header(path) -> str:
    return " ".join(line.lstrip("# ") for line in overview.header(path).splitlines())


def is_plain(words: list[str]) -> bool:
    """Nothing but a config, whose keys test_configs.py parses, and what every command takes."""
    return [word for word in words if word.startswith("--")] in (["--config"], ["--config", "--ckpt_path"], ["--config", "--data.path"])


README = commands(PAGES[0].read_text())
WRITTEN = [words for page in PAGES for words in commands(page.read_text())]
IN_HEADERS = [words for path in HEADERS for words in commands(header(path))]
EVERY = {" ".join(words): words for words in WRITTEN + IN_HEADERS if not any(own in word for word in words for own in OF_THE_USER)}
PARSED = [pytest.param(words, id=key, marks=[] if words in WRITTEN else [pytest.mark.slow]) for key, words in EVERY.items() if not is_plain(words)]  # fmt: skip


def test_the_commands_are_found():
    names = {words[0] for words in EVERY.values()}
    assert {"fit", "test", "predict", "export", "list", "label", "serve"} <= names and len(README) > 20
    assert sum(bool(commands(header(path))) for path in HEADERS) > 170 and len(PARSED) > 25
    assert names <= {"fit", "validate", "test", "predict", "export", "estimate", "list", *overview.tools()}
    for words in filter(is_plain, EVERY.values()):
        assert configs.find_config(words[2]).is_file()


@pytest.mark.parametrize("words", PARSED)
def test_its_options_exist(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *flags = words
    if name in overview.tools():
        options = inspect.signature(getattr(import_module(f"lit_align.tools.{name}"), name)).parameters
        assert {flag[2:].split(".")[0] for flag in flags if flag.startswith("--")} <= set(options)
    elif name == "list":
        assert overview.answer(words)
    else:
        helps = [flag for flag in flags if flag.endswith(".help") or flag == "--print_config"]
        with pytest.raises(SystemExit) as done:
            main(words + ([] if helps else ["--print_config"]))
        assert not done.value.code, capsys.readouterr().err[-300:]
        assert len(capsys.readouterr().out.splitlines()) > 20


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path, monkeypatch, capsys):
    """Two small steps of each; those for 16 GPUs, for several nodes and for the reader's own data are left out."""
    monkeypatch.chdir(tmp_path)
    elsewhere = (*OF_THE_USER, "one_gpu.yaml", "fsdp.yaml", "--trainer.num_nodes", "--print_config", "--model.help")
    ran = [w for w in README if w[0] in ("fit", "test", "predict", "export") and not set(elsewhere) & set(w)]
    assert len(ran) == 12
    for words in ran:
        last = len(words) - words[::-1].index("--config") + 1
        words = ["last" if word == "best" else word for word in words]  # two steps are too few for a best checkpoint
        main(words[:last] + ["--config", "smoke.yaml"] * ("smoke.yaml" not in words) + words[last:])
    made = tmp_path / "checkpoints"
    assert list((made / "shapes/dpo+smoke/export").glob("*/model_index.json")) and (made / "shapes/dpo+smoke/comparison.png").is_file()
    for run in ("shapes/dpo+smoke", "shapes/svdd_pm+smoke"):
        assert (made / run / "predict/metadata.jsonl").is_file()
