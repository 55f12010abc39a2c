"""Imports every part, so that it registers; a new part is a new file, and no list names it.

An export has no packages to search, so there one import per part takes the place of this module.
"""

from importlib import import_module
from pkgutil import iter_modules

from gam_scale.model import feedforwards, mixers, norms

for _package in (norms, feedforwards, mixers):
    for _found in iter_modules(_package.__path__, f"{_package.__name__}."):
        import_module(_found.name)
