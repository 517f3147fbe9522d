"""A dense mask against skipped blocks, for one to four identities side by side.

    python benchmarks/attention.py --side 64 --device cuda --dtype bfloat16

All backends run in turn within each repeat, so that whatever else the machine does falls on all of
them. Printed are the medians in milliseconds and the dense median divided by the others.
"""

import argparse
import statistics
import time

import torch

from fusionlib import fused_attention, group_queries


def columns(identities: int, side: int) -> torch.Tensor:
    """One upright strip for each identity, two thirds of it mask and the rest background."""
    masks = torch.zeros(identities, side, side, dtype=torch.bool)
    for i, mask in enumerate(masks):
        left, right = i * side // identities, (i + 1) * side // identities
        mask[side // 6 : -(side // 6) or None, left:right] = True
    return masks


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64, help="positions per side of the layer")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backends", nargs="+", default=["dense", "grouped"])
    options = parser.parse_args()
    kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    positions = options.side**2

    def tensor(tokens: int) -> torch.Tensor:
        return torch.randn(options.batch, options.heads, tokens, options.head_dim, **kind)

    print("identities", *(f"{name} ms" for name in options.backends), "dense / other", sep="\t")
    for identities in range(1, 5):
        groups = group_queries(
            columns(identities, options.side), range(identities), (options.side, options.side)
        ).to(options.device)
        query, text = tensor(positions), tensor(77)
        faces = [tensor(positions) for _ in range(identities)]
        times: dict[str, list[float]] = {name: [] for name in options.backends}
        with torch.inference_mode():
            for repeat in range(options.repeats + 1):
                for name in options.backends:
                    start = time.perf_counter()
                    fused_attention(query, text, text, faces, faces, mask=groups, backend=name)
                    if options.device == "cuda":
                        torch.cuda.synchronize()
                    if repeat:  # the first round warms up, and compiles
                        times[name].append(1000 * (time.perf_counter() - start))
        medians = {name: statistics.median(measured) for name, measured in times.items()}
        first = medians[options.backends[0]]
        print(
            identities,
            *(f"{median:.1f}" for median in medians.values()),
            *(f"{first / median:.2f}" for median in list(medians.values())[1:]),
            sep="\t",
        )


if __name__ == "__main__":
    main()
