"""How long a picture of a person takes, and how well a recogniser tells the people apart.

    python benchmarks/people.py --people 60 --views 4

Prints seconds per picture (drawn, reduced, styled; without loading), how many faces dlib finds,
and over all pairs of pictures the area under the ROC curve and the mean cosine distances of the
same person and of different people. Pictures are photos here: the styles are another question.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
from PIL import Image


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--first", type=int, default=0, help="number of the first person")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    from scipy.stats import rankdata

    from companion.evaluation.identity import cosine_distance, faces_found
    from companion.faces.recognisers import embed_faces
    from companion.people.appearance import sample_person
    from companion.people.render import render_views
    from companion.people.view import sample_view

    numbers = range(options.first, options.first + options.people)

    def render(number: int) -> list[Image.Image]:
        views = [sample_view(options.seed, number, v) for v in range(options.views)]
        person = sample_person(options.seed, number)
        photos = [replace(view, style="photo") for view in views]
        return [Image.fromarray(p.image) for p in render_views(person, photos, options.size)]

    render(options.first)  # loads the models
    start = time.process_time()
    pictures = [picture for number in numbers for picture in render(number)]
    each = (time.process_time() - start) / len(pictures)
    print(f"{1000 * each:.0f} ms of processor time for each of {len(pictures)} pictures")

    embeddings = embed_faces(pictures, "Dlib")
    found, total = faces_found(embeddings)
    print(f"faces found: {found} of {total}")
    who = np.repeat(np.arange(options.people), options.views)
    a, b = np.triu_indices(len(who), 1)
    distance = cosine_distance(embeddings[a], embeddings[b])
    seen = ~np.isnan(distance)
    distance, same = distance[seen], (who[a] == who[b])[seen]
    positives, negatives = int(same.sum()), int((~same).sum())
    ranks = rankdata(-distance)
    auc = (ranks[same].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    print(
        f"Dlib AUC {auc:.4f}; cosine distance of the same person {distance[same].mean():.3f}, "
        f"of different people {distance[~same].mean():.3f}"
    )


if __name__ == "__main__":
    main()
