"""`hfcart merge`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hfcart.cli._shared.merge_output import show_plan, show_result
from hfcart.cli._shared.output import reporting
from hfcart.cli._shared.params import DEBUG, JSON, QUIET
from hfcart.cli._shared.recipe_options import given_fields, with_recipe_options
from hfcart.cli.eval import show_results
from hfcart.recipes.asked import asked_for
from hfcart.recipes.options import BASICS
from hfcart.system.processes import together


@with_recipe_options
def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Hub repos (user/name, user/name@revision) and local folders, in any mix.\fA revision is a branch, a "
            "tag, a commit or refs/pr/N. With :path behind it a place inside: a folder, a file, a LoRA adapter.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Of a file, a published merge, or a name such as vit-b-32-8-cart.\fA YAML file has these options as "
            "fields. A merge is a Hub repo (user/name, user/name@revision) or a finished folder; its sources are "
            "pinned. What is typed beside a recipe goes before it.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan, say what the merge would say, and stop.", rich_help_panel=BASICS
        ),
    ] = False,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
    **options: float | int | str | bool | None,
) -> None:
    """Merge fine-tuned CLIP vision towers into one, and publish it.

    Examples:
        hfcart merge user/a user/b user/c --rank 8% --push-to user/merged
        hfcart merge user/tower user/lora-adapter user/merged:adapters/cars
        hfcart merge user/a ./b --method ties --base user/base --out merged --dry-run
        hfcart merge user/a user/b user/c --adapters 8% --push-to user/merged
        hfcart merge user/a user/b user/c --full-clip --format open_clip --push-to user/merged
        hfcart merge --recipe vit-b-32-8-cart
        hfcart merge --recipe user/merged --rank 15 --out again
    """
    with reporting(quiet=quiet, json=json, debug=debug) as output, together() as team:
        if team is not None and not team.first:
            team.follow()
            return
        given: dict[str, Any] = {"sources": tuple(sources)} if sources else {}
        given |= given_fields(options)
        if recipe:
            from hfcart.sources.published_recipe import asked_by

            asked = asked_by(recipe, given, output)
        else:
            asked = asked_for(None, given, output)
        if dry_run:
            from hfcart.commands.merge_and_publish import run_dry

            show_plan(run_dry(asked, output), output)
            return
        from hfcart.commands.merge_and_publish import run_merge

        done = run_merge(asked, output, team)
        show_result(asked, done.record, done.published, output)
        if done.results is not None:
            show_results(done.results, output)
