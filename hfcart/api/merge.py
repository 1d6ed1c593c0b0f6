"""`hfcart.merge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from hfcart.api._calling import calling, names_of, plain, texts
from hfcart.api.options import MergeOptions, StrPath
from hfcart.system.processes import together

if TYPE_CHECKING:
    from hfcart.api.results import Merged
    from hfcart.progress import Progress


def merge(
    sources: Sequence[StrPath] = (),
    *,
    progress: bool | Progress = False,
    **options: Unpack[MergeOptions],
) -> Merged:
    """Merge fine-tuned CLIP vision towers into one, write it to a folder, and publish it if asked to.

    As `hfcart merge` does: with the same fields the same bytes. Prints nothing.

        merged = hfcart.merge(["user/a", "user/b@v2", "./local"], rank=0.08, out="merged")

    Args:
        sources: Hub repos (`user/name`, or one at a branch, tag, commit or refs/pr/N) and local folders, in any mix.
            May be left out if a recipe names them.
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Basics:
            method (str): The merge method; `hfcart methods` lists them. Default: cart.
            rank (float or int): Singular directions kept: a share (8%, 0.08) or a number. Default: 0.08.
            scale (float): λ, the factor before the sum of task vectors. Default: the method's.
            base (path): The pretrained tower, where one is needed. Default: by cards or shape.
            out (path): Where to write. Default: the name in `push_to`, else ./merged.
            push_to (str): Publish the result there, in one commit.
            sweep (path): Take rank and scale from this sweep: its best point.
            recipe (path): Of a file, a published merge, or a name such as vit-b-32-8-cart.
        What is merged:
            lines (float): LiNeS: scale later blocks more, in place of `scale`.
            svc (float): SVC: turn down what several towers share; 1 as published.
            qkv ("split" | "fused"): Merge q, k and v as three matrices, or as one. Default: split.
            with_projection (bool): Keep the visual projection too.
            allow_distant (bool): Go on although the towers seem not to be of one ancestor.
            matrices ("blocks" | "all-2d"): What counts as a matrix, for spectral methods. Default: blocks.
            full_clip (bool): Write a whole CLIPModel, for zero-shot classification.
            activation (str): Of towers that come without a config. Default: what a config says.
            tasks (names): Tasks of the sources, for methods that look at images.
        Adaptation:
            adapt (names): Learn coefficients on images without labels.
            adapt_split ("train" | "validation" | "test"): Which images. Default: train.
            objective ("auto" | "entropy" | "infomax" | "distill"): What adaptation minimises. Default: auto.
            adapt_ranks (float or int): AdaRank: choose among so many directions.
            adapt_tensors ("auto" | "matrices" | "all"): Which tensors have coefficients. Default: auto.
            adapt_per ("tensor" | "task"): For each tensor, or for each tower. Default: tensor.
            batch_size (int): Images of each task in a batch. Default: 16.
            precision ("auto" | "float32" | "bfloat16"): Of the forward pass. Default: auto.
        Output:
            adapters (float or int): Write an adapter of this rank for each source, too.
            adapters_carry ("all" | "matrices"): What adapters hold. Default: all.
            dtype ("float32" | "float16" | "bfloat16"): Of the output. Default: the widest of the sources.
            max_shard_size (str): Such as 5GB or 500MB. Default: 5GB.
            format (str): Of the files: which library loads them. Default: transformers.
            overwrite (bool): Replace an output folder or repo that exists.
            eval (names): Then measure the result on these tasks, for its card.
        Publishing:
            private (bool): Make the repo private if it is created.
            create_pr (bool): Open a pull request instead of committing to main.
            commit_message (str): Message of the commit.
        Machine:
            device (str): Where to compute. Default: auto.
            workers (int): Worker threads. Default: one a core, at most 8.
            stream (bool): Read tensors from the Hub piece by piece, keep no copy.
        Parameters of single methods:
            steps (int): wudi, adapt: steps of Adam. Default: the method's.
            lr (float): wudi, adapt: learning rate of Adam. Default: the method's.
            seed (int): dare, della and others: of random draws. Default: 0.
            weights (numbers): linear, slerp: how much each source counts.
            density (float): sce, dare, della, ties: share of entries kept. Default: the method's.
            beta (float): breadcrumbs: share of the smallest entries to drop. Default: 0.85.
            gamma (float): breadcrumbs: quantile above which entries are outliers. Default: 0.993.
            threshold (float or numbers): consensus: λ of the TALL masks, for all sources or for each. Default: 0.4.
            agree (int): consensus: how many towers' masks must keep an entry. Default: 2.
            epsilon (float): della: how much oftener smallest entries drop. Default: 0.1.
            trim ("global" | "tensor"): ties: rank entries over the tower, or each tensor. Default: global.
            combine ("mean" | "sum"): ties: what entries that agree become. Default: mean.
            kept (float): dc_merge: share of each tower's coordinates that counts. Default: 0.001.
            common (float): iso_cts: share of directions that the common space gets. Default: 0.8.
            examples (int): esm, fisher and others: training images a task. Default: the method's.
            floor (float): fisher: what the information's diagonal is raised to. Default: 1e-06.
            off_diagonal (float): regmean, regmean_pp: factor off the Gram diagonal. Default: the method's.

    Returns:
        The record of the merge (what hfcart.json holds), with the folder, the results of `eval` and what was published.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    from hfcart.recipes.merge_recipe import Recipe

    known = {*MergeOptions.__annotations__, *Recipe.model_fields} - {"sources"}
    with calling("merge", options, known, progress) as listener, together() as team:
        from hfcart.api.results import Evaluated, Merged, Published
        from hfcart.commands.merge_and_publish import run_merge
        from hfcart.recipes.asked import asked_for

        if team is not None and not team.first:
            asked, done = team.follow()
        else:
            fields = _fields(plain(options))
            recipe = fields.pop("recipe", None)
            if given := texts(sources, "sources"):
                fields["sources"] = tuple(given)
            if recipe:
                from hfcart.sources.published_recipe import asked_by

                asked = asked_by(recipe, fields, listener, "merge()")
            else:
                asked = asked_for(None, fields, listener, "merge()")
            done = run_merge(asked, listener, team)
            if team is not None:
                team.result = asked, done
        published = Published.made(done.published)
        results = Evaluated.of(done.results, folder=asked.folder, published=published) if done.results else None
        return Merged.of(done.record, folder=asked.folder, results=results, published=published)


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields: `adapt` and `eval` are one text there."""
    lists = {name: ",".join(names_of(options[name])) for name in ("adapt", "eval") if name in options}
    return {**options, **lists}
