"""K_f and V_f of references, computed once, saved, and checked by their makers' fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from fusionlib.errors import FusionError
from fusionlib.support.files import write_atomically

LayerKeysValues = Mapping[str, tuple[Tensor, Tensor]]
"""K_f and V_f ``(batch or 1, N_f, inner_dim)`` of one reference, by the layer's name."""


_FORMAT = {"format": "fusionlib.ReferenceCache", "version": "1"}


@dataclass(frozen=True, eq=False)
class ReferenceCache(Sequence[LayerKeysValues]):
    """K_f and V_f of several references: all that generation needs from them, computed once.

    A sequence of references; each is a dictionary from a layer's name to its K_f and V_f, as
    ``FusionAdapter.conditioned`` takes them. It belongs to the adapter and the UNet that made it,
    with the LoRA weights that the UNet had: with others it is refused, and the references have to
    be encoded again.

    Attributes:
        references: K_f and V_f ``(batch or 1, N_f, inner_dim)`` of each layer, for each reference.
            A batch of 1 serves every image; otherwise each image of a batch has its own.
        fingerprint: Sample of the weights of the adapter that made it
            (``FusionAdapter.fingerprint``), which differs for another adapter; None if unknown.
        unet_fingerprint: Sample of the UNet's weights, with LoRA as it was set then
            (``fingerprint_of_unet``); None if unknown.

    Example:
        Two pictures of a person, encoded and written to a file:

        >>> from PIL import Image
        >>> from fusionlib import FusionPipeline, ReferenceCache
        >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
        >>> pictures = [Image.open(f"data/heldout/0000_{view}.jpg") for view in (0, 1)]
        >>> pipeline.encode_references(pictures).save("build/person.safetensors")

        The pictures are not needed any more:

        >>> faces = ReferenceCache.load("build/person.safetensors")
        >>> len(faces), faces.batch_size  # two references, which serve every image
        (2, 1)
        >>> image = pipeline("a laughing person", references=faces, num_inference_steps=2).images[0]
        >>> key, value = faces[0]["mid_block.attentions.0.transformer_blocks.0.attn2"]
        >>> key.shape, value.shape  # K_f and V_f of the first picture in one of the layers
        (torch.Size([1, 16, 160]), torch.Size([1, 16, 160]))
    """

    references: tuple[LayerKeysValues, ...]
    fingerprint: Tensor | None = None
    unet_fingerprint: Tensor | None = None

    def __len__(self) -> int:
        """The number of references."""
        return len(self.references)

    @overload
    def __getitem__(self, index: int) -> LayerKeysValues: ...
    @overload
    def __getitem__(self, index: slice) -> ReferenceCache: ...
    def __getitem__(self, index: int | slice) -> LayerKeysValues | ReferenceCache:
        """Return one reference, or a cache of some of them."""
        if isinstance(index, slice):
            return replace(self, references=self.references[index])
        return self.references[index]

    def __iter__(self) -> Iterator[LayerKeysValues]:
        """Each reference in turn."""
        return iter(self.references)

    def __repr__(self) -> str:
        """Describe the cache without its numbers."""
        layers = len(self.references[0]) if self.references else 0
        return (
            f"ReferenceCache({len(self)} reference{'' if len(self) == 1 else 's'}, "
            f"batch_size={self.batch_size}, {layers} layers)"
        )

    @property
    def batch_size(self) -> int:
        """Number of images with references of their own; 1 if the references serve every image."""
        return max(
            (key.shape[0] for reference in self.references for key, _ in reference.values()),
            default=1,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ReferenceCache:
        """Move the references to another device or another floating-point type.

        Args:
            device: Device for the tensors; None leaves them where they are.
            dtype: Type of the tensors, ``torch.float16`` for example; None keeps it.

        Returns:
            A cache of the same shapes.
        """
        return self._map(lambda tensor: tensor.to(device, dtype))

    def repeat_interleave(self, repeats: int) -> ReferenceCache:
        """Repeat each image's references, as ``num_images_per_prompt`` repeats prompts.

        Args:
            repeats: Number of copies, 1 or more.

        Returns:
            A cache of K_f and V_f ``(batch * repeats, N_f, inner_dim)``; references that serve
            every image stay as they are.

        Raises:
            FusionError: If ``repeats`` is not a positive number.
        """
        if not isinstance(repeats, int) or repeats < 1:
            raise FusionError(f"repeats must be a positive number, not {repeats!r}.")
        return self._map(lambda t: t if t.shape[0] == 1 else t.repeat_interleave(repeats, 0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ReferenceCache:
        changed = tuple(
            {name: (change(key), change(value)) for name, (key, value) in reference.items()}
            for reference in self.references
        )
        return replace(self, references=changed)

    @staticmethod
    def join(caches: Sequence[ReferenceCache]) -> ReferenceCache:
        """Show the references of several caches together, as of the people of a group.

        Args:
            caches: The caches, in the order of their references.

        Returns:
            A cache of the references of all.

        Raises:
            FusionError: If there is none, or they were made by different adapters or UNets.

        Example:
            >>> from PIL import Image
            >>> from fusionlib import FusionPipeline, ReferenceCache
            >>> pipeline = FusionPipeline.from_pretrained("data/models/embedded")
            >>> people = [
            ...     pipeline.encode_references(Image.open(f"data/heldout/{name}_0.jpg"))
            ...     for name in ("0000", "0001")
            ... ]
            >>> ReferenceCache.join(people)
            ReferenceCache(2 references, batch_size=1, 7 layers)
        """
        if not caches:
            raise FusionError("caches must hold one cache at least.")
        _check_makers(caches)
        return replace(caches[0], references=tuple(each for cache in caches for each in cache))

    @staticmethod
    def stack(caches: Sequence[ReferenceCache]) -> ReferenceCache:
        """Join caches of equally many references, one for each image of a batch.

        Args:
            caches: The caches, in the order of the images.

        Returns:
            A cache of as many references as each holds, its K_f and V_f
            ``(images, N_f, inner_dim)``.

        Raises:
            FusionError: If the caches hold different numbers of references, or references of
                different adapters or sizes.
        """
        counts = [len(cache) for cache in caches]
        if len(set(counts)) != 1:
            raise FusionError(
                "caches must hold equally many references, one cache for each image of a batch, "
                f"not {', '.join(map(str, counts)) or 'none'}."
            )
        for index, cache in enumerate(caches):
            for first, reference in zip(caches[0], cache, strict=True):
                if _shapes(first) != _shapes(reference):
                    raise FusionError(
                        f"caches[{index}] holds other layers or sizes than caches[0]: encode the "
                        "references with the same adapter, at the same height and width."
                    )
        _check_makers(caches)
        return ReferenceCache(
            tuple(
                {
                    name: (
                        torch.cat([reference[name][0] for reference in references]),
                        torch.cat([reference[name][1] for reference in references]),
                    )
                    for name in references[0]
                }
                for references in zip(*caches, strict=True)
            ),
            caches[0].fingerprint,
            caches[0].unet_fingerprint,
        )

    def save(self, path: str | Path) -> None:
        """Write the cache to one safetensors file; a reader sees the whole file or none.

        Args:
            path: The file; missing parent folders are made.

        Raises:
            FusionError: If the file cannot be written.
        """
        path = Path(path)
        tensors = {
            f"{index}.{name}.{part}": tensor
            for index, reference in enumerate(self.references)
            for name, pair in reference.items()
            for part, tensor in zip(("key", "value"), pair, strict=True)
        }
        for name in ("fingerprint", "unet_fingerprint"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        # Copies: references may share memory, which the format does not allow.
        tensors = {
            name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()
        }
        content = to_safetensors(tensors, _FORMAT | {"references": str(len(self))})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: file.write(content))
        except OSError as error:
            raise FusionError(
                f"path {path} cannot be written ({error.strerror}): choose another file."
            ) from error

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> ReferenceCache:
        """Read what ``save`` wrote.

        Args:
            path: The file.
            device: Device for the tensors.

        Returns:
            The cache, in the floating-point type in which it was saved.

        Raises:
            FusionError: If there is no such file, or it is no whole reference cache.
        """
        try:
            with safe_open(str(path), "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise FusionError(
                f"path {path} cannot be read as a reference cache ({error}): give a file that "
                "ReferenceCache.save wrote."
            ) from error
        if {name: metadata.get(name) for name in _FORMAT} != _FORMAT:
            raise FusionError(
                f"path {path} is no reference cache that this version of fusionlib can read: give "
                "a file that ReferenceCache.save wrote, or encode the references again."
            )
        try:
            references = _read_references(tensors, int(metadata["references"]))
        except (KeyError, ValueError) as error:
            raise FusionError(f"path {path} is damaged: encode the references again.") from error
        known = {
            name: tensors[name].cpu()
            for name in ("fingerprint", "unet_fingerprint")
            if name in tensors
        }
        return ReferenceCache(references, **known)


def _read_references(tensors: Mapping[str, Tensor], count: int) -> tuple[LayerKeysValues, ...]:
    """K_f and V_f of each reference from a file's tensors; an error if the file is not whole."""
    references: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    for entry, key in tensors.items():
        if entry.endswith(".key"):
            index, layer = entry.removesuffix(".key").split(".", 1)
            value = tensors[f"{index}.{layer}.value"]
            sound = key.ndim == 3 and key.shape == value.shape
            sound = sound and key.is_floating_point() and value.is_floating_point()
            if not (sound and key.isfinite().all() and value.isfinite().all()):
                raise ValueError(entry)
            references.setdefault(int(index), {})[layer] = (key, value)
    layers = {frozenset(reference) for reference in references.values()}
    if sorted(references) != list(range(len(references))) or len(layers) > 1:
        raise ValueError("a reference or a layer is missing")
    if len(references) != count:
        raise ValueError("the number of references differs")
    return tuple(references[index] for index in range(count))


def _check_makers(caches: Sequence[ReferenceCache]) -> None:
    """Raise a ``FusionError`` unless one adapter over one UNet made all caches."""
    for index, cache in enumerate(caches):
        if not same_fingerprint(caches[0].fingerprint, cache.fingerprint):
            raise FusionError(f"caches[{index}] was made by another adapter than caches[0].")
        if not same_fingerprint(caches[0].unet_fingerprint, cache.unet_fingerprint):
            raise FusionError(
                f"caches[{index}] was made by other weights of the unet, or with another LoRA, "
                "than caches[0]."
            )


def same_fingerprint(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two fingerprints belong to the same weights, in any precision; None fits all."""
    if one is None or other is None:
        return True
    if one.shape != other.shape:
        return False
    # Layer by layer, for a LoRA may change only a few. bfloat16 rounds by at most 0.4%; float16
    # rounds numbers near 0 by more.
    size = one.norm(dim=1)
    return bool(((one - other).norm(dim=1) <= 0.01 * size + 0.001 * size.mean()).all())


@torch.no_grad()
def fingerprint_of_unet(unet: Any) -> Tensor | None:
    """Take a small sample of a UNet's effective weights, by which a ``ReferenceCache`` checks them.

    LoRA weights count as they are set: loading, unloading or rescaling one changes the fingerprint;
    fusing it into the weights does not.

    Args:
        unet: A ``UNet2DConditionModel``, compiled or not.

    Returns:
        ``(layers, 8)`` in float32 on the CPU; None while the weights are offloaded or quantised.
    """
    rows = []
    for name, module in getattr(unet, "_orig_mod", unet).named_modules():
        weight = getattr(module, "weight", None)
        inside_lora = ".lora_" in name or name.endswith(".base_layer")
        # An IP-Adapter takes no part in the references' pass.
        apart = inside_lora or ".processor." in name or name.startswith("encoder_hid_proj.")
        if apart or not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        quantised = type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point()
        if weight.is_meta or quantised:
            return None
        rows.append(_with_lora(module, weight[0].flatten()[:8]))
    return sample_of_weights(rows)


def sample_of_weights(rows: Sequence[Tensor]) -> Tensor:
    """Collect a few numbers of each weight, in two kernels and one copy from a GPU.

    Args:
        rows: Up to 8 numbers of each weight.

    Returns:
        ``(rows, 8)`` in float32 on the CPU; short rows are filled with 0.
    """
    if any(row.dtype.itemsize == 1 for row in rows):  # float8, which torch joins to no other type
        rows = [row.float() for row in rows]
    cpu = torch.device("cpu")  # a user may have set another default
    lengths = torch.tensor([len(row) for row in rows], device=cpu)
    table = torch.zeros(len(rows), 8, dtype=torch.float32, device=cpu)
    there = torch.arange(8, device=cpu) < lengths[:, None]
    table[there] = torch.cat(list(rows)).float().cpu()
    return table


def _with_lora(layer: Any, row: Tensor) -> Tensor:
    """The first numbers of a layer's weight, with what PEFT's LoRA layers now add to them."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return row
    for name in layer.active_adapters:
        if name in layer.lora_A and name not in layer.merged_adapters:
            down, up = layer.lora_A[name].weight.flatten(1), layer.lora_B[name].weight.flatten(1)
            row = row.float() + layer.scaling[name] * (up[0].float() @ down[:, : len(row)].float())
    return row


def _shapes(reference: LayerKeysValues) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The shapes of each layer's K_f and V_f without the batch."""
    return {name: (key.shape[1:], value.shape[1:]) for name, (key, value) in reference.items()}


def joined_bytes(references: Sequence[LayerKeysValues], batch_size: int | None) -> int:
    """Bytes of K_f and V_f of all layers, once for each sample."""
    return sum(
        max(tensor.shape[0], batch_size or 1) * tensor[0].numel() * tensor.element_size()
        for reference in references
        for pair in reference.values()
        for tensor in pair
    )
