"""DeepFace's recognisers of the paper, with its file names and shapes and random weights.

Each is a real ONNX graph that onnxruntime runs: average pooling to 8 x 8 colours, two layers with a
rectifier between them. The same seed gives the same weights, so that a test can compute the answer.
"""

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RECOGNISERS = {
    "VGG-Face": ("vgg_face_weights.onnx", 224, 4096),
    "Facenet512": ("facenet512_weights.onnx", 160, 512),
    "ArcFace": ("arcface_weights.onnx", 112, 512),
}
"""File in DeepFace's folder, side of the input in pixels, length of the embedding."""

HIDDEN = 64


def weights(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    _, _, dimension = RECOGNISERS[name]
    rng = np.random.default_rng([seed, dimension, len(name)])
    first = rng.normal(size=(8 * 8 * 3, HIDDEN)).astype(np.float32)
    return first, rng.normal(size=(HIDDEN, dimension)).astype(np.float32)


def write_recognisers(home: Path, seed: int = 0) -> None:
    """Write the three files where DeepFace looks for them, if this is its DEEPFACE_HOME."""
    folder = home / ".deepface" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (file, side, dimension) in RECOGNISERS.items():
        kernel = side // 8
        nodes = [
            helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node(
                "AveragePool",
                ["planes"],
                ["small"],
                kernel_shape=[kernel] * 2,
                strides=[kernel] * 2,
            ),
            helper.make_node("Flatten", ["small"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["positive"]),
            helper.make_node("MatMul", ["positive", "second"], ["embedding"]),
        ]
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", side, side, 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dimension])],
            [
                numpy_helper.from_array(array, label)
                for array, label in zip(weights(name, seed), ("first", "second"), strict=True)
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        partial = folder / f".{file}.{os.getpid()}"
        onnx.save(model, str(partial))
        partial.rename(folder / file)


def embed(name: str, pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the network answers to one input (side, side, 3), in plain numpy."""
    side = RECOGNISERS[name][1]
    kernel = side // 8
    small = pixels.reshape(8, kernel, 8, kernel, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    first, second = weights(name, seed)
    return np.maximum(small.ravel() @ first, 0) @ second
