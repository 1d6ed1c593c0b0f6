"""A finished merge read back: hfcart.json of a folder or a repo, taken for what it is, a stranger's file."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from hfcart import __version__
from hfcart.errors import OutputError, UsageError, VerifyError
from hfcart.formats.record_json import as_record, record_json
from hfcart.formats.safetensors_file import sha256_of
from hfcart.methods import BROKEN, METHODS
from hfcart.methods.shared.papers import CHOI, LINES, SVC
from hfcart.quoting import quoted, some
from hfcart.recipes.merge_check import faults
from hfcart.recipes.merge_recipe import OPTIONS, Recipe, make
from hfcart.recipes.named import AdapterSource
from hfcart.records import RECORD_FORMAT, FinetuneRecord, MergeRecord, MethodRecord, SourceRecord
from hfcart.records.adapters import CONFIG, without_base
from hfcart.records.check import is_commit, is_line
from hfcart.records.file_names import RECORD
from hfcart.records.repo_id import is_place, is_repo_id, split_place

RECIPE = "recipe.yaml"
# What Plan.recorded_recipe writes, besides the method's own parameters.
_RECORDED = {"sources", "method", "base", "lines", "svc", "coefficients", "directions"} | {
    name for name, option in OPTIONS.items() if option.recorded != "never"
}
_ALWAYS = {"sources", "method"} | {name for name, option in OPTIONS.items() if option.recorded == "always"}
_PACKAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,80}) ([0-9][A-Za-z0-9.+!-]{0,40})")
_HINT = "Only folders and repos that hfcart made have one."


def read_record(data: bytes, where: str) -> MergeRecord:
    """Parse and check an hfcart.json, value by value, and that its recipe runs.

    What a method is called, does and cites is not taken from the file: our registry knows it by the method's name.

    Args:
        data: the file's bytes.
        where: its name in messages.

    Raises:
        VerifyError: it is not a merge record of a format this release reads; the sentence names the field.
    """
    try:
        found = record_json(data)
        if isinstance(found, dict) and isinstance(number := found.get("format"), int) and number > RECORD_FORMAT:
            raise VerifyError(
                f"{where} has format {str(number)[:20]}, this hfcart reads format {RECORD_FORMAT}.",
                hint="Update hfcart: pip install -U hfcart",
            )
        if isinstance(found, dict) and "kind" in found:
            raise ValueError(f"its kind is {quoted(found['kind'])}, and a merge's record has none")
        record = as_record(data, MergeRecord)
    except ValueError as error:
        raise VerifyError(f"{where} is not a merge record of hfcart: {error}.", hint=_HINT) from None
    if record.method.name not in METHODS and is_line(record.method.name, 60):
        brought = _PACKAGE.fullmatch(record.method.package)
        by = f" of the package {record.method.package}" if brought else ""
        raise VerifyError(
            f"{where} is of the method {quoted(record.method.name)}{by}, which hfcart {__version__} does not know.",
            hint=BROKEN.get(record.method.name)
            or f"Install what it needs: pip install {f'{brought[1]}=={brought[2]}' if brought else '-U hfcart'}",
        )
    try:
        _check_recipe(record.recipe, where)
        recipe = make(record.recipe, where)
    except UsageError as error:
        raise not_runnable(error, where) from None
    if wrong := next(faults(record, recipe), None):
        raise VerifyError(f"{where} is not a merge record of hfcart: {wrong}.", hint=_HINT)
    return _in_our_words(record, recipe)


def not_runnable(error: UsageError, where: str) -> VerifyError:
    """What is wrong with a record, where its recipe is refused: nobody typed that."""
    why = error.message.removeprefix(f"In {where}: ").removeprefix(f"{where}: ")
    return VerifyError(f"{where} holds a recipe that cannot be run: {why}", hint=_HINT)


def method_record(recipe: Recipe, settings: dict[str, Any]) -> MethodRecord:
    """The method of a recipe as a record and a card state it.

    Args:
        recipe: with its coefficients, if it has any.
        settings: the method's parameters and their values; those for each source in the record's order.
    """
    method = METHODS[recipe.method]
    adaptive = recipe.adaptive if recipe.coefficients is not None else None
    others = adaptive.matrices if adaptive and method.alike else method.others
    if adaptive and adaptive.others and any(name.endswith(".bias") for name in recipe.coefficients or ()):
        others = adaptive.others
    wrappers = [("SVC", SVC, recipe.svc), ("LiNeS", LINES, recipe.lines)]
    over = [(title, citation) for title, citation, asked in wrappers if asked is not None]
    citations = [*(citation for _, citation in over), *([adaptive.citation] if adaptive else [])]
    citations += [CHOI] if recipe.adapters is not None and method.citation != CHOI else []
    return MethodRecord(
        name=method.name,
        title=adaptive.title if adaptive else "".join([method.title, *(f" with {name}" for name, _ in over)]),
        formula=adaptive.formula if adaptive else method.formula,
        matrices=adaptive.matrices if adaptive else method.matrices,
        others=others,
        parameters=settings,
        arxiv=adaptive.arxiv if adaptive else method.arxiv,
        citation="\n".join([method.citation, *citations]),
        uses_base=method.needs_base,
        package=method.package,
    )


def _in_our_words(record: MergeRecord, recipe: Recipe) -> MergeRecord:
    """A checked record with the registry's words for its method, and its recipe in the form that is recorded."""
    plain = recipe.model_dump(mode="json")
    if recipe.tasks is not None:
        plain["tasks"] = [task if isinstance(task, str) else task.plain() for task in recipe.tasks]
    selection, chosen = record.selection, METHODS[recipe.method].chosen
    return replace(
        record,
        recipe={name: plain[name] for name in record.recipe},
        method=method_record(recipe, recipe.parameters),
        selection=replace(selection, formula=chosen.formula) if selection and chosen else None,
    )


