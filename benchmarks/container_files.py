"""The same tiles in every kind of file that holds tiles, written by the programs and libraries that people use."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Tiles = dict[str, npt.NDArray[np.uint8]]
"""Name → pixels, in the order of a folder."""


def noise(names: Sequence[str], side: int) -> Tiles:
    """Tiles of noise, another one for each name."""
    return {
        name: np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8) for i, name in enumerate(names)
    }


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_folder(path: Path, tiles: Tiles) -> Path:
    for name, pixels in tiles.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(pixels))
    return path


def write_zip(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], top: str = "./") -> Path:
    with tarfile.open(path, "w", encoding="utf-8") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, tiles: Tiles) -> Path:
    """As WebDataset: 000001.png and 000001.cls with the name of the class."""
    files = {}
    for name, pixels in tiles.items():
        files[name] = png(pixels)
        files[name.removesuffix(".png") + ".cls"] = name.split("/")[0].encode()
    return write_tar(path, files, "")


def write_parquet(path: Path, tiles: Tiles, classes: Sequence[str] = (), rows: int = 4) -> Path:
    """As `datasets` does: struct of bytes and path, ClassLabel in the metadata of the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": [{"bytes": png(pixels), "path": name} for name, pixels in tiles.items()]}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields, features = [("image", kind)], {"image": {"_type": "Image"}}
    if classes:
        columns["label"] = [classes.index(name.split("/")[0]) for name in tiles]  # type: ignore[misc]
        fields.append(("label", pa.int64()))
        features["label"] = {"names": list(classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns, pa.schema(fields, metadata)), path, row_group_size=rows)
    return path


def write_hdf5(path: Path, tiles: Tiles) -> Path:
    """As CLAM: chunks of one tile."""
    import h5py

    stack = np.stack(list(tiles.values()))
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=stack, maxshape=(None, *stack.shape[1:]), chunks=(1, *stack.shape[1:]))
    return path


def write_npz(path: Path, tiles: Tiles, classes: Sequence[str] = (), compressed: bool = True) -> Path:
    """As MedMNIST, which has three splits; here one without a split."""
    arrays = {"images": np.stack(list(tiles.values()))}
    if classes:
        arrays["labels"] = np.array([[classes.index(name.split("/")[0])] for name in tiles], np.uint8)
        path.with_name(f"{path.stem}_classes.txt").write_text("\n".join(classes), encoding="utf-8")
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path
