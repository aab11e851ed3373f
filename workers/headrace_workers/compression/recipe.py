"""Recipes: what is to be done to a model, stage after stage, and what must be true of the result.

A recipe is plain data, in YAML or JSON. Whatever it says that is not understood is refused by name, and so is an order
of stages in which one would undo another's work: values that were rounded are not trained any more.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headrace.errors import RecipeError

__all__ = [
    "ActivationScheme",
    "Calibration",
    "Distill",
    "Gates",
    "Losses",
    "Prune",
    "PruneStructured",
    "Quantize",
    "Recipe",
    "Recover",
    "Stage",
    "Student",
    "Training",
    "WeightScheme",
    "read_recipe",
    "ready_recipes",
]

_MOST_BYTES: Final = 1 << 20

Part = TypeVar("Part", bound="_Part")
Ratio = Annotated[float, Field(gt=0, lt=1)]
Patterns = list[Annotated[str, Field(min_length=1, max_length=200)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(_Part):
    """How a stage trains: AdamW, a linear warm-up and a linear way down."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 500
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rate grows."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""


class Losses(_Part):
    """What a student is asked to match, by weight; 0 leaves a term out."""

    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    logits: Annotated[float, Field(ge=0)] = 1.0
    """T²·KL(teacher ‖ student) over the answers: classes, next tokens, or, for embeddings, a batch's similarities."""
    task: Annotated[float, Field(ge=0)] = 0.0
    """The task's own loss, where data has labels."""
    embedding: Annotated[float, Field(ge=0)] = 1.0
    """1 − cosine to the teacher's embedding; for embedding models only."""
    hidden: Annotated[float, Field(ge=0)] = 0.0
    """Mean squared error to the teacher's hidden states; through a learned projection where widths differ."""
    relations: Annotated[float, Field(ge=0)] = 0.0
    """MiniLM's: KL between the last blocks' self-attention relations of queries, keys and values."""


class Student(_Part):
    """What a student looks like: the teacher, but for what is given here."""

    layers: Annotated[int, Field(ge=1)] | None = None
    hidden: Annotated[int, Field(ge=8)] | None = None
    """Width of the hidden states."""
    ffn: Annotated[int, Field(ge=8)] | None = None
    heads: Annotated[int, Field(ge=1)] | None = None
    initial: Literal["layers", "random"] = "layers"
    """From the teacher's layers, evenly spaced, their most important channels, or from scratch."""
    model: str | None = None
    """Another model altogether, by path or hub id, of the same vocabulary. Excludes the others."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        shape = (self.layers, self.hidden, self.ffn, self.heads)
        if self.model is not None and any(part is not None for part in shape):
            raise ValueError("a student that is another model has that model's shape: drop layers, hidden, ffn, heads")
        return self


class Distill(_Part):
    """Train a smaller student to answer like the model as it came."""

    kind: Literal["distill"] = "distill"
    student: Student = Student()
    losses: Losses = Losses()
    training: Training = Training()


class PruneStructured(_Part):
    """Cut whole neurons, heads or layers out of the model."""

    kind: Literal["prune_structured"] = "prune_structured"
    target: Literal["ffn", "heads", "layers"]
    importance: Literal["weight", "activation", "taylor"] = "activation"
    """By the weights' L1 norm; by mean activation on data (Minitron); by |activation·gradient| (Molchanov)."""
    ratio: Ratio | None = None
    """What share of them goes."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Instead: those go whose importance is below this share of their layer's mean."""
    scope: Literal["global", "per_layer"] = "per_layer"
    """Whether layers keep alike shares, or give what they can spare."""
    min_keep: Annotated[float, Field(gt=0, le=1)] = 0.25
    """What share of each layer stays, whatever the importance."""
    round_to: Annotated[int, Field(ge=1, le=256)] = 16
    """FFN widths become multiples of this, which is what kernels like."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        return _exactly_one(self, "ratio", "threshold")


class Prune(_Part):
    """Set single weights to zero. Files shrink; dense kernels get no faster."""

    kind: Literal["prune"] = "prune"
    method: Literal["l1", "global_l1", "threshold", "wanda", "random"] = "l1"
    amount: Ratio | None = None
    threshold: Annotated[float, Field(gt=0)] | None = None
    """For `threshold`: weights of a smaller magnitude go."""
    pattern: Annotated[str, Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")] | None = None
    """`2:4` keeps the two best of each four in a row; instead of an amount."""
    embeddings: bool = False
    """Lookup tables as well: half of a small encoder's weights stand there."""
    left_alone: Patterns = []

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        _exactly_one(self, "amount", "threshold", "pattern")
        if (self.method == "threshold") != (self.threshold is not None):
            raise ValueError("method 'threshold' goes with 'threshold', and every other one with 'amount' or 'pattern'")
        if self.pattern is not None:
            keep, of = map(int, self.pattern.split(":"))
            if keep >= of:
                raise ValueError(f"pattern {self.pattern} would keep all {of} of {of}")
        return self


