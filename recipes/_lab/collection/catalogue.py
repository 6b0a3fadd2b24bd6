"""Finds the recipes and reads their cards and records without importing them, so in no time."""

import ast
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from recipes._lab.errors import UserError
from recipes._lab.recipe import choose, parse_card, record_path
from recipes._lab.wording import describe_difference

FOLDER = Path(__file__).resolve().parents[2]

# What a person sees who does not know yet what is wrong.
SYMPTOMS = {
    "at chance": "The loss does not move, and the answers are no better than guessing.",
    "explodes": "The loss becomes huge, or nan.",
    "slow": "It learns, and takes too many steps or too long.",
    "underfits": "Even the training data are not learned well.",
    "overfits": "The training data are learned better and better, and new data are not.",
    "unstable": "The loss jumps about, or one seed works and the next one does not.",
    "badly calibrated": "The network is surer of its answers than it has reason to be, or less.",
    "wrong data": "Labels, inputs or their scales are not what they should be.",
    "choosing a rate": "Which learning rate, and how should it change while training?",
}

SYNONYMS = {
    "at chance": "chance stuck vanishing vanishes vanish dead plateau stalls random constant",
    "explodes": "explode exploding diverges diverge diverging divergence nan inf overflow",
    "slow": "speed time fast faster takes-too-long seconds night convergence",
    "underfits": "underfit underfitting bias too-small",
    "overfits": "overfit overfitting memorizes memorize memorizing generalization gap",
    "unstable": "instability noisy jumps oscillates oscillating zigzag variance spikes",
    "badly calibrated": "calibration calibrated overconfident confidence probabilities uncertainty",
    "wrong data": "data labels wrong-labels scaling inputs outputs preprocessing",
    "choosing a rate": "rate learning-rate schedule tuning warm-up warmup decay choosing",
}


@dataclass(frozen=True)
class Entry:
    """One recipe as it is on disk.

    Attributes:
        path: The recipe's file.
        title: "Dropout: silence random units while training, ...".
        card: Dictionary from section to text.
        source: The text of the file.
        record: The recorded result, or None where nothing has been recorded.
    """

    path: Path
    title: str
    card: dict
    source: str
    record: dict | None

    @functools.cached_property
    def constants(self):
        """Dictionary of the module's constants that need no library, but for CLAIMS."""
        return constants(self.source, without=("CLAIMS",))

    @property
    def claims(self):
        """The recipe's CLAIMS."""
        return constants(self.source)["CLAIMS"]

    @property
    def name(self):
        return self.path.stem

    @property
    def symptoms(self):
        return list(self.constants.get("SYMPTOMS", []))

    @property
    def summary(self):
        """What the technique does: the title without the name before its colon."""
        text = self.title.partition(": ")[2] or self.title
        return text[:1].upper() + text[1:]

    @property
    def problem(self):
        """The first sentence of the card's problem."""
        text = " ".join(self.card.get("Problem", "").split())
        return re.split(r"(?<=[.?!])\s", text, maxsplit=1)[0]


def paths(folder=FOLDER):
    """Return the files of all recipes, sorted by name."""
    return sorted(Path(folder).glob("[a-z]*.py"))


def read_all(folder=FOLDER):
    """Return an `Entry` for every recipe."""
    return [read(path) for path in paths(folder)]


def read(path):
    """Return the `Entry` of one recipe file; raise `UserError` where it cannot be read."""
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8")
        # The card alone: to parse whole recipes would take most of the index's time.
        end_of_card = source.find('"""', 3) + 3
        tree = ast.parse(source[:end_of_card] if end_of_card > 3 else source)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as a recipe: {error}.") from error
    title, card = parse_card(ast.get_docstring(tree) or "")
    return Entry(path, title, card, source, _read_record(path))


def find(name, folder=FOLDER):
    """Return the `Entry` of the recipe called `name`; raise `UserError` where there is none."""
    choose("A recipe", [name], [path.stem for path in paths(folder)])
    return read(Path(folder) / f"{name}.py")


# An assignment to UPPERCASE names, with the indented or closing lines that go on with it.
_ASSIGNMENT = re.compile(r"^([A-Z][A-Z0-9_, ]*) = .*\n(?:(?:[ \t\])}].*)?\n)*", re.MULTILINE)


def constants(source, without=()):
    """Return the values of a module's UPPERCASE constants, as far as they need no import."""
    found = {}
    for assignment in _ASSIGNMENT.finditer(source + "\n"):
        if assignment[1] not in without:
            try:
                # One namespace, because a comprehension sees no other.
                exec(compile(assignment[0], assignment[1], "exec"), found)
            except NameError:
                continue  # It needs NumPy or Keras, and nothing that is read here does.
            except SyntaxError as error:
                raise UserError(f"{assignment[1]} cannot be read: {error}.") from error
    found.pop("__builtins__", None)
    return found


def _read_record(path):
    file = record_path(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); record the recipe again.") from error


def find_symptom(words):
    """Return the symptom that a person means; raise `UserError` where none is known by it."""
    wanted = " ".join(words).lower().replace("-", " ").replace("_", " ").strip()
    for symptom, synonyms in SYNONYMS.items():
        if wanted == symptom or wanted in [word.replace("-", " ") for word in synonyms.split()]:
            return symptom
    raise UserError(f"--for must be one of {', '.join(SYMPTOMS)}. Received: {' '.join(words)}")


def headline(report):
    """Return the claim that stands for a recipe where there is room for one: its first."""
    return report["claims"][0] if report and report["claims"] else None


def describe_effect(claim):
    """Say what was claimed and measured: "Dropout raises accuracy (+2.2 [-0.3, +4.6] points)"."""
    return f"{claim['text']} ({describe_difference(claim)})"


def count_verdicts(claims):
    """Say how many claims had which verdict: "5 supported, 4 no clear difference"."""
    verdicts = [claim["verdict"] for claim in claims]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))


def training_seconds(entry):
    """Return the seconds of training that the recipe's command takes on one core, or None.

    The sum over all variants and seeds of the experiments that run without `--sweep`, where
    experiments that share a variant, its data and its learning rate share its runs.
    """
    if entry.record is None:
        return None
    experiments = entry.constants.get("EXPERIMENTS", {})
    of_run = {}
    for name, experiment in entry.record["experiments"].items():
        if experiments.get(name, {}).get("sweep"):
            continue
        setting = [experiment[part] for part in ("data", "samples", "label_noise", "epochs")]
        for variant, result in experiment["variants"].items():
            key = str([setting, result["arguments"], result["learning_rate"]])
            of_run[key] = entry.record["seconds"][name][variant]
    return sum(of_run.values()) * len(entry.record["seeds"])
