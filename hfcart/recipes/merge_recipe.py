"""A recipe: everything a merge is asked to do, from the command line, from YAML, or from a record.

The YAML has exactly the fields of the command line. Unknown keys, wrong types and values out of range are
refused before anything is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from hfcart.errors import UsageError
from hfcart.methods import METHODS, Adaptive, named
from hfcart.names import dtype
from hfcart.recipes.fields import Device, HubRepo, OutFolder, explain, out_of_percent, parse_size
from hfcart.recipes.finished_sweep import with_sweep
from hfcart.recipes.fit import check_fit
from hfcart.recipes.named import AdapterSource, LocalSource, SourceTask
from hfcart.recipes.options import ADAPTATION, BASICS, MACHINE, MERGED, OUTPUT, PUBLISHING, Option
from hfcart.recipes.parameter_fields import PARAMETERS, SHARES, AdaptationFields, field_of

WRAPPERS = ("lines", "svc")  # fields whose number goes over what any method makes


class Settings(AdaptationFields):
    """The fields that every recipe has. Their names are the long options of `hfcart merge`."""

    sources: tuple[str | LocalSource | AdapterSource, ...] = Field(min_length=1, strict=False)
    method: Annotated[str, Option("The merge method; `hfcart methods` lists them.", BASICS, metavar="METHOD")] = "cart"
    base: Annotated[
        str | LocalSource | AdapterSource | None,
        Option(
            "The pretrained tower, where one is needed.",
            BASICS,
            "By methods, and by --full-clip. What the sources' cards say, else the openai/clip-vit-* of their shape.",
            metavar="SOURCE",
            default="by cards or shape",
        ),
    ] = None
    out: Annotated[
        OutFolder | None,
        Option("Where to write.", BASICS, metavar="FOLDER", default="the name in --push-to, else ./merged"),
    ] = None
    push_to: Annotated[
        HubRepo | None,
        Option(
            "Publish the result there, in one commit.",
            BASICS,
            "The token and write access are checked before the work.",
            metavar="USER/NAME",
        ),
    ] = None
    sweep: Annotated[
        str | None,
        Option(
            "Take rank and scale from this sweep: its best point.",
            BASICS,
            "The folder that `hfcart sweep` wrote, of the same sources. The card tells how they were chosen.",
            metavar="FOLDER",
        ),
    ] = None
    lines: Annotated[
        float | None,
        Option(
            "LiNeS: scale later blocks more, in place of --scale.",
            MERGED,
            "What is added to the base is scaled by α + β·l/(L−1) in block l of L; α is computed (arXiv 2410.17146).",
            metavar="BETA",
            taken=lambda method: method.task_vectors,
        ),
    ] = None
    svc: Annotated[
        float | None,
        Option(
            "SVC: turn down what several towers share; 1 as published.",
            MERGED,
            "Singular values of what is added to the base are divided by the mean over towers of max(α, s), where s "
            "says how often a direction is counted (arXiv 2602.05536).",
            metavar="ALPHA",
            taken=lambda method: method.task_vectors,
        ),
    ] = None
    qkv: Annotated[
        Literal["split", "fused"],
        Option(
            "Merge q, k and v as three matrices, or as one.", MERGED, "OpenCLIP stores them as one.", recorded="always"
        ),
    ] = "split"
    adapters: Annotated[
        int | float | None,
        Option(
            "Write an adapter of this rank for each source, too.",
            OUTPUT,
            "Each in adapters/<name>, as peft loads it: what the source has that the tower has not, cut to so many "
            "singular directions. Without --method the tower is the average (Eq. 5 of CART's paper).",
            metavar="RANK",
            recorded="changed",
        ),
    ] = None
    adapters_carry: Annotated[
        Literal["all", "matrices"],
        Option(
            "What adapters hold.",
            OUTPUT,
            "all: biases, norms and embeddings of the source, too. matrices: the attention and MLP weights alone, as "
            "Eq. 5 is printed.",
            recorded="changed",
        ),
    ] = "all"
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Option(
            "Of the output.",
            OUTPUT,
            "A LoRA adapter counts as float32.",
            default="the widest of the sources",
            recorded="always",
        ),
    ] = None
    max_shard_size: Annotated[str, Option("Such as 5GB or 500MB.", OUTPUT, metavar="SIZE", recorded="always")] = "5GB"
    with_projection: Annotated[
        bool,
        Option(
            "Keep the visual projection too.",
            MERGED,
            "The output is a CLIPVisionModelWithProjection.",
            recorded="always",
        ),
    ] = False
    allow_distant: Annotated[
        bool, Option("Go on although the towers seem not to be of one ancestor.", MERGED, recorded="always")
    ] = False
    matrices: Annotated[
        Literal["blocks", "all-2d"],
        Option(
            "What counts as a matrix, for spectral methods.",
            MERGED,
            "blocks: the attention and MLP weights. all-2d: every tensor of two dimensions, so the position embedding "
            "too (and a projection that is kept), as in TSV-M's own code.",
            taken=lambda method: method.any_matrix,
            recorded="changed",
        ),
    ] = "blocks"
    full_clip: Annotated[
        bool,
        Option(
            "Write a whole CLIPModel, for zero-shot classification.",
            MERGED,
            "The base's text tower, projections and tokenizer around the merged tower.",
            recorded="changed",
        ),
    ] = False
    format: Annotated[
        Literal["transformers", "open_clip"],
        Option(
            "Of the files: which library loads them.",
            OUTPUT,
            "open_clip, with --full-clip: open_clip_model.safetensors and open_clip_config.json in place of "
            "transformers' files.",
            recorded="changed",
        ),
    ] = "transformers"
    activation: Annotated[
        Literal["quick_gelu", "gelu"] | None,
        Option(
            "Of towers that come without a config.",
            MERGED,
            "No shape shows it, and it is never guessed: OpenAI's weights have quick_gelu, most of LAION's gelu. The "
            "config of a base says it as well.",
            default="what a config says",
            recorded="changed",
        ),
    ] = None
    tasks: Annotated[
        Annotated[tuple[str | SourceTask, ...], Field(strict=False)] | None,
        Option(
            "Tasks of the sources, for methods that look at images.",
            MERGED,
            "The tasks that the sources were fine-tuned on, as `hfcart eval` takes them: each source finds its own by "
            "the cards, SOURCE=TASK says it. With consensus, each --threshold is chosen by accuracy on labelled "
            "validation images of its task.",
            metavar="TASKS",
            taken=lambda method: method.takes_tasks,
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option(
            "Of the forward pass.",
            ADAPTATION,
            "Of adaptation, and of choosing a threshold. auto: bfloat16 where the device computes with it.",
        ),
    ] = "auto"
    overwrite: Annotated[bool, Option("Replace an output folder or repo that exists.", OUTPUT)] = False
    eval: Annotated[
        str | None,
        Option(
            "Then measure the result on these tasks, for its card.",
            OUTPUT,
            "As `hfcart eval` takes them.",
            metavar="TASKS",
        ),
    ] = None
    private: Annotated[bool, Option("Make the repo private if it is created.", PUBLISHING)] = False
    create_pr: Annotated[bool, Option("Open a pull request instead of committing to main.", PUBLISHING)] = False
    commit_message: Annotated[str | None, Option("Message of the commit.", PUBLISHING, metavar="TEXT")] = None
    device: Annotated[Device, Option("Where to compute.", MACHINE, metavar="auto|cpu|cuda[:N]|mps")] = "auto"
    workers: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Option(
            "Worker threads.",
            MACHINE,
            "Each with one BLAS thread. Does not change a byte.",
            default="one a core, at most 8",
        ),
    ] = None
    stream: Annotated[
        bool,
        Option(
            "Read tensors from the Hub piece by piece, keep no copy.",
            MACHINE,
            "By ranged requests: the sources take no room on this disk.",
        ),
    ] = False

    @field_validator("sources")
    @classmethod
    def _sources_named(
        cls, value: tuple[str | LocalSource | AdapterSource, ...]
    ) -> tuple[str | LocalSource | AdapterSource, ...]:
        if any(isinstance(s, str) and not s.strip() for s in value):
            raise ValueError("a source has no name")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_text(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return named(value)

    @field_validator("dtype", "precision", mode="before")
    @classmethod
    def _in_full(cls, value: object) -> object:
        return dtype(value)

    @model_validator(mode="before")
    @classmethod
    def _average_under_adapters(cls, fields: Any) -> Any:  # noqa: ANN401 (fields not checked yet)
        if isinstance(fields, dict) and fields.get("adapters") is not None:
            return {"method": "average", **fields}
        return fields

    @field_validator(
        "adapters",
        "adapt_ranks",
        *(p.name for p in PARAMETERS.values() if p.kind in SHARES),
        mode="before",
        check_fields=False,
    )
    @classmethod
    def _in_percent(cls, value: object) -> object:
        return out_of_percent(value)

    @field_validator("max_shard_size")
    @classmethod
    def _shard_size_readable(cls, value: str) -> str:
        parse_size(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_fit(self)
        return self

    def given(self, parameter: str) -> Any:  # noqa: ANN401 (of the parameter's kind)
        """What was asked for a parameter of a method, or of `adapt`; None if nothing was."""
        return getattr(self, parameter)

    @property
    def adaptive(self) -> Adaptive | None:
        """What the method becomes where coefficients, and perhaps directions, are learned or given; else None."""
        found = METHODS[self.method].adaptive if self.adapt is not None or self.coefficients is not None else None
        return found.ranked if found and self.adapt_ranks is not None else found

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's keyword arguments: what was set, and the method's defaults for the rest, if it has one."""
        values = {
            p.name: p.default if (value := self.given(p.name)) is None else value
            for p in METHODS[self.method].parameters
        }
        if self.adaptive:
            values = {name: value for name, value in values.items() if name not in self.adaptive.replaces}
        chosen = METHODS[self.method].chosen
        if chosen and self.tasks is not None:  # not known yet
            values = {**values, chosen.parameter: None}
        if self.lines is not None:
            values = {**values, "scale": None, "lines": self.lines}
        if self.svc is not None:
            values = {**values, "svc": self.svc}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def folder(self) -> Path:
        """Where the output goes: `out`, else the name of the repo it is pushed to, else ./merged."""
        return Path(self.out or (self.push_to.split("/")[1] if self.push_to else "merged"))


