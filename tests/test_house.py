"""The house: imports go down only, libraries enter by one door, the wheel carries its cards, the README is true."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import sysconfig
from pathlib import Path

import pytest
import typer
from running import HELPERS, ROOT, ended
from typer.testing import CliRunner

import hfcart
from hfcart import errors
from hfcart.cli import app
from hfcart.cli._reference import documents
from hfcart.cli._shared.as_python import FUNCTIONS
from hfcart.methods import METHODS

PACKAGE = ROOT / "hfcart"

# Outside libraries, and the one place where each comes in.
DOORS = {
    "huggingface_hub": "hub",
    "matplotlib": "report/plots",
    "transformers": "clip/models",
    "rich": "cli",
    "typer": "cli",
    "tqdm": "api/_bars",
    "pandas": "api/results",
    "jinja2": "report/template",
    "scipy": "maths/low_rank",
    "datasets": "tasks/data",
    "pyarrow": "tasks/data",
    "regex": "sources/lora/config",
}
FEW = 15  # files that a room can have and still be held in the head


def drawn() -> list[str]:
    """The rooms of CONTRIBUTING's tree, from the ground up: what a line below `hfcart/` begins with."""
    tree = (ROOT / ".github" / "CONTRIBUTING.md").read_text().partition("\nhfcart/\n")[2].partition("\n```")[0]
    lines = [line for line in tree.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    return [
        name.removesuffix("/").removesuffix(".py")
        for line in lines
        for name in re.findall(r"[\w.]+/|\w+\.py", line[:32])
    ]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The module or package at the top level that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, types: bool = True) -> set[str]:
    """Full names of everything a file imports, wherever in it; with or without what only type checkers see."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
            if node.module == "hfcart":
                found |= {f"hfcart.{alias.name}" for alias in node.names}
    return found


def test_the_tree_in_contributing_is_the_house() -> None:
    rooms = {room(path) for path in modules()} - {"__init__", "__main__"}
    assert sorted(drawn()) == sorted(rooms)


def test_every_room_says_what_it_is_for_and_is_not_crowded() -> None:
    folders = [path.parent for path in PACKAGE.rglob("__init__.py")]
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= FEW, f"{folder.name} has {len(files)} files"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    """A room imports itself and the rooms drawn above it in CONTRIBUTING's tree, which is from the ground up."""
    own = room(path)
    if own in ("__init__", "__main__"):
        return
    height = {name: i for i, name in enumerate(drawn())}
    for name in imports(path):
        if name.startswith("hfcart.") and (other := name.split(".")[1]) in height:
            assert height[other] <= height[own], f"{own} imports {other}, which stands above it"


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    below = {name: {other for other in imports(path, types=False) if other in names} for name, path in names.items()}
    done: set[str] = set()
    while ready := {name for name, others in below.items() if name not in done and others <= done | {name}}:
        done |= ready
    assert set(names) == done, sorted(set(names) - done)


def test_each_library_enters_by_one_door() -> None:
    for path in modules():
        own = path.relative_to(PACKAGE).with_suffix("").as_posix()
        for name in imports(path, types=False):
            door = DOORS.get(name.split(".")[0])
            assert door is None or f"{own}/".startswith(f"{door}/"), f"{own} imports {name}"


def test_nothing_unsafe_is_called() -> None:
    for path in modules():
        text = path.read_text()
        assert "trust_remote_code" not in text
        # yaml.load only with a loader derived from the safe one.
        loaders = {"yaml.SafeLoader", *re.findall(r"class (\w+)\(yaml\.SafeLoader\)", text)}
        assert set(re.findall(r"\byaml\.load\([^()]*(?:Loader=)([\w.]+)\)", text)) <= loaders
        assert len(re.findall(r"\byaml\.load\(", text)) == len(re.findall(r"\byaml\.load\([^()]*Loader=", text)), path
        assert not re.search(r"yaml\.(full_load|unsafe_load)\(", text), path
        assert not re.search(r"torch\.load\((?!.*weights_only=True)", text), path


