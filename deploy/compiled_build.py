"""Compiles the arithmetic of decisions and of the modelled fleet with mypyc, on request.

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=true pip install .

It takes a C compiler. Results are the same to the last bit (tests/project/test_compiled.py).
"""

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # the test compiles without a build of a wheel
    BuildHookInterface = object

# Where processor time pays for it: what a router asks for each candidate, and the accelerators of a
# backtest. None of these is a record: msgspec does not know compiled classes.
MODULES = (
    "policies/scoring/estimate.py",
    "policies/hardware/accelerator.py",
    "policies/hardware/answering.py",
    "policies/hardware/device_time.py",
    "policies/hardware/iteration.py",
    "policies/hardware/migration.py",
    "policies/hardware/prefix_cache.py",
    "policies/hardware/prompts.py",
    "policies/hardware/replica.py",
    "policies/hardware/replica_choice.py",
    "policies/hardware/replica_load.py",
    "policies/hardware/roofline.py",
    "policies/hardware/variant_homes.py",
)


def compile_modules(root: Path, to: Path, opt_level: str = "3") -> list[Path]:
    """Compile ``MODULES`` of the tree at ``root`` and return the libraries, under ``to``.

    Changes the working directory and the environment of this process. Results don't depend on
    ``opt_level``, the C compiler's: nothing allows it to calculate otherwise than it is told.

    Raises:
        SystemExit: mypy finds an error, or there is no C compiler.
    """
    from mypyc.build import mypycify  # noqa: PLC0415 - of the build alone
    from setuptools import Distribution  # noqa: PLC0415 - likewise

    # Where a processor multiplies and adds at once, that rounds otherwise than Python does.
    os.environ["CFLAGS"] = os.environ.get("CFLAGS", "") + " -ffp-contract=off"
    os.chdir(root)
    # Types of libraries that are not here don't matter to the compiled modules.
    options = ["--config-file=", "--ignore-missing-imports"]
    extensions = mypycify(
        [*options, *MODULES],
        target_dir=str(to / "c"),
        group_name="shunter_compiled",
        opt_level=opt_level,
    )
    build = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    build.build_lib, build.build_temp = str(to / "lib"), str(to / "objects")
    build.ensure_finalized()
    build.run()
    return sorted((to / "lib").rglob("*.so"))


class CompiledHook(BuildHookInterface):
    """Adds the libraries to a wheel, which is then of this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version, build_data):
        """Compile, before the wheel is put together."""
        if version != "standard":
            raise SystemExit("an editable installation can't be compiled: install without -e")
        self.built = TemporaryDirectory()
        to = Path(self.built.name)
        for library in compile_modules(Path(self.root), to):
            build_data["force_include"][str(library)] = str(library.relative_to(to / "lib"))
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version, build_data, artifact_path):
        """Remove what was compiled."""
        self.built.cleanup()


if __name__ == "__main__":
    # compiled_build.py TREE [LEVEL]: compiles a copy of the tree in place.
    tree = Path(sys.argv[1]).resolve()
    with TemporaryDirectory() as built:
        for library in compile_modules(tree, Path(built), *sys.argv[2:3]):
            shutil.copy(library, tree / library.relative_to(Path(built) / "lib"))
