"""What `conan create` builds and runs against the package that it made."""

from pathlib import Path

from conan import ConanFile
from conan.tools.build import can_run
from conan.tools.cmake import CMake, cmake_layout


class HistoTest(ConanFile):
    settings = ("os", "arch", "compiler", "build_type")
    generators = ("CMakeToolchain", "CMakeDeps", "VirtualRunEnv")

    def requirements(self) -> None:
        self.requires(self.tested_reference_str)

    def layout(self) -> None:
        cmake_layout(self)

    def build(self) -> None:
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def test(self) -> None:
        if can_run(self):
            self.run(str(Path(self.cpp.build.bindir) / "uses_histo"), env="conanrun")
