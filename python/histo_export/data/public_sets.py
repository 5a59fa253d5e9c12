"""The public sets of H&E tiles that `--data NAME` downloads: one record each.

A checksum is the one that the publisher states (Zenodo and MedMNIST: md5). It detects damage in transit; against a
forged archive only https protects. Sizes are in bytes where a source states them so, otherwise rounded as it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from histo_export.data.split import DEFAULT_SPLIT, Split


@dataclass(frozen=True)
class Archive:
    """A file of a publisher.

    Attributes:
        file: its name, on the server and in the cache.
        folder: in the cache, which it is unpacked to.
        page: where people find it.
        url: the folder on the server that holds it; None: it can be had by hand only, from `page`.
        md5: as the publisher states it; None where none is stated.
        size: in bytes, None where no source states it.
        holds: "folders" of images, or the arrays of MedMNIST.
    """

    file: str
    folder: str
    page: str
    url: str | None
    md5: str | None
    size: int | None
    holds: Literal["folders", "medmnist"] = "folders"


@dataclass(frozen=True)
class PublicSet:
    """A set of tiles.

    Attributes:
        name: what the user types.
        archives: the tiles; the second one, where there are two, is the test split.
        classes: name → folder in the archive, in label order; of arrays the order of the labels.
        default_classes: those that are used where the user names none.
        tiles: their number.
        tile_size: side in pixels.
        mpp: µm per pixel; None where the publisher states none.
        split: where the set isn't split and the user asks for none.
        licence: as the publisher names it.
        citation: what to cite.
        about: one line for model cards.
        note: what to know before trusting a result, where the user names no groups.
    """

    name: str
    archives: tuple[Archive, ...]
    classes: Mapping[str, str]
    tiles: int
    tile_size: int
    mpp: float | None
    licence: str
    citation: str
    about: str
    note: str
    default_classes: tuple[str, ...] = ()
    split: Split = DEFAULT_SPLIT

    @property
    def size(self) -> int | None:
        """Bytes to download; None where the size of an archive is not stated."""
        sizes = [archive.size for archive in self.archives]
        return None if None in sizes else sum(filter(None, sizes))

    @property
    def crop(self) -> int:
        """The crop where the user names none: 128 pixels, or the tile where that is smaller."""
        return min(128, self.tile_size)


def _same(*names: str) -> dict[str, str]:
    """Classes whose folders have the same names."""
    return {name: name for name in names}


_KATHER_CLASSES = ("TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA", "ADIPOSE", "EMPTY")
_KATHER = Archive(
    file="Kather_texture_2016_image_tiles_5000.zip",
    folder="Kather_texture_2016_image_tiles_5000",
    page="https://zenodo.org/record/53169",
    url="https://zenodo.org/record/53169/files",
    md5="0ddbebfc56344752028fda72602aaade",
    size=246_000_000,
)


def _crc(file: str, md5: str, size: int) -> Archive:
    """An archive of Zenodo's record 1214456."""
    page = "https://zenodo.org/records/1214456"
    return Archive(f"{file}.zip", file, page, f"{page}/files", md5, size)


_CRC_VAL = _crc("CRC-VAL-HE-7K", "2fd1651b4f94ebd818ebf90ad2b6ce06", 800_276_929)
_CRC_CLASSES = _same("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_CRC_CITATION = (
    "Kather JN, Krisam J, Charoentong P, et al. Predicting survival from colorectal cancer histology slides using deep "
    "learning: a retrospective multicenter study. PLoS Medicine 16, e1002730 (2019). Data: Kather JN, Halama N, Marx "
    "A. 100,000 histological images of human colorectal cancer and healthy tissue. Zenodo (2018), "
    "https://doi.org/10.5281/zenodo.1214456"
)
_CRC_NOTE = (
    "the files name no slides, so that tiles of one slide lie in train and in validation: the validation accuracy is "
    "too high; the test (CRC-VAL-HE-7K) is of 50 other patients"
)


def _nct_crc(name: str, archive: Archive, colours: str) -> PublicSet:
    """NCT-CRC-HE-100K for training, CRC-VAL-HE-7K for the test."""
    return PublicSet(
        name=name,
        archives=(archive, _CRC_VAL),
        classes=_CRC_CLASSES,
        tiles=107_180,
        tile_size=224,
        mpp=0.5,
        split=(0.85, 0.14, 0.01),
        licence="CC BY 4.0",
        citation=_CRC_CITATION,
        about=f"NCT-CRC-HE-100K {colours} (train, val) and CRC-VAL-HE-7K (test), colorectal H&E tiles (Zenodo 1214456, "
        "CC BY 4.0)",
        note=_CRC_NOTE,
    )


_PATHMNIST_CLASSES = _same(
    *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
    *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
)


