"""Run diffusers' own tests on the Fusion classes, and compare with the classes they are made from.

A Fusion class promises to be the diffusers pipeline with one more component. This script puts that
to diffusers' fast tests of pipelines, LoRA and IP-Adapter: in every test class whose
``pipeline_class`` is, say, ``StableDiffusionPipeline``, it becomes ``FusionPipeline``, as do tests
that import the class by its name, and nothing else changes. It needs a
checkout of diffusers (its tests are in no package) and no network:

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers
    .venv/bin/pip install --target build/peers/site --no-deps parameterized requests-mock
    .venv/bin/python tests/peers/diffusers_suite.py diffusers

Only the tests are the checkout's: they run on the installed diffusers. One family of pipelines in
one mode is one process and one JSON file, and a run that is repeated makes the missing ones only.
Modes:

    stock       diffusers' own class: what passes here is what counts
    none        the Fusion class, without an adapter
    attached    the Fusion class with an adapter, and no references
    reference   each call is given one reference face at strength 1
    silent      each call is given one reference face at strength 0

What stands between a test and the class, without being a difference of the class, is worked round:

- Models that the tests load from the hub (a tokenizer, a text encoder, a pipeline) are replaced by
  tiny ones with random weights, in a hub cache of the script's own, for all modes alike. Slices of
  expected pixels then fail in the stock class, too, and do not count.
- ``ReturnNameVisitor``, with which a test reads the source of ``encode_prompt``, looks for every
  class in ``diffusers.pipelines``; for a Fusion class it is given the stock class.
- The adapter is made by the pipeline's ``__init__``, from its UNet, in all modes but ``stock`` and
  ``none``; never while a pipeline is loaded, so that an adapter which gets lost stays lost.
  ``test_components_function`` compares ``components`` with what it gave, and gives the adapter.
- A call on a pipeline whose adapter a test has taken away (``test_save_load_optional_components``)
  gets no reference; such calls are counted in the JSON files.
- Random numbers start from 0 in each test, so that pictures can be compared between modes: a
  digest of what each call returned is stored with its test.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MODES = ("stock", "none", "attached", "reference", "silent")
STRENGTHS = {"reference": 1.0, "silent": 0.0}


@dataclass(frozen=True)
class Family:
    """The tests of one diffusers pipeline."""

    stock: str
    files: tuple[str, ...]
    counted: bool = True
    """Part of the total. Inpainting came later and is reported beside it."""

    @property
    def fusion(self) -> str:
        """Name of the Fusion class."""
        return self.stock.replace("StableDiffusion", "Fusion")


SD, XL, CN = (
    f"pipelines/{name}" for name in ("stable_diffusion", "stable_diffusion_xl", "controlnet")
)
FAMILIES = {
    "sd": Family(
        "StableDiffusionPipeline",
        (
            f"{SD}/test_stable_diffusion.py",
            "pipelines/stable_diffusion_2/test_stable_diffusion.py",
            "lora/test_lora_layers_sd.py",
        ),
    ),
    "img2img": Family(
        "StableDiffusionImg2ImgPipeline", (f"{SD}/test_stable_diffusion_img2img.py",)
    ),
    "cn": Family("StableDiffusionControlNetPipeline", (f"{CN}/test_controlnet.py",)),
    "cn-img2img": Family(
        "StableDiffusionControlNetImg2ImgPipeline", (f"{CN}/test_controlnet_img2img.py",)
    ),
    "xl": Family(
        "StableDiffusionXLPipeline",
        (f"{XL}/test_stable_diffusion_xl.py", "lora/test_lora_layers_sdxl.py"),
    ),
    "xl-img2img": Family(
        "StableDiffusionXLImg2ImgPipeline", (f"{XL}/test_stable_diffusion_xl_img2img.py",)
    ),
    "xl-cn": Family("StableDiffusionXLControlNetPipeline", (f"{CN}/test_controlnet_sdxl.py",)),
    "xl-cn-img2img": Family(
        "StableDiffusionXLControlNetImg2ImgPipeline", (f"{CN}/test_controlnet_sdxl_img2img.py",)
    ),
    "inpaint": Family(
        "StableDiffusionInpaintPipeline",
        (
            f"{SD}/test_stable_diffusion_inpaint.py",
            "pipelines/stable_diffusion_2/test_stable_diffusion_inpaint.py",
        ),
        counted=False,
    ),
    "cn-inpaint": Family(
        "StableDiffusionControlNetInpaintPipeline",
        (f"{CN}/test_controlnet_inpaint.py",),
        counted=False,
    ),
    "xl-inpaint": Family(
        "StableDiffusionXLInpaintPipeline",
        (f"{XL}/test_stable_diffusion_xl_inpaint.py",),
        counted=False,
    ),
    "xl-cn-inpaint": Family(
        "StableDiffusionXLControlNetInpaintPipeline",
        (f"{CN}/test_controlnet_inpaint_sdxl.py",),
        counted=False,
    ),
}


@dataclass
class Outcome:
    """What became of one test."""

    outcome: str = "passed"
    reason: str = ""
    """First line of the error, or why the test was skipped."""
    places: list[str] = field(default_factory=list)
    """Line of the test, last line in this library, and line that raised."""
    pictures: list[str] = field(default_factory=list)
    """Digest of what each call of a pipeline returned."""
    seconds: float = 0.0
    lost: int = 0
    """Number of calls that were to get a reference and found no adapter."""


# -- one family in one mode ----------------------------------------------------------------------


def digest(result: Any) -> str:
    """A short hash of every array and picture that a pipeline returned."""
    import numpy as np
    import torch

    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().float().numpy()
        if isinstance(value, np.ndarray):
            total.update(np.ascontiguousarray(value).tobytes())
        elif hasattr(value, "tobytes"):
            total.update(value.tobytes())
        elif isinstance(value, dict):
            add(list(value.values()))
        elif isinstance(value, list | tuple):
            for entry in value:
                add(entry)

    add(result)
    return total.hexdigest()[:12]


class Recorder:
    """A pytest plugin that replaces ``pipeline_class`` and records every test."""

    def __init__(self, family: Family, mode: str, wanted: set[str] | None = None) -> None:
        import diffusers

        import fusionlib

        self.stock: Any = getattr(diffusers, family.stock)
        self.used: Any = self.stock if mode == "stock" else getattr(fusionlib, family.fusion)
        self.mode = mode
        self.wanted = wanted
        """Names of the tests to run; None means all."""
        self.tests: defaultdict[str, Outcome] = defaultdict(Outcome)
        self.current = Outcome()
        self.inside = 0
        """Depth of calls of pipelines: only what the outermost returns is recorded."""
        self.loading = False
        self._record_calls()
        if mode not in ("stock", "none"):
            self._attach_adapters()
        self._find_stock_source()

    # what is replaced

    def _record_calls(self) -> None:
        """Record what the pipeline returns, and give it a reference where the mode says so."""
        from PIL import Image

        stock_call = self.used.__call__
        face = Image.effect_noise((64, 64), 80).convert("RGB")

        @functools.wraps(stock_call)
        def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            if self.mode in STRENGTHS and kwargs.get("references") is None:
                if pipeline.adapter is None:
                    self.current.lost += 1
                else:
                    kwargs |= {"references": [face], "strengths": STRENGTHS[self.mode]}
            self.inside += 1
            try:
                result = stock_call(pipeline, *args, **kwargs)
            finally:
                self.inside -= 1
            if not self.inside:
                self.current.pictures.append(digest(result))
            return result

        self.used.__call__ = call

    def _attach_adapters(self) -> None:
        """Let ``__init__`` make an adapter where it is given none."""
        stock_init = self.used.__init__

        @functools.wraps(stock_init)
        def init(pipeline: Any, *args: Any, **kwargs: Any) -> None:
            if not self.loading and "adapter" not in kwargs and kwargs.get("unet") is not None:
                kwargs["adapter"] = new_adapter(kwargs["unet"])
            stock_init(pipeline, *args, **kwargs)

        self.used.__init__ = init
        for name in ("from_pretrained", "from_single_file", "from_pipe"):
            setattr(self.used, name, classmethod(self._while_loading(getattr(self.used, name))))

    def _while_loading(self, stock_load: Any) -> Callable[..., Any]:
        """The loading method, during which ``__init__`` makes no adapter."""

        @functools.wraps(stock_load.__func__)
        def load(cls: Any, *args: Any, **kwargs: Any) -> Any:
            before, self.loading = self.loading, True
            try:
                return stock_load.__func__(cls, *args, **kwargs)
            finally:
                self.loading = before

        return load

    def _find_stock_source(self) -> None:
        """Let the helper that reads ``encode_prompt`` find the class in ``diffusers.pipelines``."""
        from diffusers.utils.source_code_parsing_utils import ReturnNameVisitor

        stock_tree = ReturnNameVisitor.get_ast_tree

        def tree(visitor: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
            return stock_tree(visitor, self.stock if cls is self.used else cls, *args, **kwargs)

        ReturnNameVisitor.get_ast_tree = tree

    # pytest's hooks

    def pytest_pycollect_makeitem(self, collector: Any, name: str, obj: Any) -> list[Any] | None:
        """Collect the test classes of the family's pipeline, and no others."""
        if isinstance(obj, type):
            if getattr(obj, "pipeline_class", None) not in (self.stock, self.used):
                return []
            obj.pipeline_class = self.used  # type: ignore[attr-defined]
            module = sys.modules[obj.__module__]
            for imported in [key for key, value in vars(module).items() if value is self.stock]:
                setattr(module, imported, self.used)
            if self.mode not in ("stock", "none") and hasattr(obj, "test_components_function"):
                give_adapter(obj)
            return None
        return [] if getattr(collector, "cls", None) is None else None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what fails in the stock class."""
        if self.wanted is not None:
            items[:] = [item for item in items if name_of(item) in self.wanted]

    def pytest_runtest_setup(self, item: Any) -> None:
        """Start each test from the same random numbers."""
        import numpy as np
        import torch

        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.current = self.tests[name_of(item)]

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """Record how long a test took, why it failed, and where."""
        outcome = self.tests[name_of(item)]
        outcome.seconds += round(call.duration, 2)
        if call.excinfo is None:
            return
        reason = str(call.excinfo.value).strip() or call.excinfo.typename
        if call.excinfo.typename in ("Skipped", "SkipTest"):
            outcome.outcome, outcome.reason = "skipped", reason.splitlines()[0]
            return
        outcome.outcome = "failed"
        outcome.reason = f"{call.excinfo.typename}: {' '.join(reason.splitlines()[:3])}"[:300]
        places = [f"{entry.path}:{entry.lineno + 1}" for entry in call.excinfo.traceback]
        tests, ours = str(Path.cwd() / "tests"), str(REPOSITORY / "fusionlib")
        for start in (tests, ours, ""):
            outcome.places += [place for place in places if place.startswith(start)][-1:]


def name_of(item: Any) -> str:
    """Name of a test: its file below ``tests``, its class and its function."""
    return str(item.nodeid).removeprefix("tests/")


def new_adapter(unet: Any) -> Any:
    """An adapter for the UNet, without a change of the test's random numbers."""
    import torch

    from fusionlib import FusionAdapter, FusionError

    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            adapter = FusionAdapter.from_unet(unet)
        except FusionError:  # a UNet without a self-attention whose weights it could take
            adapter = FusionAdapter.from_unet(unet, init="random")
    return adapter.to(unet.dtype)


