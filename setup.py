"""What pyproject.toml cannot say: conf/ travels inside the package, as hvlm/conf/, where hvlm looks for it first."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class WithConf(build_py):
    """Copies conf/ into what is built; an editable install reads it where it lies."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "hvlm" / "conf"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "conf", target, ignore=shutil.ignore_patterns("[!a-z]*", "*~"))


setup(cmdclass={"build_py": WithConf})
