"""Make `everyone.jpg`: the same eight people by every system, through the same loop.

The study is `data/studies/everyone.yaml`; what `fusionlib study run` made of it is found.
"""

import argparse
from pathlib import Path

from companion.figures.grids import study_grid
from companion.studies.declaration import load_declaration
from companion.studies.study import run_study
from fusionlib.profiles import ROOT

PROMPT = "a photo of a laughing person"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--store", default="build/studies", help="folder of the pictures")
study, missing = load_declaration(ROOT / "data" / "studies" / "everyone.yaml").available()
for name, reason in missing.items():
    print(f"left out: {name}: {reason}")
index = run_study(study, parser.parse_args().store)
grid = study_grid(index, study.people, prompts=[PROMPT])
grid.save(Path(__file__).with_name("everyone.jpg"), quality=80)
