"""The guidance scale that the embedded base model needs: ``book/records/guidance.csv``.

Text alone, from noise of its own, so that nothing that is measured elsewhere decides: the suite's
prompts, painted at each scale from the same noise. A picture counts where a face is found and the
classifier sees all that the prompt asks for. The profile takes the scale with the largest share.

    python -m benchmarks.guidance
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from companion.evaluation.comparison import with_prompt_followed
from companion.evaluation.measure import measure
from companion.methods.fusion import text_only
from companion.person import load_people
from companion.studies.study import Study, run_study
from fusionlib.profiles import ROOT, Profile, load_profile
from fusionlib.profiles.loading import load_pipeline

SCALES = (1.5, 2.0, 2.5, 3.0, 4.0)


def table(
    profile: Profile, store: Path, *, scales: Sequence[float] = SCALES, noises: int = 2
) -> pd.DataFrame:
    """What is painted at each scale, as shares of pictures; `noises` of each prompt and scale."""
    pipeline = load_pipeline(profile)
    steps = profile.num_inference_steps
    study = Study(
        "guidance",
        methods=[
            text_only(pipeline, name=f"{scale:g}", num_inference_steps=steps, guidance_scale=scale)
            for scale in scales
        ],
        # Noise follows from the name: these are used nowhere else. No method sees the references.
        people=[
            replace(person, name=f"noise {number}")
            for number, person in enumerate(load_people(profile.heldout, noises, others=0))
        ],
        prompts=list(pd.read_csv(ROOT / "data" / "prompts" / "suite.csv")["prompt"]),
    )
    measured = measure(
        run_study(study, store),
        study.people,
        recognisers=[],
        detector=profile.detector,
        classifiers={"classifier": profile.classifier},
        quality=False,
        cache=store / "observations",
    )
    images = with_prompt_followed(measured.images)
    found = images["face"].astype(float)
    columns = {
        "face found": found,
        "expression as prompted": images["expression_correct"],
        "style as prompted": images["style_correct"],
        "scene as prompted": images["scene_correct"],
        "face found and all as prompted": images["followed"].where(images["face"], 0.0),
    }
    by_scale = pd.DataFrame(columns).groupby(images["method"]).mean()
    by_scale = by_scale.loc[[f"{scale:g}" for scale in scales]].rename_axis("guidance scale")
    return by_scale.map(lambda share: f"{share:.3f}")


if __name__ == "__main__":
    found = table(load_profile("embedded"), Path("build/guidance"))
    found.to_csv(ROOT / "book" / "records" / "guidance.csv")
    print(found.to_string())
    print(f"best: {found['face found and all as prompted'].astype(float).idxmax()}")