if TYPE_CHECKING:

    class Recipe(Settings):
        """What to merge and how: the settings, and a field for every parameter of a method."""

else:
    Recipe = create_model(
        "Recipe",
        __base__=Settings,
        __module__=__name__,
        __doc__="What to merge and how: the settings, and a field for every parameter of a method.",
        **{name: field_of(parameter) for name, parameter in PARAMETERS.items()},
    )


# How each field is typed and explained; `sources` are arguments, and `coefficients` are only ever recorded.
OPTIONS: dict[str, Option] = {
    name: option
    for name, field in Recipe.model_fields.items()
    for option in field.metadata
    if isinstance(option, Option)
}


def recorded(recipe: Recipe, known: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a finished merge's recipe states, as YAML has them.

    Args:
        recipe: what was asked.
        known: fields whose value is settled by now, in place of what was asked.
    """
    out = {}
    for name, option in OPTIONS.items():
        value = known.get(name, getattr(recipe, name))
        if option.recorded == "always" or (option.recorded == "changed" and value != Recipe.model_fields[name].default):
            out[name] = value
    return out


def make(fields: dict[str, Any], where: str = "the command line") -> Recipe:
    """Validate a recipe's fields. Raises UsageError that names every wrong field."""
    try:
        return Recipe(**with_sweep(fields))
    except (ValidationError, TypeError) as error:
        hint = "`hfcart merge --help` lists every field."
        raise UsageError(explain(error, where, Recipe.model_fields), hint=hint) from None
