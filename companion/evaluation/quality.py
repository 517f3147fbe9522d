"""Picture quality against a reference picture, on the face alone (Section 4.2 of the paper).

The paper crops "the faces from the generated images" and says no more. Here both faces are laid on
one frame first: a turn, a shift and a scale bring the eyes to fixed places of a square of `SIDE`
pixels (those of ArcFace's template), so that like is compared with like. What such a square shows
beyond the picture's edge is black. Then:

- SSIM with the Gaussian window of its authors (Wang et al. 2004: sigma 1.5, K1 = 0.01, K2 = 0.03),
  the mean over the three channels;
- PSNR over all pixels and channels, in floating point;
- and, under a name that says what it is, the value that 8-bit arithmetic gives in its place.

The data range is 255 throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SIDE = 112
"""Pixels of the side of a face region."""

EYES = ((38.2946, 51.6963), (73.5318, 51.5014))
"""Where the eyes are in it, left and right: ArcFace's template (Deng et al. 2019)."""


def face_region(image: Image.Image, eyes: ArrayLike) -> NDArray[np.uint8]:
    """Lay a face on the frame in which faces are compared.

    Args:
        image: RGB.
        eyes: Array ``(2, 2)``: x and y of the eye on the picture's left and of that on its right.

    Returns:
        ``(SIDE, SIDE, 3)``, 8-bit RGB.
    """
    left, right = (complex(*point) for point in np.asarray(eyes, dtype=np.float64))
    frame_left, frame_right = (complex(*point) for point in EYES)
    turn = (right - left) / (frame_right - frame_left)  # from the frame to the picture
    middle = complex(0.5, 0.5)  # of a pixel, from its corner
    if abs(turn) >= 2:  # average pixels that would be skipped
        step = int(abs(turn))
        image = image.reduce(step)
        left, turn = (left + middle) / step - middle, turn / step
    shift = left + middle - turn * (frame_left + middle)  # Pillow counts from corners
    matrix = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    region = image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(region)


def ssim(image: ArrayLike, reference: ArrayLike) -> float:
    """Structural similarity of two 8-bit RGB pictures of one size, from -1 to 1 (equal)."""
    return float(
        structural_similarity(
            np.asarray(reference),
            np.asarray(image),
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def psnr(image: ArrayLike, reference: ArrayLike) -> float:
    """Peak signal-to-noise ratio of two 8-bit RGB pictures of one size, in dB.

    Computed in floating point by scikit-image; differences of 8-bit numbers would wrap around.
    """
    with np.errstate(divide="ignore"):  # equal pictures: infinite
        return float(
            peak_signal_noise_ratio(np.asarray(reference), np.asarray(image), data_range=255)
        )


def psnr_8bit_overflow(image: ArrayLike, reference: ArrayLike) -> float:
    """What "PSNR" becomes if differences and their squares stay in 8 bits and wrap modulo 256.

    The value is no PSNR and cannot be compared with one: where differences are spread evenly, the
    mean of d*d mod 256 is 105.5 and the result 27.90 dB, and faces of different people come near
    that. Squares of differences below 16 do not wrap, so the order of values still says which
    pictures are more alike.
    """
    difference = np.asarray(reference, dtype=np.uint8) - np.asarray(image, dtype=np.uint8)
    error = float((difference * difference).mean())  # uint8 times uint8 is uint8
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


_CHEEKS = ((24, 62, 44, 82), (68, 62, 88, 82))
"""Left, top, right and bottom of the cheeks in a face region, below the eyes."""


def skin_difference(image: ArrayLike, reference: ArrayLike) -> float:
    """How far apart the colours of the cheeks are in two face regions, as CIEDE2000.

    1 is about the least difference that people see side by side. Light counts as colour here: it
    differs between pictures for every method alike.

    Args:
        image: Face region of `face_region`, 8-bit RGB.
        reference: The same of another picture.
    """
    colors = []
    for region in (image, reference):
        lab = rgb2lab(np.asarray(region, dtype=np.uint8))
        cheeks = [lab[top:bottom, left:right] for left, top, right, bottom in _CHEEKS]
        colors.append(np.median(np.concatenate(cheeks, axis=1).reshape(-1, 3), axis=0))
    return float(deltaE_ciede2000(*colors))


def reconstruct(pipeline: Any, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Send pictures through a pipeline's autoencoder and back: what its latents can hold.

    Args:
        pipeline: A Stable Diffusion pipeline.
        images: RGB, all of one size.

    Returns:
        The reconstructions, in order.
    """
    import torch

    with torch.no_grad():
        pixels = pipeline.image_processor.preprocess(list(images))
        vae = pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        decoded = vae.decode(latents).sample
    restored: list[Image.Image] = pipeline.image_processor.postprocess(decoded)
    return restored
