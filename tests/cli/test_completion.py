"""Completion by the protocol of the shells: a real bash, and the variables that the script for zsh sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import ended
from towers import write_tower

from hfcart.cli import main
from hfcart.methods import ADAPTIVE, METHODS
from hfcart.recipes.recipe_files import names
from hfcart.tasks.task_cards import GROUPS, shipped

HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "scipy", "matplotlib", "datasets")


@pytest.fixture
def env(clean_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A home of its own, and an `hfcart` of this checkout on the path."""
    program = tmp_path / "bin" / "hfcart"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hfcart "$@"\n')
    program.chmod(0o755)
    return clean_env | {"HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two towers here and one in a folder, a folder that is none, a hidden one, and a file."""
    for name in ("merged", "other-merge", "towers/cars"):
        write_tower(tmp_path / name, 1)
    (tmp_path / "empty").mkdir()
    write_tower(tmp_path / ".hidden", 1)
    (tmp_path / "me.yaml").write_text("")
    return tmp_path


@pytest.fixture
def asked(folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What hfcart answers a shell that sets variables, in this process."""

    def ask(**variables: str) -> str:
        monkeypatch.chdir(folders)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["hfcart"])
        with pytest.raises(SystemExit) as end:
            main()
        answer = capsys.readouterr()
        assert end.value.code == 0 and not answer.err
        return answer.out

    return ask


def bash(typed: list[str]) -> dict[str, str]:
    words = " ".join(["hfcart", *typed])
    return {"_HFCART_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(typed))}


def zsh(typed: list[str]) -> dict[str, str]:
    return {"_HFCART_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": " ".join(["hfcart", *typed])}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ver"], ["verify"]),
        (["tasks", "s"], ["show"]),
        (["merge", "--method", "is"], ["iso_c", "iso_cts"]),
        (["merge", "--method", ""], list(METHODS)),
        (["sweep", "a", "--method", "con"], ["consensus"]),
        (["methods", "ca"], ["cart"]),
        (["compare", "a", "--methods", "cart,tie"], ["cart,ties"]),
        (["compare", "a", "--methods", ""], [*METHODS, *ADAPTIVE]),
        (["eval", "a", "--tasks", "sun397,eu"], ["sun397,eurosat"]),
        (["finetune", "a", "--tasks", ""], [*shipped(), *GROUPS]),
        (["tasks", "show", "sv"], ["svhn"]),
        (["merge", "--adapt", "mni"], ["mnist"]),
        (["merge", "--recipe", "vit-b-32-8-i"], [name for name in names() if name.startswith("vit-b-32-8-i")]),
        (["merge", "--recipe", "mer"], ["merged"]),
        (["merge", "me"], ["merged"]),
        (["merge", "merged", ""], ["merged", "other-merge", "towers/cars"]),
        (["merge", "./o"], ["./other-merge"]),
        (["merge", "towers/"], ["towers/cars"]),
        (["merge", "--base", "t"], ["towers/cars"]),
        (["eval", "m"], ["merged"]),
        (["verify", "m"], ["merged"]),
        (["push", "m"], ["merged"]),
        (["merge", "--qkv", ""], ["split", "fused"]),
        (["merge", "--dtype", "b"], ["bfloat16"]),
        (["eval", "a", "--device", "c"], ["cpu", "cuda"]),
        (["eval", "a", "--part", ""], ["test", "validation", "train"]),
        (["merge", "--recipe", "me.y"], []),  # where nothing is offered, bash completes names of files
        (["merge", "nowhere/"], []),
    ],
    ids=lambda words: " ".join(words),
)
def test_what_is_offered(typed: list[str], offered: list[str], asked: Callable[..., str]) -> None:
    """By bash and by zsh alike."""
    assert asked(**bash(typed)).split() == offered
    shown = asked(**zsh(typed))
    assert ("_files" in shown) == (not offered)
    assert all(f'"{word}"' in shown for word in offered)


def test_options_are_completed(asked: Callable[..., str]) -> None:
    assert asked(**bash(["merge", "a", "--pu"])).split() == ["--push-to"]
    adapt = ["--adapt-split", "--adapt-ranks", "--adapt-tensors", "--adapt-per"]
    assert asked(**bash(["merge", "a", "--adapt-"])).split() == adapt
    assert '"ties":"Keep each task vector' in asked(**zsh(["merge", "--method", "ti"]))


def test_a_shell_that_was_installed_to(env: dict[str, str], folders: Path) -> None:
    """`hfcart --install-completion` in a bash; its script, read by another, completes."""
    install = "hfcart --install-completion && true"
    done = ended(["bash", "--norc", "-c", install], env=env, cwd=folders)
    assert done.returncode == 0 and "bash completion installed in" in done.stdout, done.stderr
    assert "hfcart.sh" in (folders / ".bashrc").read_text()
    ask = "COMP_WORDS=(hfcart merge --method ti); COMP_CWORD=3; _hfcart_completion hfcart; echo ${COMPREPLY[@]}"
    script = "source ~/.bash_completions/hfcart.sh; complete -p hfcart; " + ask
    done = ended(["bash", "--norc", "-c", script], env=env, cwd=folders)
    assert done.stdout.splitlines() == ["complete -o default -F _hfcart_completion hfcart", "ties"], done.stderr


@pytest.mark.parametrize("typed", [["ver"], ["merge", "--method", "t"], ["eval", "--tasks", "m"], ["merge", "m"]])
def test_nothing_heavy_is_imported(typed: list[str], clean_env: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hfcart.cli import main\nsys.argv = ['hfcart']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    env = clean_env | bash(typed)
    done = ended([sys.executable, "-c", code], env=env, cwd=tmp_path)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
