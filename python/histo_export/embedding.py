"""The C++ library that came with this package: headers, libraries, CMake and pkg-config files, histo-run."""

from pathlib import Path

import histo_export
from histo_export.errors import HistoError


def cmake_prefix() -> Path:
    """The folder to put into CMake's `CMAKE_PREFIX_PATH`; `lib/pkgconfig` below it is for `PKG_CONFIG_PATH`.

    Raises:
        HistoError: the package is used from its sources (by `PYTHONPATH`) and was not built.
    """
    # An editable install spreads the package over two folders, and what was compiled is not among the sources.
    for folder in histo_export.__path__:
        prefix = Path(folder, "sdk")
        if (prefix / "lib/cmake/histo/histoConfig.cmake").is_file():
            return prefix.resolve()
    raise HistoError("histo_export", "was not installed with its C++ library", "Install it: pip install .")
