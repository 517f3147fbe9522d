"""insightface's ONNX files with its input and output names and shapes, small enough for a test.

The detector finds a face where the picture is bright: its score is the brightness of each 8 x 8
pixels of the frame, its five points lie about that place as on the template. The recogniser is
average pooling and a random matrix.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from companion.faces.arcface import TEMPLATE

POINTS = ((TEMPLATE - TEMPLATE.mean(0)) / 8).astype(np.float32)
"""``(5, 2)``: where the detector sees a face's points, from its middle, in strides of the frame."""

DETECTOR_OUTPUTS = ("448", "471", "494", "451", "474", "497", "454", "477", "500")
"""det_10g's: scores at strides 8, 16 and 32, then boxes, then points."""


def _save(path: Path, nodes, inputs, outputs, constants) -> None:  # type: ignore[no-untyped-def]
    values = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, values)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def write_detector(path: Path, side: int | str = "?") -> None:
    nodes, constants = (
        [],
        {
            "twice": np.array([1.0, 0.5], np.float32),
            "none": np.float32(0),
            "half": np.float32(0.5),
            "column": np.array([-1, 1]),
            "box": np.array([5, 5, 5, 5], np.float32),
            "points": POINTS.reshape(10),
        },
    )

    def node(kind, *names, **attributes):  # type: ignore[no-untyped-def]
        nodes.append(helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes))

    node("ReduceMean", "input.1", "grey", axes=[1])
    for level, stride in enumerate((8, 16, 32)):
        score, box, points = (DETECTOR_OUTPUTS[level + 3 * kind] for kind in range(3))
        kernel = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        node("AveragePool", "grey", f"pooled{stride}", **kernel)
        node("Reshape", f"pooled{stride}", "column", f"flat{stride}")
        node("Mul", f"flat{stride}", "half", f"halved{stride}")
        node("Add", f"halved{stride}", "half", f"bright{stride}")
        node("Mul", f"bright{stride}", "twice", f"anchors{stride}")
        if stride == 8:
            node("Reshape", f"anchors{stride}", "column", score)
        else:  # only the finest level sees anything
            node("Reshape", f"anchors{stride}", "column", f"unseen{stride}")
            node("Mul", f"unseen{stride}", "none", score)
        node("Mul", score, "none", f"zeros{stride}")
        node("Add", f"zeros{stride}", "box", box)
        node("Add", f"zeros{stride}", "points", points)
    widths = (1, 1, 1, 4, 4, 4, 10, 10, 10)
    _save(
        path,
        nodes,
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, side, side])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])
            for name, width in zip(DETECTOR_OUTPUTS, widths, strict=True)
        ],
        constants,
    )


def recogniser_matrix(seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 512])
    return (rng.normal(size=(3 * 7 * 7, 512)) / 12).astype(np.float32)


def write_recogniser(path: Path, seed: int = 0, output: str = "683") -> None:
    kernel = {"kernel_shape": [16, 16], "strides": [16, 16]}
    _save(
        path,
        [
            helper.make_node("AveragePool", ["input.1"], ["small"], **kernel),
            helper.make_node("Flatten", ["small"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "matrix"], [output]),
        ],
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [None, 3, 112, 112])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 512])],
        {"matrix": recogniser_matrix(seed)},
    )


def write_packs(root: Path) -> Path:
    """``buffalo_l/`` and ``antelopev2/`` (with Arc2Face's ``arcface.onnx``), file by file."""
    write_detector(root / "buffalo_l" / "det_10g.onnx")
    write_recogniser(root / "buffalo_l" / "w600k_r50.onnx", 0)
    write_detector(root / "antelopev2" / "scrfd_10g_bnkps.onnx")
    write_recogniser(root / "antelopev2" / "glintr100.onnx", 1, "1333")
    write_recogniser(root / "antelopev2" / "arcface.onnx", 2, "1333")
    return root
