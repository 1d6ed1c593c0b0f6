"""adapter_config.json read strictly: which base an adapter changes, and by which factor each of its products counts.

What peft writes is known by name here. A field that makes another algebra of the adapter (DoRA, ...) is refused, and
so is one that nobody here knows: it might change values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

from hfcart.errors import CorruptFileError, NotATowerError
from hfcart.formats.safetensors_file import strict_json
from hfcart.quoting import printable, quoted

ADAPTER = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGED_BY_PEFT = (
    "Put it into its base and give the folder that this writes: PeftModel.from_pretrained(base, adapter)"
    ".merge_and_unload().save_pretrained(folder), in Python."
)

# Fields of which any value but null, false or an empty one is another algebra than W_0 + scale · B A.
_OTHER_ALGEBRA = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "an adapter with trainable tokens",
    "layer_replication": "an adapter of replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "megatron_config": "an adapter of Megatron's layers",
    "arrow_config": "a router of adapters (Arrow)",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
# Fields that decide nothing here: the tensors themselves say which modules are adapted, and with which rank.
_DECIDES_NOTHING = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size"),
    *("revision", "runtime_config", "target_modules", "task_type", "bias", "lora_bias", "peft_type"),
    *("init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
}
# Ways to begin that leave the base as it is; PiSSA and its like take from the base what the adapter begins with.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_MOST_PATTERNS = 5_000
_SECONDS = 0.5  # for one pattern on one name: a regular expression may be written to take for ever
_LONGEST = 1000  # characters of a pattern
_MOST_REPEATED = 10_000  # all its counts multiplied
_COUNTED = regex.compile(r"\{(\d*),?(\d*)\}")


@dataclass(frozen=True)
class LoraConfig:
    """What of an adapter's config decides its values.

    Attributes:
        base: the model it was trained on, as it says: a Hub repo, or a path on some machine; None if it does not say.
        revision: of that repo; None if it does not say.
        r: rank of a module that `rank_pattern` does not name.
        lora_alpha: numerator of the scale of a module that `alpha_pattern` does not name.
        rank_pattern: name or regular expression of modules -> rank; the first that fits counts.
        alpha_pattern: the same for alpha.
        use_rslora: whether the scale is alpha / √r, in place of alpha / r.
        where: the source's label, for messages.
    """

    base: str | None
    revision: str | None
    r: int
    lora_alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    where: str

    def rank(self, module: str) -> int:
        """The rank that a module's pair of matrices must have, by the module's name in the adapter."""
        rank: int = self._of(module, self.rank_pattern, self.r)
        return rank

    def scale(self, module: str) -> float:
        """What multiplies B A in a module."""
        alpha, rank = self._of(module, self.alpha_pattern, self.lora_alpha), self.rank(module)
        scale: float = alpha / math.sqrt(rank) if self.use_rslora else alpha / rank
        return scale

    def _of(self, module: str, patterns: dict[str, Any], default: Any) -> Any:  # noqa: ANN401 (of either pattern)
        """As peft has it: the first pattern that fits the end of the name, from a point on."""
        for pattern, value in patterns.items():
            try:
                if _compiled(pattern).match(module, timeout=_SECONDS):
                    return value
            except (regex.error, TimeoutError, RecursionError):
                raise CorruptFileError(
                    f"{self.where}/{ADAPTER} has the pattern {quoted(pattern)}, which is no regular expression that "
                    "can be followed.",
                    hint="Name the modules themselves there, or ask its owner to.",
                ) from None
        return default


@lru_cache(_MOST_PATTERNS)
def _compiled(pattern: str) -> regex.Pattern[str]:
    """Raises regex.error for a pattern that would take much memory: counted repetitions are written out in it."""
    counts = [int(count) for pair in _COUNTED.findall(pattern) for count in pair if count]
    if len(pattern) > _LONGEST or math.prod(max(1, count) for count in counts) > _MOST_REPEATED:
        raise regex.error("too large", pattern)
    return regex.compile(rf"(.*\.)?({pattern})$")


def read_config(data: bytes, where: str) -> LoraConfig:
    """Check an adapter_config.json.

    Args:
        data: the file's bytes.
        where: the source's label, for messages.

    Raises:
        CorruptFileError: it is no JSON object, or a field of it has no value that it can have.
        NotATowerError: it is an adapter of another type, DoRA, or has a field that is not known here.
    """
    try:
        found = strict_json(data)
    except ValueError as error:
        raise _bad(where, f"is not valid JSON ({printable(error, 300)})") from None
    if not isinstance(found, dict):
        raise _bad(where, "is not a JSON object")
    _refuse_other_algebra(found, where)
    base = found.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise _bad(where, f"has base_model_name_or_path = {quoted(base, 60)}, which is no name")
    rank, alpha = found.get("r", 8), found.get("lora_alpha", 8)
    if not _is_rank(rank):
        raise _bad(where, f"has r = {quoted(rank, 40)}, expected a whole number above 0")
    if not _is_number(alpha):
        raise _bad(where, f"has lora_alpha = {quoted(alpha, 40)}, expected a number")
    if not isinstance(rslora := found.get("use_rslora") or False, bool):
        raise _bad(where, f"has use_rslora = {quoted(rslora, 40)}, expected true or false")
    revision = found.get("revision")
    return LoraConfig(
        base=base.strip() or None if base else None,
        revision=revision if isinstance(revision, str) and revision else None,
        r=rank,
        lora_alpha=alpha,
        rank_pattern=_patterns(found, "rank_pattern", where),
        alpha_pattern=_patterns(found, "alpha_pattern", where),
        use_rslora=rslora,
        where=where,
    )


def _refuse_other_algebra(found: dict[str, Any], where: str) -> None:
    kind = found.get("peft_type", "LORA")
    if kind != "LORA":
        raise NotATowerError(
            f"{where} is an adapter of peft of the type {quoted(kind, 40)}; of these LORA can be read.",
            hint=MERGED_BY_PEFT,
        )
    for name, title in _OTHER_ALGEBRA.items():
        if found.get(name):
            raise NotATowerError(
                f"{where} is {title} ({name} in its {ADAPTER}), which is more than a low-rank update of its base.",
                hint="Leave it out: its weights cannot be put into those of its base."
                if name == "alora_invocation_tokens"
                else MERGED_BY_PEFT,
            )
    start = found.get("init_lora_weights")
    if start not in _BEGINNINGS:
        raise NotATowerError(
            f"{where} began with init_lora_weights = {quoted(start, 40)}, which changes the base that it is added to.",
            hint=MERGED_BY_PEFT,
        )
    mapping = found.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(trained, str) and trained.startswith("CLIPText"):
        raise NotATowerError(
            f"{where} is an adapter of a text tower ({quoted(trained, 60)}).", hint="Leave it out: vision is merged."
        )
    for name, value in found.items():
        if value and name not in _DECIDES_NOTHING and name not in _OTHER_ALGEBRA:
            raise NotATowerError(
                f"{where}/{ADAPTER} has {quoted(name, 60)} = {quoted(value, 60)}, a field that this hfcart does not "
                "know: it might change values.",
                hint=MERGED_BY_PEFT,
            )


def _patterns(found: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    patterns = found.get(name) or {}
    good = _is_rank if name == "rank_pattern" else _is_number
    if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS or not all(map(good, patterns.values())):
        raise _bad(where, f"has a {name} that is no mapping of modules to numbers")
    return patterns


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _bad(where: str, what: str) -> CorruptFileError:
    return CorruptFileError(f"{where}/{ADAPTER} {what}.", hint="Ask its owner to save the adapter again, with peft.")
