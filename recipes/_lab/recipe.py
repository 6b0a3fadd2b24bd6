"""Reads a recipe: its card, its variants, what it claims, and a fingerprint of its code."""

import ast
import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

from recipes._lab.errors import UserError

CARD_SECTIONS = (
    "Problem",
    "Technique",
    "Claim",
    "Costs",
    "Start at",
    "Caveat",
    "Reference",
    "Run",
    "Measured",
)

# These reach a run as arguments, so that adding a claim or storing a learning rate trains nothing
# again that it does not change.
DATA_OF_A_RECIPE = ("VARIANTS", "EQUAL_START", "EXPERIMENTS", "CLAIMS", "SYMPTOMS")


@dataclass(frozen=True)
class Experiment:
    """Data and training that all variants of a comparison share.

    `learning_rates` names the variants that take part, in the order of the table; the first is the
    baseline. `sweep` experiments run only on request. `measure` says whether the recipe's function
    of that name is called on each trained model, or names another one; where it has an argument
    `epochs`, it is told how many the model had. Metrics whose name ends in `_milliseconds` or
    `_time_ratio` come from a clock and differ from run to run. `arguments` go to `build_model` for
    all variants, whose own come on top. A variant can have `samples`, `label_noise`, `epochs` and
    `batch_size` of its own among its arguments; `overrides` wins over those, and is for the command
    line.
    """

    name: str
    data: str
    epochs: int
    batch_size: int
    learning_rates: dict
    samples: int | None = None
    label_noise: float = 0.0
    sweep: bool = False
    measure: bool | str = False
    arguments: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)

    @property
    def variants(self):
        return list(self.learning_rates)

    @property
    def baseline(self):
        return self.variants[0]


@dataclass(frozen=True)
class Claim:
    """`metric` of `variant` is higher or lower than that of `against`, or equal to it.

    `at_least` is the smallest difference that counts, in the metric's unit; for "equal", the
    largest that still counts as none. `against_metric` is `metric` where nothing else is said.
    `textbook` is a sentence of the textbooks that is true as far as the claim holds, and
    `against_textbook` one that is false as far as it does. Several claims may settle one sentence.
    """

    text: str
    experiment: str
    variant: str
    against: str
    metric: str
    direction: str
    at_least: float
    against_metric: str | None = None
    textbook: str | None = None
    against_textbook: str | None = None

    def __post_init__(self):
        if self.direction not in ("higher", "lower", "equal"):
            raise ValueError(
                'Argument `direction` must be "higher", "lower" or "equal". '
                f"Received: direction={self.direction!r}"
            )
        if not self.at_least >= 0:
            raise ValueError(
                f"Argument `at_least` must be >= 0. Received: at_least={self.at_least}"
            )


class Recipe:
    """One recipe file, loaded.

    Attributes:
        name: The file's name without its ending, "dropout".
        path: Its path.
        title: First line of the card, without the period.
        card: Dictionary from section ("Problem", ...) to text.
        variants: Dictionary from name to keyword arguments of `build_model`.
        experiments: Dictionary from name to `Experiment`.
        claims: List of `Claim`.
        fingerprint: Hash of the code that a run depends on.
    """

    def __init__(self, path):
        self.path = Path(path).resolve()
        self.name = self.path.stem
        source = self.path.read_text(encoding="utf-8")
        self.fingerprint = code_fingerprint(source)
        self.module = load_module(self.path)
        self.title, self.card = parse_card(self.module.__doc__ or "")
        self.variants = self.module.VARIANTS
        self.experiments = {
            name: Experiment(name=name, **entries)
            for name, entries in self.module.EXPERIMENTS.items()
        }
        self.claims = [Claim(**entries) for entries in self.module.CLAIMS]
        self._check_names()

    def _check_names(self):
        for experiment in self.experiments.values():
            unknown = set(experiment.variants) - set(self.variants)
            if unknown:
                raise ValueError(
                    f"{self.path}: experiment {experiment.name!r} names variants that are not in "
                    f"VARIANTS: {sorted(unknown)}"
                )
        for claim in self.claims:
            experiment = self.experiments.get(claim.experiment)
            if experiment is None or {claim.variant, claim.against} - set(experiment.variants):
                raise ValueError(
                    f"{self.path}: the claim {claim.text!r} must name an experiment and two of "
                    f"its variants. Received: experiment={claim.experiment!r}, "
                    f"variant={claim.variant!r}, against={claim.against!r}"
                )


def parse_card(docstring):
    """Split a recipe's docstring into its title and a dictionary of its sections."""
    title, _, rest = docstring.strip().partition("\n")
    sections, current = {}, None
    for line in rest.splitlines():
        name, colon, text = line.partition(":")
        if colon and name in CARD_SECTIONS:
            current = name
            sections[current] = [text.strip()]
        elif current:
            sections[current].append(line.strip())
    return title.strip().rstrip("."), {
        name: "\n".join(lines).strip() for name, lines in sections.items()
    }


def load_module(path):
    """Return the module of a recipe file, without importing it twice.

    `python -m recipes.dropout` has it as `__main__`; a worker process imports it by name, or by
    path where the file lies outside the package.
    """
    path = Path(path)
    main_module = sys.modules.get("__main__")
    if _is_file_of(main_module, path):
        return main_module
    name = f"recipes.{path.stem}"
    if not path.exists() or _is_file_of(importlib.util.find_spec(name), path):
        return importlib.import_module(name)
    name = f"recipe_file_{path.stem}"
    if not _is_file_of(sys.modules.get(name), path):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _is_file_of(module_or_spec, path):
    file = getattr(module_or_spec, "origin", None) or getattr(module_or_spec, "__file__", None)
    return file is not None and Path(file).resolve() == path


def code_fingerprint(source, without=DATA_OF_A_RECIPE):
    """Hash Python source so that docstrings, comments and layout do not count.

    A recipe's docstring holds its measured result, which must not change what the result depends
    on. Top-level assignments to the names in `without` are left out as well.
    """
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _assigns(node, without)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _assigns(node, names):
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id in names for target in node.targets
    )


def _is_docstring(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def record_path(recipe_path):
    """Return where the recorded result of the recipe in `recipe_path` is kept."""
    return recipe_path.parent / "_recorded" / f"{recipe_path.stem}.json"


def choose(kind, wanted, known):
    """Return `wanted` as a list, or raise `UserError` that names what is allowed."""
    for name in wanted:
        if name not in known:
            raise UserError(f"{kind} must be one of {', '.join(known)}. Received: {name}")
    return list(wanted)