# What docstrings name that is others': of transformers, the Hub's API, a dataset's classes.
OF_OTHERS = {"convert_to_rgb", "startingPoint", "AnnualCrop"}


def test_no_test_waits_for_ever_for_a_process() -> None:
    """`ended` of the helpers, or a limit; and nothing runs after a fork, where locks of other threads stay taken."""
    for path in (path for path in (ROOT / "tests").rglob("*.py") if "bench" not in path.parts):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call):
                given = {keyword.arg for keyword in call.keywords}
                assert "preexec_fn" not in given, f"{path}:{call.lineno}"
                if ast.unparse(call.func) in ("subprocess.run", "subprocess.check_output") or (
                    isinstance(call.func, ast.Attribute) and call.func.attr == "communicate"
                ):
                    assert "timeout" in given, f"{path}:{call.lineno}"


def test_what_docstrings_name_is_there() -> None:
    """`a_name`, `AName`, `a.name`, `name()` in backticks, and hfcart.room.module: each is somewhere in the package."""
    trees = [ast.parse(path.read_text()) for path in modules()]
    places = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in modules()}
    words = {word for place in places for word in place.split(".")}
    for node in (node for tree in trees for node in ast.walk(tree)):
        words |= {getattr(node, kind) for kind in ("name", "arg", "id", "attr") if getattr(node, kind, None)}
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
            words |= set(re.findall(r"\w+", node.value))  # fields of files
    for path, tree in zip(modules(), trees, strict=True):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for text in filter(None, (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, documented))):
            for name in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*(?:\(\))?)`", text):
                if re.search(r"[a-z]_[a-z]|[a-z][A-Z]|\w\.\w|\(\)", name):
                    last = name.removesuffix("()").rsplit(".")[-1]
                    assert last in words | OF_OTHERS, f"{path}: there is no `{name}`"
            for name in re.findall(r"\bhfcart(?:\.\w+)+", text):
                place, _, last = name.rpartition(".")
                assert name in places or place in places and last in words, f"{path}: there is no {name}"


def test_all_is_what_is_there() -> None:
    for name in hfcart.__all__:
        assert getattr(hfcart, name) is not None
    assert sorted(hfcart.__all__) == sorted({"Recipe", "__version__", *(f.name for f in FUNCTIONS.values())})
    assert set(hfcart.__all__) <= set(dir(hfcart)) and all(
        callable(getattr(hfcart, f.name)) for f in FUNCTIONS.values()
    )


def test_the_tree_of_errors_is_the_one_drawn() -> None:
    drawn = re.findall(r"(\w+Error)\b", (errors.__doc__ or "").split("Each carries")[0])
    raised = [n for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, Exception)]
    real = [name for name in raised if not issubclass(getattr(errors, name), Warning)]
    assert sorted(drawn) == sorted(real)
    branch = (errors.__doc__ or "").partition("SourceError")[2].partition("HubError")[0]
    for line in branch.splitlines():
        if found := re.match(r"    │   [├└]── (\w+)", line):
            assert issubclass(getattr(errors, found[1]), errors.SourceError)


def test_parameters_declared_are_the_functions_own() -> None:
    for method in METHODS.values():
        matrix, other = method.load()
        for rule in (matrix, other) if method.matrix_rule == method.other_rule else (matrix,):
            keywords = {
                name: p.default
                for name, p in inspect.signature(rule).parameters.items()
                if p.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("base", "coefficients")
            }
            assert keywords == {p.name: p.default for p in method.parameters if not p.gathering}
            known = inspect.signature(rule).parameters
            assert ("fishers" in known) == ("norms" in known) == (method.statistics == "fisher")
            assert ("grams" in known) == (method.statistics == "gram")
            assert ("base" in inspect.signature(rule).parameters) == method.needs_base
            assert ("coefficients" in inspect.signature(rule).parameters) == (method.adaptive is not None)


def test_the_readme_has_every_command_and_method_and_the_reference_every_option() -> None:
    """The reference is what `make docs` makes of the declarations now, and the README's table, too."""
    readme = (ROOT / "README.md").read_text()
    for path, text in documents(readme).items():
        assert (ROOT / path).read_text() == text, f"{path} is stale: make docs"
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"| `hfcart {name}" in readme, name
    for method in METHODS:
        assert f"`{method}`" in readme, method
    for target in ("make demo", "make test", "make lint", "make bench"):
        assert target in readme


