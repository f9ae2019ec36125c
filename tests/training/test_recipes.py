"""All settings of the recipes: those of the paper and its program, and the ones chosen from measurements.

A changed value changes the results of every run with that recipe, so it must be changed here too, deliberately.
"""

import ast
from dataclasses import asdict

from mlx_rtx.tasks import CopyTask, ImageTask, MqarTask, SelectiveCopyTask, TextTask
from mlx_rtx.training.curriculum import CurriculumConfig, ProgressConfig
from mlx_rtx.training.recipes import RECIPES, recipes_by_task

import pytest

TASKS = {"copy": CopyTask, "selective-copy": SelectiveCopyTask, "image": ImageTask, "text": TextTask}
NAMES = ("default", "paper")

# A - means that a task has no such setting.
TABLE = """
                    copy                selective-copy        image                 text
                    default   paper     default    paper      default    paper      default   paper
noise               4096      4096      8192       4096       -          -          -         -
payload             16        16        16         16         -          -          -         -
alphabet            16        16        16         16         -          -          -         -
data                -         -         -          -          None       None       None      None
validate_on         -         -         -          -          held-out   test       -         -
mirror              -         -         -          -          False      False      -         -
column              -         -         -          -          -          -          text      text
documents           -         -         -          -          -          -          None      None
validation          -         -         -          -          -          -          0.1       0.1
tokenizer           -         -         -          -          -          -          None      None
vocab_size          -         -         -          -          -          -          None      None
length              -         -         -          -          -          -          256       256
stateful            -         -         -          -          -          -          False     False
without_replacement -         -         -          -          -          -          False     False
characters          -         -         -          -          -          -          None      None
sample              -         -         -          -          -          -          160       160

model               recurrent recurrent recurrent  recurrent  recurrent  recurrent  recurrent recurrent
dim                 96        96        96         96         52         32         384       384
heads               6         6         6          6          4          4          6         6
block               32        32        32         32         32         32         16        16
layers              1         1         1          1          1          1          1         1
dropout             0.0       0.05      0.0        0.05       0.1        0.05       0.2       0.2
attention_dropout   0.0       0.05      0.0        0.05       0.0        0.05       0.0       0.2
activation          relu      relu      relu       relu       relu       relu       gelu      gelu
positions           block     absolute  block      absolute   axial      absolute   block     absolute
history             output    output    output     output     output     output     hidden    output
state_norm          False     False     True       False      False      False      False     False
qk_norm             False     False     True       False      False      False      False     False
tie_embeddings      True      True      False      True       False      False      True      True
embedding_std       0.02      0.02      0.3        0.02       0.02       0.02       0.02      0.02
alpha               0.5       0.5       0.5        0.5        0.5        0.5        0.5       0.5
alpha_kind          scalar    scalar    channel    scalar     scalar     scalar     scalar    scalar
train_alpha         False     True      True       True       True       True       True      True
dtype               float32   float32   float32    float32    float32    float32    float32   float32

lr_decay            none      none      none       none       cosine     none       none      none
lr_floor            0.1       0.1       0.1        0.1        0.02       0.1        0.1       0.1
collapse_patience   8         8         8          8          8          8          8         8
patience            None      None      None       None       None       None       None      None
start_noise         128       128       32         32         -          -          -         -
growth              2         2         2          2          -          -          -         -
mix                 0.0       0.0       0.2        0.0        -          -          -         -
advance_below       0.05      0.3       0.03       0.3        -          -          -         -
lr_rule             constant  paper     plateau    paper      -          -          -         -
plateau_patience    8         8         8          8          -          -          -         -
stop_loss           0.015     0.015     0.015      0.015      -          -          -         -
test_samples        256       256       256        256        None       None       None      None

optimizer           muon      adam      muon       adam       muon       adam       adam      adam
lr                  1e-3      5e-4      1e-3       5e-4       2e-3       5e-4       1e-3      1e-3
muon_lr             8e-3      None      None       None       None       None       None      None
warm_up             0         0         100        0          100        0          0         0
clip                1.0       0         1.0        0          1.0        0          1.0       1.0
skip_above          0.0       0.0       0.0        0.0        0.0        0.0        0.0       0.0
beta2               0.999     0.999     0.999      0.999      0.999      0.999      0.95      0.95
weight_decay        0.0       0.0       0.0        0.0        0.0        0.0        0.1       0.1
average             0.9       0.0       0.998      0.0        0.999      0.0        0.999     0.0

samples             20_000    60_000    900_000    1_200_000  600_000    600_000    480_000   960_000
batch               32        64        64         64         120        120        64        64
accumulate          1         1         1          1          1          1          1         1
segment             8         8         8          8          16         16         8         8
detach              None      None      None       None       None       None       None      None
validate_every      5         50        50         50         250        250        250       250
validate_samples    64        64        64         64         None       None       None      None
report_every        5         5         50         5          50         50         50        50
tracker             None      None      None       None       None       None       None      None
seed                0         0         0          0          0          0          0         0
"""