def give_adapter(tests: Any) -> None:
    """Let ``test_components_function`` name the adapter among the components that it gives."""
    stock_test, stock_components = tests.test_components_function, tests.get_dummy_components

    @functools.wraps(stock_test)
    def test_components_function(self: Any) -> None:
        def with_adapter(*args: Any, **kwargs: Any) -> dict[str, Any]:
            components = stock_components(self, *args, **kwargs)
            return components | {"adapter": new_adapter(components["unet"])}

        self.get_dummy_components = with_adapter
        stock_test(self)

    tests.test_components_function = test_components_function


def run_one(checkout: Path, out: Path, name: str, mode: str) -> None:
    """Run one family in one mode, in this process, and write what became of each test."""
    import diffusers
    import pytest

    family = FAMILIES[name]
    stock = None if mode == "stock" else read_results(out, [name], ["stock"]).get((name, "stock"))
    recorder = Recorder(family, mode, None if stock is None else set(passes(stock)))
    gc.freeze()  # the tests collect garbage often, in a process of many modules
    start = time.process_time()
    code = pytest.main(
        ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore"]
        + ["-c", os.devnull, f"--rootdir={checkout}"]
        + [str(checkout / "tests" / file) for file in family.files],
        plugins=[recorder],
    )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest could not run the tests of {name} (exit code {int(code)}).")
    result = {
        "family": name,
        "mode": mode,
        "class": f"{recorder.used.__module__}.{recorder.used.__qualname__}",
        "diffusers": diffusers.__version__,
        "seconds": round(time.process_time() - start),
        "tests": {test: asdict(outcome) for test, outcome in recorder.tests.items()},
    }
    result_path(out, name, mode).write_text(json.dumps(result, indent=1), "utf-8")