def test_what_the_documents_link_to_is_there() -> None:
    """Files, and headings of them by the anchors that GitHub makes."""
    pages = [ROOT / "README.md", *(ROOT / ".github").glob("*.md")]
    for path in pages:
        for link in re.findall(r"\]\((?!https?://)([^)]+)\)", path.read_text()):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_file(), f"{path.name}: {link}"
            if target.suffix != ".md":
                assert not anchor, f"{path.name}: {link}"
                continue
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{path.name}: {link}"


def test_files_that_are_named_are_there() -> None:
    """By the documents, the cards' comments and the code. (CONTRIBUTING has a test of its own.)"""
    folders = ("README.md", "Makefile", ".github/[!C]*.md", "cards/*.jinja", "tests/bench/*.*", "hfcart/**/*.py")
    for path in (path for folder in folders for path in ROOT.glob(folder)):
        for name in re.findall(
            r"(?<![\w/.-])(?:hfcart|cards|tests)(?:/[\w.-]+)*/[\w.-]+\.(?:py|md|jinja|txt)\b", path.read_text()
        ):
            assert (ROOT / name).is_file(), f"{path}: there is no {name}"


def test_the_guide_has_every_variable_of_the_environment() -> None:
    guide = (ROOT / ".github" / "GUIDE.md").read_text()
    ours = {name for path in modules() for name in re.findall(r"\bHFCART_[A-Z_]+", path.read_text())}
    assert ours == set(re.findall(r"\bHFCART_[A-Z_]+", guide))


def test_prose_is_wrapped() -> None:
    """To be read and compared line by line; tables and what is typed have the lines that they need."""
    for name in ("README.md", ".github/GUIDE.md", ".github/CONTRIBUTING.md", ".github/CHANGELOG.md"):
        text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")], name


def test_commands_in_process() -> None:
    """What coverage of the command line subprocesses cannot give: the app is importable and runs twice."""
    runner = CliRunner()
    for _ in range(2):
        assert runner.invoke(app, ["methods"]).exit_code == 0


def test_no_machine_or_registry_is_named() -> None:
    tracked = ended(["git", "ls-files"], cwd=ROOT).stdout.split()
    assert tracked
    for name in tracked:
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        assert str(ROOT) not in text, name


def test_the_wheel_works_away_from_the_checkout(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """Build it, install it alone, and render a card: `cards/` travels inside."""
    env = {k: v for k, v in clean_env.items() if k != "PYTHONPATH"}
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    ended(build, cwd=ROOT, env=env).check_returncode()
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    ended([sys.executable, "-m", "venv", str(tmp_path / "venv")], env=env).check_returncode()
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    ended(pip, env=env).check_returncode()
    # The libraries come from this environment by a plain path, which runs none of its .pth files: the
    # checkout, installed there as editable, stays out of sight.
    where = ended([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], env=env)
    site = Path(where.stdout.strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import hfcart, hfcart.system.cards_folder as c, hfcart.report.merge_card as card, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from towers import write_tower\n"
        "from pathlib import Path\n"
        "a, b = (str(write_tower(Path(n), i)) for i, n in enumerate('ab', 1))\n"
        "record = hfcart.merge([a, b], out='m')\n"
        "print(hfcart.__file__); print(c.cards_dir())\n"
        "assert card.render_card(record) == Path('m/README.md').read_text()\n"
    )
    command = [str(python), "-c", code, str(HELPERS)]
    done = ended(command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    package, cards = done.stdout.split()
    assert Path(package).is_relative_to(site) and Path(cards) == site / "hfcart" / "cards"
    assert (tmp_path / "m" / "README.md").read_text().startswith("---\n")
    version = ended([str(tmp_path / "venv" / "bin" / "hfcart"), "--version"], env=os.environ)
    assert version.stdout == f"hfcart {hfcart.__version__}\n"