def column(task, name):
    """Return the settings of a recipe from the table."""
    at = list(TASKS).index(task) * len(NAMES) + NAMES.index(name)
    rows = [line.split() for line in TABLE.strip().splitlines()[2:] if line]
    assert {len(row) for row in rows} == {1 + len(TASKS) * len(NAMES)}
    return {setting: read(values[at]) for setting, *values in rows if values[at] != "-"}


def read(text):
    try:
        return ast.literal_eval(text)
    except ValueError:  # a name
        return text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
def test_recipes_match_the_table(task, name):
    config = RECIPES[task][name]
    found: dict[str, object] = {}
    for concern, value in asdict(config).items():
        part = value if isinstance(value, dict) else {concern: value}
        assert not found.keys() & part.keys()  # flags have one meaning
        found |= part
    assert found == column(task, name)
    assert type(config.task) is TASKS[task]
    staged = task in ("copy", "selective-copy")
    assert type(config.progress) is (CurriculumConfig if staged else ProgressConfig)


def flat(config):
    """Return all settings of a recipe except those of its task."""
    parts = asdict(config)
    del parts["task"]
    return {f"{part}.{name}": value for part, own in parts.items() if part != "model" for name, value in own.items()}


def test_the_recipes_of_retrieval():
    first = RECIPES["mqar"]["default"]
    assert first.task == MqarTask(length=256, pairs=16, alphabet=128, power=0.01, filler=True, fewer=True)
    shape, training = first.architecture, first.training
    assert (shape.dim, shape.heads, shape.block, shape.layers, shape.history) == (64, 4, 16, 1, "output")
    assert (shape.alpha, shape.alpha_kind, shape.train_alpha, shape.positions) == (0.5, "scalar", True, "block")
    assert (shape.state_norm, shape.qk_norm, shape.tie_embeddings, shape.embedding_std) == (True, False, False, 0.3)
    assert (first.optimizer.optimizer, first.optimizer.lr, first.optimizer.average) == ("muon", 2e-3, 0.998)
    assert (first.progress.lr_decay, first.progress.lr_floor) == ("cosine", 0.02)
    assert (training.batch, training.samples, training.segment) == (128, 640_000, 16)
    for task, changed in {
        "induction": {},
        "recall": {"architecture.block": 8},
        "memorization": {"architecture.block": 8, "training.samples": 256_000},
        "mixture": {"architecture.dim": 128, "training.samples": 320_000, "training.batch": 64},
    }.items():
        assert flat(RECIPES[task]["default"]) == {**flat(first), **changed}


def test_tasks_without_a_recipe_use_their_default(monkeypatch):
    monkeypatch.setitem(RECIPES, "new", {"default": RECIPES["text"]["default"]})
    by_paper = recipes_by_task("paper")
    assert by_paper["new"] is RECIPES["text"]["default"]
    assert by_paper["copy"] is RECIPES["copy"]["paper"]
    assert recipes_by_task("default")["copy"] is RECIPES["copy"]["default"]