def _pathmnist(name: str, side: int, md5: str, size: int | None) -> PublicSet:
    """PathMNIST with tiles of this side; they show what the 224 pixels of NCT-CRC-HE show, at 0.5 µm."""
    page = "https://zenodo.org/records/10519652"
    archive = Archive(f"pathmnist_{side}.npz", f"pathmnist_{side}", page, f"{page}/files", md5, size, "medmnist")
    return PublicSet(
        name=name,
        archives=(archive,),
        classes=_PATHMNIST_CLASSES,
        tiles=107_180,
        tile_size=side,
        mpp=0.5 * 224 / side,
        licence="CC BY 4.0",
        citation="Yang J, Shi R, Wei D, et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D "
        "biomedical image classification. Scientific Data 10, 41 (2023), https://doi.org/10.5281/zenodo.10519652. "
        f"{_CRC_CITATION}",
        about=f"PathMNIST, {side}x{side} pixels (MedMNIST, Zenodo 10519652, CC BY 4.0)",
        note="its tiles are those of NCT-CRC-HE-100K, resized by MedMNIST, with its splits: tiles of one slide lie in "
        "train and in validation; the test is of other patients",
    )


_RECORDS = (
    PublicSet(
        name="kather2016",
        archives=(_KATHER,),
        classes={name: f"{i:02d}_{name}" for i, name in enumerate(_KATHER_CLASSES, 1)},
        # An assumption: the report that this project starts from says "six classes" and does not name them. These are
        # the six of tissue in the archive's own order, without fat and background.
        default_classes=_KATHER_CLASSES[:6],
        tiles=5_000,
        tile_size=150,
        mpp=0.495,
        split=(425, 100, 100),
        licence="CC BY 4.0",
        citation="Kather JN, Weis CA, Bianconi F, et al. Multi-class texture analysis in colorectal cancer histology. "
        "Scientific Reports 6, 27988 (2016). Data: https://doi.org/10.5281/zenodo.53169",
        about="Kather et al. 2016 colorectal H&E tiles (Zenodo 53169, CC BY 4.0)",
        note="the tiles come from ten slides and are split by tile, so one slide's tiles lie in train and in test: "
        "accuracy on new slides will be lower; --groups kather2016 splits by slide",
    ),
    _pathmnist("pathmnist", 64, "55aa9c1e0525abe5a6b9d8343a507616", None),
    _pathmnist("pathmnist-128", 128, "ac42d08fb904d92c244187169d1fd1d9", 4_257_786_775),
    _pathmnist("pathmnist-224", 224, "2c51a510bcdc9cf8ddb2af93af1eadec", 12_600_000_000),
    _nct_crc(
        "nct-crc-he",
        _crc("NCT-CRC-HE-100K", "6fd702d11df6292bc054397ae038a464", 11_690_284_003),
        "with normalised stain",
    ),
    _nct_crc(
        "nct-crc-he-nonorm",
        _crc("NCT-CRC-HE-100K-NONORM", "035777cf327776a71a05c95da6d6325f", 11_700_000_000),
        "without normalisation",
    ),
    PublicSet(
        name="crc-val-he",
        archives=(_CRC_VAL,),
        classes=_CRC_CLASSES,
        tiles=7_180,
        tile_size=224,
        mpp=0.5,
        licence="CC BY 4.0",
        citation=_CRC_CITATION,
        about="CRC-VAL-HE-7K colorectal H&E tiles (Zenodo 1214456, CC BY 4.0)",
        note="the files name no slides or patients, and the set is split by tile, so one slide's tiles lie in train "
        "and in test: accuracy on new slides will be lower; it is the usual test set of networks trained on nct-crc-he",
    ),
    PublicSet(
        name="lc25000",
        archives=(
            Archive(
                file="LC25000.zip",
                folder="LC25000",
                page="https://github.com/tampapath/lung_colon_image_set",
                url=None,  # its authors share it through a service that lets no program download it
                md5=None,
                size=1_850_000_000,
            ),
        ),
        classes=_same("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc"),
        tiles=25_000,
        tile_size=768,
        mpp=None,
        licence="no named licence; its authors let AI researchers use it in any way",
        citation="Borkowski AA, Bui MM, Thomas LB, Wilson CP, DeLand LA, Mastorides SM. Lung and Colon Cancer "
        "Histopathological Image Dataset (LC25000). arXiv:1912.12142 (2019)",
        about="LC25000 lung and colon H&E tiles (arXiv:1912.12142)",
        note="its 25,000 tiles are 1,250 pictures, each turned and flipped about 20 times, and the files do not tell "
        "which is which: turned copies of training tiles are in the test, so its accuracy tells nothing of new slides",
    ),
)

SETS: Mapping[str, PublicSet] = {record.name: record for record in _RECORDS}
"""Name → record, in the order in which they are listed."""
