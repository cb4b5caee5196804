"""What holds the code base together: layers, the trap of `tokenizers/`, packaging, a README that tells the truth."""

import ast
import configparser
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tokenworld.cli import help as help_text
from tokenworld.cli import main as cli
from tokenworld.cli import verbs
from tokenworld.config import compose, saved, schema, targets

ROOT = Path(__file__).resolve().parent.parent

# From the top down; a module imports only from lines below its own. The longest name that a module begins with decides.
LAYERS = [
    ["cli.__main__"],
    ["cli.main"],
    ["cli.help"],
    ["cli.verbs"],
    ["cli.arguments"],
    ["cli"],
    ["play", "bench", "sweep", "studies"],
    ["training.export"],
    ["training.resume"],
    ["training.build"],
    ["training.restore", "training.loop", "training.phases", "training.settings"],
    ["training.batches", "training.costs"],
    ["run_summary", "agent"],
    ["run_pictures", "sb3"],
    ["evaluation.assess", "dream_env"],
    ["evaluation.tiers"],
    ["evaluation.report"],
    ["evaluation.probes", "evaluation.metrics", "scores"],
    ["evaluation.simulators"],
    ["evaluation.statistics"],
    ["evaluation.records"],
    ["evaluation"],
    ["imagination"],
    ["training.run", "training.folders"],
    ["training"],
    ["sinks"],
    ["world_model"],
    ["policies"],
    ["tokenizers", "backbones", "decoding", "heads", "actions", "envs", "data"],
    ["storage"],
    ["nn", "steps", "log", "viz", "sweep_folder"],
    ["arguments"],
    ["config"],
    ["kernels", "optim"],
    ["distributed"],
    ["interfaces"],
    ["forms"],
    ["storage.weights", "storage.safe_load"],
    ["exploration"],
    ["action_space", "files", "origins", "private", "signals"],
    ["errors", "threads"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def sources() -> dict[str, Path]:
    """Dotted module name -> file, of everything that ships. `tokenworld/tokenizers` is a symlink: counted once."""
    found = {}
    for folder, package in ((ROOT / "tokenworld", "tokenworld"), (ROOT / "tokenizers", "tokenworld.tokenizers")):
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            if package == "tokenworld" and inner[0] == "tokenizers":
                continue
            found[".".join([package, *inner]).removesuffix(".__init__")] = path
    return found


SOURCES = sources()


def imports(module: str, path: Path) -> set[str]:
    """The tokenworld modules that a file imports anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in SOURCES else node.module)
    return {name for name in found if name.split(".")[0] == "tokenworld" and name != "tokenworld"}


def part(module: str) -> str:
    return module.split(".")[1]


def room(module: str) -> str:
    """The longest name in LAYERS that a module begins with; empty if there is none."""
    words = module.split(".")[1:]
    names = [".".join(words[:n]) for n in range(len(words), 0, -1)]
    return next((name for name in names if name in LEVEL), "")


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "tokenworld"])
def test_a_module_imports_only_from_below(module):
    own = room(module)
    assert own, f"{module} has no layer: give it one in LAYERS"
    for name in imports(module, SOURCES[module]):
        if room(name) == own:
            continue  # files of one folder may use each other
        assert LEVEL[room(name)] > LEVEL[own], f"{module} imports {name}, which is not below it"


def test_no_cycles_within_a_folder():
    graph = {module: imports(module, path) & SOURCES.keys() for module, path in SOURCES.items()}

    def visit(module: str, path: tuple[str, ...]):
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        for name in graph[module]:
            visit(name, (*path, module))

    for module in graph:
        visit(module, ())


def test_tokenizers_is_no_package_of_its_own():
    assert not (ROOT / "tokenizers" / "__init__.py").exists(), "it would shadow Hugging Face's tokenizers"
    assert not (ROOT / "configs" / "__init__.py").exists()
    link = ROOT / "tokenworld" / "tokenizers"
    assert link.is_symlink() and os.readlink(link) == "../tokenizers"


def test_packages_are_the_real_folders():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    real = {"tokenworld", "tokenworld.tokenizers", "tokenworld.configs"}
    real |= {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tokenworld").rglob("*/__init__.py")}
    assert listed == real
    mapping = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert mapping.pop("tokenworld") == "tokenworld"
    assert mapping == {"tokenworld.tokenizers": "tokenizers", "tokenworld.configs": "configs"}
    assert "slow:" in setup["tool:pytest"]["markers"] and "--strict-markers" in setup["tool:pytest"]["addopts"]


@pytest.mark.parametrize("folder", [".", "configs", "tests", "tokenizers"])
def test_both_kinds_of_tokenizers_import_from_anywhere(folder):
    """Hugging Face's and ours, started in any folder of the checkout, as a notebook's kernel would be."""
    code = ("import importlib.util, tokenizers, tokenworld; "
            "print(hasattr(tokenizers, 'Tokenizer'), importlib.util.find_spec('tokenworld.tokenizers.vqvae').name)")
    at_root = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, env=at_root, capture_output=True, text=True)
    assert out.stdout.split() == ["True", "tokenworld.tokenizers.vqvae"], out.stderr


def test_import_tokenworld_is_light():
    heavy = ("torch", "gymnasium", "ale_py", "minatar", "wandb", "tensorboard", "matplotlib", "hydra", "transformers")
    code = f"import sys, tokenworld; print([m for m in {heavy} if m in sys.modules]); "
    code += f"from tokenworld import WorldModel; print([m for m in {heavy[1:]} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["[]", "[]"]


NAMED_IN_RECIPES = {"training", *targets.PARTS.values()}


@pytest.mark.parametrize("module", [m for m in SOURCES if m != "tokenworld" and part(m) in NAMED_IN_RECIPES])
def test_at_most_twelve_keywords(module):
    """Of each public class and function of a part's file: what a recipe may set has a default and an annotation."""
    for name, thing in vars(importlib.import_module(module)).items():
        own = getattr(thing, "__module__", None) == module and not name.startswith("_")
        if own and (inspect.isclass(thing) or inspect.isfunction(thing)):
            keywords = [p for p in inspect.signature(thing).parameters.values() if p.kind is p.KEYWORD_ONLY]
            settable = [p for p in keywords if p.default is not p.empty and p.name not in schema.BY_CODE]
            assert len(settable) <= 12, f"{module}.{name} takes {len(settable)} keywords"
            bare = [p.name for p in settable if p.annotation is p.empty]
            assert not bare, f"{module}.{name}: annotations are the schema of a recipe, {bare} have none"


def files_of_the_project() -> list[str]:
    """What git tracks, and what is new and not ignored."""
    call = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def text_files() -> list[Path]:
    paths = [ROOT / name for name in files_of_the_project()]
    kinds = (".py", ".md", ".yaml", ".cfg", ".toml", ".txt", ".in", ".ipynb", ".html", ".css", ".js", "")
    return [path for path in paths if path.is_file() and not path.is_symlink() and path.suffix in kinds]


def test_nothing_tells_of_where_it_was_made():
    unfinished = "|".join(("TO" "DO", "FIX" "ME", "XX" "X"))
    forbidden = re.compile(rf"(?<![\w.])/(?:work|tmp|root|home)/\w|\b[Ii]ssue #?\d|\b(?:{unfinished})\b")
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not forbidden.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


def test_nothing_is_unpickled():
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if (owner, node.func.attr) == ("torch", "load"):
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert keywords.get("weights_only") == "True", f"{module}:{node.lineno}"
                assert f"{owner}.{node.func.attr}" not in ("pickle.load", "pickle.loads", "yaml.load"), module


# ---------------------------------------------------------------------------------------------------------------------
# README


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def fences(text: str) -> list[tuple[str, str]]:
    """(language, body) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def bash_lines(text: str) -> list[str]:
    """The command lines of the ```bash blocks, comments and line continuations removed."""
    blocks = [body for language, body in fences(text) if language in ("bash", "sh", "console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.split(" #")[0].strip() and not line.startswith("#")]


def documents() -> list[Path]:
    return [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md") if (ROOT / name).is_file()]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documented_commands_parse(document, tmp_path, monkeypatch):
    """Every `tokenworld ...` line asks for something that exists; runs that it names are taken as given."""
    spec = compose.compose([])
    monkeypatch.setattr(saved, "load", lambda run: spec)
    for line in bash_lines(document.read_text(encoding="utf-8")):
        for call in re.split(r"&&|\|\||;|\|", line):
            words = shlex.split(call)
            if words and Path(words[0]).name == "tokenworld" and not {"--help", "--version", "-h"} & set(words):
                assert callable(cli.parse(words[1:])), call


def test_help_commands_parse(monkeypatch):
    """The examples of --help are held to the same."""
    spec = compose.compose([])
    monkeypatch.setattr(saved, "load", lambda run: spec)
    texts = [help_text.overview(), *map(help_text.of_command, verbs.names())]
    lines = [line.strip() for line in "\n".join(texts).splitlines() if line.startswith("  tokenworld ")]
    assert len(lines) > 15
    for line in lines:
        assert callable(cli.parse(shlex.split(line.split("   ")[0])[1:])), line


def test_readme_tree_is_true():
    """Each path in the README's tree exists, and each folder and top-level module is in it."""
    block = next(body for language, body in fences(readme()) if language in ("", "text") and "tokenworld/" in body)
    parents: list[tuple[int, str]] = []
    named = set()
    for line in block.splitlines():
        match = re.match(r"^([\s│├└─]*)([\w.][\w./-]*)((?:[ ,·]+[\w./-]+\.\w+)*)(?:\s{2,}.*|\s*#.*|\s*)$", line)
        if not match:
            continue
        indent, name, more = len(match[1]), match[2], match[3]
        parents = [p for p in parents if p[0] < indent]
        base = "".join(p[1] for p in parents)
        inside = name if name.endswith("/") else ""  # files after a folder's name are in it
        for each in [name, *(inside + file for file in re.findall(r"[\w./-]+\.\w+", more))]:
            assert (ROOT / base / each).exists(), f"the README's tree names {base}{each}, which is not there"
            named.add(base + each)
        if name.endswith("/"):
            parents.append((indent, name))
    for folder in ("tokenworld/", "tokenizers/", "configs/", "tests/"):
        assert folder in named, f"the README's tree lacks {folder}"


def test_ci_runs_what_the_readme_says():
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert "pytest" in command and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert command in readme(), f"the README must give the test command of .ci/run word for word: {command}"


# ---------------------------------------------------------------------------------------------------------------------
# Words

WORDS_IN = ("tokenworld/", "tokenizers/", "configs/", "notebooks/", "docs/")  # the tests quote old words, so they are not read
WORD_FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md")
WORD_KINDS = (".py", ".cpp", ".yaml", ".ipynb", ".html", ".js", ".css", ".md")
OLD_LOG = "## 2026-11-27 Rooms for the code: pure moves, bit-equal"  # the newest entry that is older than this test
GAP = r"(?:\\n|[\s#\",])+"  # between two words of a phrase, also over the end of a line or of a string
BANNED = [r"anew", rf"(?:gone|go|goes|going|went){GAP}on{GAP}with", r"heed\w*", r"dear(?:er|est|ly)?", rf"to{GAP}be{GAP}had",
          rf"at{GAP}hand", rf"for{GAP}ever", r"mend(?:s|ed|ing)?", r"luck\w*", r"learnt", r"dreamt", r"beside", r"somebody",
          rf"is{GAP}no{GAP}number", rf"nothing{GAP}is"]  # fmt: skip
BRITISH = [r"\w*(?:colour|behaviour|neighbour|favour|honour|labour|rumour)\w*", r"grey\w*", r"\w*artefact\w*", r"licence\w*",
           r"(?:milli|centi|kilo)?metres?", r"centred?", r"\w*analys(?:e|ed|er|ing)", r"(?:un)?label(?:led|ling)",
           r"\w*model(?:led|ling)", r"cancel(?:led|ling)", r"travel(?:led|ling)", r"fulfil", r"whilst", r"spelt", r"misspelt",
           r"burnt", r"catalogues?", r"defence", r"ageing",
           r"\w*(?:normal|optim|initial|standard|regular|summar|recogn|organ|quant|discret|token|general|maxim|minim|synchron|"
           r"serial|util|parametr|parameter|vector|factor|penal|random|visual|emphas|special|local|character|real|author|"
           r"categor|stabil|final|symmetr|memor|custom|symbol)is(?:e|ed|es|er|ers|ing|ation|ations)"]  # fmt: skip
WORDS = re.compile(rf"(?<![^\W_])(?:{'|'.join(BANNED + BRITISH)})(?![^\W_])", re.IGNORECASE)
NAMES = set("told found made said one two spoken news alike agreed listed everyones lesson heed luck place ends".split())
EXEMPT = {  # (file, word): an old name that is quoted, or a name in a format
    ("tokenworld/config/renamed.py", "normalise"),  # the old key of a recipe
    ("tokenworld/decoding/autoregressive.py", "place"),  # a parameter of saved models
    ("tokenworld/decoding/parallel.py", "place"),
    ("tokenworld/data/replay.py", "ends"),  # the keyword of `Replay.sample`
    ("tokenworld/scores/comparison.py", "human_normalised"),  # two keys of results.json
    ("tokenworld/scores/comparison.py", "normalised_runs"),
    ("tokenworld/training/restore.py", "learnt_rows"),  # a key of checkpoints
    ("tokenworld/training/resume.py", "learnt_rows"),
    ("tokenworld/training/run.py", "learnt_rows"),
    ("docs/metrics.md", "kl_behaviour"),  # an id in reports of schema 1
    ("tokenworld/evaluation/metrics/agents.py", "kl_behaviour"),
}


def line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def without_old_entries(log: str) -> str:
    """LOG.md with the lines of entries older than the word list emptied. Newest last or newest first: OLD_LOG says where."""
    lines = log.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("## ")]
    at = lines.index(OLD_LOG)
    begin = at if lines[heads[0]] > lines[heads[-1]] else heads[0]
    end = len(lines) if begin == at else next((i for i in heads if i > at), len(lines))
    return "\n".join("" if begin <= i < end else line for i, line in enumerate(lines))


def worded_files() -> dict[str, str]:
    """Name -> text of each file that the word list is for; in the text of a change log, without its tables of old names."""
    texts = {}
    for name in files_of_the_project():
        path = ROOT / name
        chosen = name in WORD_FILES or name.startswith(WORDS_IN) and path.suffix in WORD_KINDS
        if not chosen or path.is_symlink() or not path.is_file() or name == "tokenworld/tokenizers":
            continue
        text = path.read_text(encoding="utf-8")
        if name == "LOG.md":
            text = without_old_entries(text)
        if name == "CHANGELOG.md":
            text = "\n".join("" if line.startswith("|") else line for line in text.splitlines())
        texts[name] = text
    return texts


def whole_words(text: str, match: re.Match) -> str:
    """The match with the rest of its identifier, a phrase on one line."""
    begin, end = match.span()
    while begin and re.match(r"\w", text[begin - 1]):
        begin -= 1
    end += len(re.match(r"\w*", text[end:])[0])
    return " ".join(re.findall(r"[\w'-]+", text[begin:end].replace("\\n", " ")))


def banned_words(name: str, text: str) -> list[str]:
    """file:line:word of each banned word."""
    hits = [(line_of(text, match.start()), whole_words(text, match)) for match in WORDS.finditer(text)]
    return [f"{name}:{line}:{word}" for line, word in hits if (name, word.lower()) not in EXEMPT]


def codes_of(name: str, text: str) -> list[str]:
    """The Python code of a file: of a notebook each code cell, its magics left out."""
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return ["".join("\n" if line.startswith("%") else line for line in cell["source"]) for cell in cells]
    return [text] if name.endswith(".py") else []


def names_of(node: ast.AST) -> list[str]:
    """The names that a node of the syntax tree gives to something, or an attribute's name."""
    if isinstance(node, ast.Name):
        return [node.id] if isinstance(node.ctx, ast.Store) else []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.alias):
        return [node.asname] if node.asname else []
    return [getattr(node, "arg" if isinstance(node, ast.arg) else "attr")] if isinstance(node, ast.arg | ast.Attribute) else []


def banned_names(name: str, text: str) -> list[str]:
    """file:line:name of each banned identifier; the line of a notebook is that in its cell."""
    nodes = [node for code in codes_of(name, text) for node in ast.walk(ast.parse(code))]
    hits = [(node.lineno, each) for node in nodes for each in names_of(node) if each.strip("_").lower() in NAMES]
    return [f"{name}:{line}:{each}" for line, each in sorted(hits) if (name, each.lower()) not in EXEMPT]


def hits_in(texts: dict[str, str], check) -> list[str]:
    return [hit for name, text in texts.items() for hit in check(name, text)]


def test_no_banned_word():
    hits = hits_in(worded_files(), banned_words)
    assert not hits, f"{len(hits)} banned words, choose the field's word or American spelling:\n" + "\n".join(hits)


def test_no_banned_identifier():
    hits = hits_in(worded_files(), banned_names)
    assert not hits, f"{len(hits)} banned identifiers, name the noun:\n" + "\n".join(hits)


def test_what_is_exempt_is_there():
    texts = worded_files()
    for name, word in EXEMPT:
        assert word in texts.get(name, "").lower(), f"{name} has no {word} any more: take it from EXEMPT"


def test_the_word_list_reads_words_phrases_and_names():
    """Planted: each kind of hit, and what must not be one."""
    planted = "a dream that is gone\n# on with\nlearnt_rows = normalise(x)  # Colours beside it, for\n# ever\n"
    found = [hit.partition(":")[2] for hit in banned_words("planted.py", planted)]
    assert found == ["1:gone on with", "3:learnt_rows", "3:normalise", "3:Colours", "3:beside", "3:for ever"]
    assert not banned_words("clean.py", "besides, a recommended amendment; forever, otherwise, precise, it raises noise")
    code = "def told(ends):\n    one = self._luck\n    return one\nclass Lesson:\n    pass\n"
    named = [hit.partition(":")[2] for hit in banned_names("planted.py", code)]
    assert named == ["1:ends", "1:told", "2:_luck", "2:one", "4:Lesson"]
    assert not banned_names("clean.py", "def tell(end):\n    return end.stones\n")
    cell = {"cell_type": "code", "source": ["%matplotlib inline\n", "told = 1\n"]}
    assert banned_names("planted.ipynb", json.dumps({"cells": [cell]})) == ["planted.ipynb:2:told"]


def test_only_log_entries_older_than_the_word_list_are_exempt():
    entries = ["## 2026-11-26 Older\nlearnt", f"{OLD_LOG}\ndreamt"]
    for newer in ("## 2026-11-27 Newer\nanew", "## 2026-11-29 · Newer: a subject (fixed)\nanew"):
        for log in ("\n".join(["# Log", *entries, newer]), "\n".join(["# Log", newer, *reversed(entries)])):
            assert [hit.rpartition(":")[2] for hit in banned_words("LOG.md", without_old_entries(log))] == ["anew"], log


# ---------------------------------------------------------------------------------------------------------------------
# Installing


@pytest.mark.slow
@pytest.mark.parametrize("way", ["install", "editable", "wheel", "sdist"])
def test_installed_command_works_and_finds_its_recipes(way, tmp_path):
    """In a fresh environment that borrows this one's dependencies; run from a folder that is no checkout."""
    source = tmp_path / "source"
    for name in files_of_the_project():
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to(os.readlink(ROOT / name))
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    if not (source / "README.md").exists():
        (source / "README.md").write_text("tokenworld")
    run: dict = dict(check=True, capture_output=True, text=True, cwd=tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "fresh"], **run)
    python = str(tmp_path / "fresh" / "bin" / "python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", where], **run).stdout.strip()
    # an old setuptools that comes with venv would hide the borrowed one
    subprocess.run([python, "-m", "pip", "uninstall", "-y", "setuptools"], **run)
    # without the .pth and finder files of an editable install of the checkout itself
    Path(purelib, "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--force-reinstall"]
    if way == "editable":
        subprocess.run([*pip, "-e", str(source)], **run)
    elif way == "install":
        subprocess.run([*pip, str(source)], **run)
    else:
        code = f"import setuptools.build_meta as b; print(b.build_{way}({str(tmp_path)!r}))"
        built = subprocess.run([python, "-c", code], **run | {"cwd": source}).stdout.split()[-1]
        subprocess.run([*pip, str(tmp_path / built)], **run)
    code = ("import tokenworld.config.compose as c, tokenworld.tokenizers.vqvae as v, tokenworld.envs, tokenizers; "
            "print(c.recipes(), c.compose(['recipe=iris', 'overlay=debug']).cfg['backbone']['layers'], v.__file__)")
    found = subprocess.run([python, "-c", code], **run).stdout
    recipes = ["atari100k_fast", "atari_small", "dreamer_v2", "dreamer_v3", "iris", "known_world", "quickstart", "storm",
               "transdreamer", "twm", "world_models"]  # fmt: skip
    assert f"{recipes} 1" in found
    assert (str(source) in found) == (way == "editable"), found
    command = str(tmp_path / "fresh" / "bin" / "tokenworld")
    assert "usage: tokenworld" in subprocess.run([command, "--help"], **run).stdout
