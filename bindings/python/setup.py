"""The wheel has a shared library, but nothing that depends on the version of Python. FA_WHEEL_PLATFORM names the
platform that it was built for (scripts/wheel.sh)."""

import os

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.dist import Distribution


class Wheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", os.environ.get("FA_WHEEL_PLATFORM") or super().get_tag()[2]


class WithLibrary(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"bdist_wheel": Wheel}, distclass=WithLibrary)
