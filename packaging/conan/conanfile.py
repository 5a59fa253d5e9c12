"""The C++ library as a Conan package, from this clone: conan create packaging/conan"""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy

ROOT = Path(__file__).parents[2]
"""The clone. Only set_version() and export_sources() use it, which run where the recipe lies in it."""


class Histo(ConanFile):
    name = "histo"
    description = "ResNet34 histology tile classifiers: engine, queue, fused pooling head, for C++ and C"
    license = "Apache-2.0"
    topics = ("histology", "inference", "resnet")
    package_type = "library"
    settings = ("os", "arch", "compiler", "build_type")
    options = {"shared": [True, False], "x86_kernels": ["ON", "avx2", "OFF"], "tools": [True, False]}  # noqa: RUF012
    default_options = {"shared": False, "x86_kernels": "ON", "tools": False}  # noqa: RUF012

    def set_version(self) -> None:
        text = (ROOT / "python/histo_export/__init__.py").read_text(encoding="utf-8")
        self.version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]

    def export_sources(self) -> None:
        for pattern in ("CMakeLists.txt", "LICENSE", "cpp/*", "python/histo_export/__init__.py"):
            copy(self, pattern, ROOT, self.export_sources_folder)

    def validate(self) -> None:
        check_min_cppstd(self, 20)

    def layout(self) -> None:
        cmake_layout(self)

    def generate(self) -> None:
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables |= {
            "HISTO_BUILD_STATIC": not self.options.shared,
            "HISTO_BUILD_SHARED": bool(self.options.shared),
            "HISTO_BUILD_TOOLS": bool(self.options.tools),
            "HISTO_X86_KERNELS": str(self.options.x86_kernels),
        }
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self) -> None:
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self) -> None:
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, Path(self.package_folder) / "licenses")

    def package_info(self) -> None:
        # The library's own CMake package knows its targets best.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["lib/cmake/histo"]
        self.cpp_info.libs = ["histo"]
        if not self.options.shared:
            self.cpp_info.defines = ["HISTO_STATIC"]
        if self.settings.os in ("Linux", "FreeBSD"):
            self.cpp_info.system_libs = ["pthread", "m"]
        elif self.settings.os == "Windows":
            self.cpp_info.system_libs = ["synchronization"]