class Recover(_Part):
    """Train what is left to answer like the model as it came. What was set to zero stays zero."""

    kind: Literal["recover"] = "recover"
    losses: Losses = Losses()
    training: Training = Training(learning_rate=3e-4)


class ActivationScheme(_Part):
    """How what comes into a layer is quantized. There is no range over a whole batch, on purpose."""

    kind: Literal["none", "dynamic_token", "static"] = "dynamic_token"
    observer: Literal["minmax", "percentile", "histogram"] = "histogram"
    """For `static`: how a range is found in calibration data."""


class WeightScheme(_Part):
    """How a layer's weights are stored, and what they are computed with."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 16] = 8
    dtype: Literal["int", "fp16", "bf16"] = "int"
    group: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Columns that share a scale; None: all of a row."""
    symmetric: bool = True
    activations: ActivationScheme = ActivationScheme()

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.dtype == "int") == (self.bits == 16):
            raise ValueError("bits 16 go with dtype fp16 or bf16, and fewer with dtype int")
        plain = self.bits == 8 and self.group is None and self.symmetric
        if self.activations.kind == "static" and not plain:
            raise ValueError("static activations go with symmetric 8-bit weights, one scale per output")
        return self


class Calibration(_Part):
    """How much data is looked at to find ranges and correlations."""

    samples: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99


class Quantize(_Part):
    """Store weights, and compute with activations, in fewer bits."""

    kind: Literal["quantize"] = "quantize"
    weights: WeightScheme = WeightScheme()
    embeddings: Literal["int8", "fp16", "keep"] = "int8"
    """Large embedding tables, row by row."""
    method: Literal["rtn", "gptq"] = "rtn"
    """Round to nearest, or compensate each rounding's error in the columns after it (GPTQ)."""
    smooth: Annotated[float, Field(ge=0, le=1)] | None = None
    """SmoothQuant's α: how much of the activations' spread moves into the weights; None: nothing."""
    overrides: dict[str, WeightScheme | None] = {}
    """Other schemes for modules, by pattern of their names; None leaves them in full precision. The first that fits."""
    left_alone: Patterns | None = None
    """Patterns of modules in full precision; None: classification heads and poolers."""
    calibration: Calibration = Calibration()


Stage = Annotated[Distill | PruneStructured | Prune | Recover | Quantize, Field(discriminator="kind")]


class Gates(_Part):
    """What must be true of the result, against the model as it came; None does not ask."""

    max_metric_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of the task's metric, relative."""
    min_cosine_mean: Annotated[float, Field(ge=0, le=1)] | None = None
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of examples with the same answer."""
    max_kl: Annotated[float, Field(ge=0)] | None = None
    max_perplexity_ratio: Annotated[float, Field(ge=1)] | None = None
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    max_size_ratio: Annotated[float, Field(gt=0)] | None = None
    batch_invariant: bool | None = None


class Recipe(_Part):
    """All of it."""

    schema_version: Literal[1] = 1
    description: Annotated[str, Field(max_length=2000)] = ""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    stages: Annotated[list[Stage], Field(min_length=1, max_length=32)]
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        kinds = [stage.kind for stage in self.stages]
        if "quantize" in kinds[:-1]:
            raise ValueError("quantize comes last: what was rounded is neither trained nor cut any more")
        if "distill" in kinds[1:]:
            raise ValueError("distill comes first: it makes a new model, and what was done to the old one is lost")
        if "prune" in kinds and "prune_structured" in kinds[kinds.index("prune") :]:
            raise ValueError("prune_structured comes before prune: zeros in what is cut away are wasted")
        if kinds[0] == "recover":
            raise ValueError("recover comes after something that needs it")
        return self


def read_recipe(path_or_name: str | Path) -> Recipe:
    """A recipe from a YAML or JSON file, or a ready one by its name.

    Raises:
        RecipeError: there is none, or it says something that is not understood; the message names the place.
    """
    path = Path(path_or_name)
    if not path.is_file():
        path = _ready(str(path_or_name))
    if path.stat().st_size > _MOST_BYTES:
        raise RecipeError(f"{path} is larger than a recipe can be")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    return parse_recipe(content, str(path))


def parse_recipe(content: Any, where: str = "the recipe") -> Recipe:
    """A recipe from plain data.

    Raises:
        RecipeError: it says something that is not understood.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(step) for step in detail['loc']) or 'recipe'}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RecipeError(f"{where} is not valid: {'; '.join(lines)}") from None


def ready_recipes() -> dict[str, Path]:
    """The recipes that come with headrace, by name."""
    folder = Path(str(resources.files("headrace_workers.compression").joinpath("recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _ready(name: str) -> Path:
    known = ready_recipes()
    if name not in known:
        raise RecipeError(f"there is no recipe file {name!r}, and no ready recipe of that name: {', '.join(known)}")
    return known[name]


def _exactly_one(part: Part, *names: str) -> Part:
    given = [name for name in names if getattr(part, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}")
    return part
