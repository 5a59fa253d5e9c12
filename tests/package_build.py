"""How the package itself is compiled: with the same options, a compiler cache compiles no file twice."""

from __future__ import annotations

import os
import sysconfig

DEVELOPER = "HISTO_DEVELOPER_MODE=ON"  # as `make` installs the package

# A cache takes g++ and c++ for two compilers. scikit-build-core calls the one that Python was compiled with.
_COMPILER = os.environ.get("CXX") or str(sysconfig.get_config_var("CXX") or "c++").split()[0]
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_CXX_COMPILER={_COMPILER}", f"-D{DEVELOPER}")