# -- the hub, in small ----------------------------------------------------------------------------


def write_hub(folder: Path) -> None:
    """Write tiny models with random weights where ``huggingface_hub`` keeps what it downloads."""
    sys.path.insert(0, str(REPOSITORY))  # ``tests`` is this repository's
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from tests.helpers.tiny import NOISE, tiny_unet, tiny_vae, write_tiny_tokenizer

    def snapshot(model: str) -> Path:
        cache = folder / f"models--{model.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs/main").write_text("0" * 40)
        path = cache / "snapshots" / ("0" * 40)
        path.mkdir(parents=True, exist_ok=True)
        return path

    torch.manual_seed(0)
    tokenizer = write_tiny_tokenizer(folder / "tokenizer", length=77)
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    text_encoder = CLIPTextModelWithProjection(config)
    tokenizer.save_pretrained(snapshot("hf-internal-testing/tiny-random-clip"))
    tokenizer.save_pretrained(snapshot("peft-internal-testing/tiny-clip-text-2"))
    text_encoder.save_pretrained(snapshot("peft-internal-testing/tiny-clip-text-2"))
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=text_encoder.text_model,
        tokenizer=tokenizer,
        unet=tiny_unet(cross_attention_dim=32),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(snapshot("hf-internal-testing/tiny-stable-diffusion-torch"))
    (folder / "complete").touch()