def _check_recipe(recipe: dict[str, Any], where: str) -> None:
    """Refuse what no merge records: a stranger's recipe must not choose paths of ours, nor publish in our name."""
    method = METHODS.get(str(recipe.get("method")))
    known = _RECORDED | {p.name for p in method.parameters} if method else _RECORDED
    if method and method.statistics:
        known |= {"tasks"}
        if not all(isinstance(task, dict) for task in recipe.get("tasks") or [None]):
            raise UsageError(f"{where}: it does not say which task each source was fine-tuned on.")
    if missing := sorted(_ALWAYS - set(recipe)):
        raise UsageError(f"{where}: it does not say {', '.join(missing)}.")
    if unknown := sorted(set(recipe) - known):
        raise UsageError(f"{where}: no merge records {some(map(quoted, unknown))}.")
    sources = recipe.get("sources")
    listed = [*(sources if isinstance(sources, list | tuple) else []), *filter(None, [recipe.get("base")])]
    adapters = [each for each in listed if isinstance(each, dict) and each.keys() == {"adapter", "base"}]
    whole = [each for each in listed if each not in adapters]
    for source in (*whole, *(part for each in adapters for part in each.values())):
        if isinstance(source, str):
            pin, place = split_place(source)
            repo, _, commit = pin.partition("@")
            good = is_repo_id(repo, namespace=True) and is_commit(commit) and (place is None or is_place(place))
        else:
            name = source.get("path") if isinstance(source, dict) else None
            good = isinstance(name, str) and "/" not in name and "\\" not in name and name not in ("", ".", "..", "~")
        if not good:
            raise UsageError(
                f"{where}: the source {quoted(str(source), 80)} is neither a pinned repo nor a folder's name."
            )


def pinned(source: SourceRecord) -> str | None:
    """What opens a recorded source again (SourceRecord.ref); None for a local one, or one of no such form."""
    known = is_repo_id(source.repo or "", namespace=True) and is_commit(source.commit)
    return source.ref if known and (source.path is None or is_place(source.path)) else None


def opens_again(source: SourceRecord) -> str | AdapterSource | None:
    """As `pinned`; of an adapter with the base that it was read with."""
    ref, base = pinned(source), source.adapter_of
    if ref is None or base is None:
        return ref
    beneath = pinned(base)
    return AdapterSource(adapter=ref, base=beneath) if beneath else None


def check_files(record: MergeRecord | FinetuneRecord, folder: Path) -> None:
    """Prove that every recorded file is there and unchanged. Raises OutputError naming the first that is not."""
    for name, digest in sorted(record.files.items()):
        path = folder / name
        if not path.is_file():
            raise OutputError(f"{folder} lacks {name}, which its {RECORD} lists.", hint="Make it again.")
        # An adapter's config names the repo that it was published in.
        named = name.endswith(f"/{CONFIG}")
        found = hashlib.sha256(without_base(path.read_bytes())).hexdigest() if named else sha256_of(path)
        if found != digest:
            again = f"hfcart merge --recipe {shlex.quote(str(folder / RECIPE))} --out NEW"
            raise OutputError(
                f"{folder}/{name} was changed after it was made: its sha256 is not the one in {RECORD}.",
                hint=f"Make it again: {again if RECIPE in record.files else f'{folder}/README.md has the command.'}",
            )