# -- the comparison -------------------------------------------------------------------------------


def read_results(out: Path, families: list[str], modes: list[str]) -> dict[tuple[str, str], Any]:
    """The tests of each family and mode that has a file."""
    return {
        (name, mode): json.loads(path.read_text("utf-8"))["tests"]
        for name in families
        for mode in modes
        if (path := result_path(out, name, mode)).is_file()
    }


def result_path(out: Path, name: str, mode: str) -> Path:
    """The file of one family in one mode."""
    return out / f"{name}.{mode}.json"


def report(results: dict[tuple[str, str], Any], families: list[str], modes: list[str]) -> str:
    """The table of passes, and every test that passes in the stock class only, by its error."""
    return "\n".join([*table(results, families, modes), *differences(results, families, modes)])


def table(
    results: dict[tuple[str, str], Any], families: list[str], modes: list[str]
) -> Iterator[str]:
    """Lines of a Markdown table: tests of the stock class's passes that pass, and pictures."""
    groups = (
        [name for name in families if FAMILIES[name].counted],
        [name for name in families if not FAMILIES[name].counted],
    )
    for group in filter(None, groups):
        yield "| | " + " | ".join([*group, "all", "pictures as stock"]) + " |"
        yield "|---" * (len(group) + 3) + "|"
        for mode in modes:
            cells, total, same, compared = [], 0, 0, 0
            for name in group:
                stock, tests = results.get((name, "stock")), results.get((name, mode))
                if stock is None or tests is None:
                    cells.append("-")
                    continue
                passed = [test for test in passes(stock) if is_passed(tests, test)]
                cells.append(str(len(passed)))
                total += len(passed)
                for test in passed:
                    theirs, ours = stock[test]["pictures"], tests[test]["pictures"]
                    compared += len(theirs)
                    same += sum(a == b for a, b in zip(theirs, ours, strict=False))
            yield f"| {mode} | " + " | ".join([*cells, str(total), f"{same} of {compared}"]) + " |"
        yield ""


def differences(
    results: dict[tuple[str, str], Any], families: list[str], modes: list[str]
) -> Iterator[str]:
    """Lines that list, for each mode, the tests that pass in the stock class only."""
    for mode in modes[1:] if modes[:1] == ["stock"] else modes:
        grouped: defaultdict[str, list[str]] = defaultdict(list)
        lost: Counter[str] = Counter()
        for name in families:
            stock, tests = results.get((name, "stock")), results.get((name, mode))
            for test in passes(stock or {}):
                if tests is None:
                    break
                short = f"{name}: {test.split('::', 1)[1]}"
                lost[short] += tests[test]["lost"] if test in tests else 0
                if not is_passed(tests, test):
                    entry = tests.get(test, {"outcome": "not run", "reason": "", "places": []})
                    place = Path(entry["places"][-1]).name if entry["places"] else ""
                    grouped[f"{entry['outcome']} {entry['reason']} ({place})"].append(short)
        count = sum(map(len, grouped.values()))
        yield f"## {mode}: {count} tests that pass in the stock class only"
        for reason, tests in sorted(grouped.items(), key=lambda item: -len(item[1])):
            yield f"\n{len(tests)} x {reason}"
            yield from (f"    {test}" for test in tests)
        for test, calls in sorted(lost.items()):
            if calls:
                yield f"No adapter at {calls} calls: {test}"
        yield ""


def passes(tests: dict[str, Any]) -> list[str]:
    """Names of the tests that pass."""
    return [test for test in tests if is_passed(tests, test)]


def is_passed(tests: dict[str, Any], test: str) -> bool:
    """Whether a test ran and passed."""
    return test in tests and tests[test]["outcome"] == "passed"


def main() -> None:
    """Run what is missing, and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers")
    parser.add_argument("--out", type=Path, default=Path("build/peers"), help="folder of results")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES[:4]))
    parser.add_argument("--again", action="store_true", help="run also what has results already")
    parser.add_argument("--report", action="store_true", help="run nothing, print the comparison")
    options = parser.parse_args()
    checkout, out = options.checkout.resolve(), options.out.resolve()
    if not (checkout / "tests/pipelines/test_pipelines_common.py").is_file():
        parser.error(f"{options.checkout} is no checkout of diffusers: it lacks tests/pipelines.")
    sys.path[:0] = [str(checkout), str(REPOSITORY), str(out / "site")]  # ``tests`` is diffusers'
    os.environ |= {"HF_HUB_CACHE": str(out / "hub"), "HF_HUB_OFFLINE": "1"}
    import fusionlib

    families = [name for name in options.families if FAMILIES[name].fusion in fusionlib.__all__]
    for name in options.families:
        if name not in families:
            print(f"{name}: there is no {FAMILIES[name].fusion} yet.", file=sys.stderr)
    if not options.report:
        run_missing(checkout, out, families, options.modes, options.again)
    print(report(read_results(out, families, list(MODES)), families, options.modes))


def run_missing(
    checkout: Path, out: Path, families: list[str], modes: list[str], again: bool
) -> None:
    """Run each family in each mode that has no results, in a copy of this process for each."""
    wanted = [
        (name, mode)
        for name in families
        for mode in MODES  # the stock class comes first: what fails there is not run again
        if mode in modes
        if again or not result_path(out, name, mode).is_file()
    ]
    if not wanted:
        return
    import diffusers
    import torch

    torch.set_num_threads(1)  # threads do not outlive the fork
    if checkout in Path(diffusers.__file__).parents:
        raise SystemExit("The tests must run on the installed diffusers, not on the checkout's.")
    if not (out / "hub/complete").is_file():
        in_a_copy(write_hub, out / "hub")
    os.chdir(checkout)
    import tests.pipelines.test_pipelines_common  # noqa: F401
    import torch._dynamo

    import fusionlib.pipeline_variants  # noqa: F401  # with all that takes long to import

    for name, mode in wanted:
        print(f"{name}, {mode}:", flush=True)
        in_a_copy(run_one, checkout, out, name, mode)


def in_a_copy(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a fork of this process, whose changed classes and modules go with it."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()


if __name__ == "__main__":
    main()
