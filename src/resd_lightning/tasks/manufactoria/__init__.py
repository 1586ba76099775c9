"""Manufactoria-Has: write a program in a small tape-machine language (RESD, Tasks)."""

from resd_lightning.tasks.manufactoria.syntax import ManufactoriaSyntaxError, parse
from resd_lightning.tasks.manufactoria.task import ManufactoriaTask

__all__ = ["ManufactoriaSyntaxError", "ManufactoriaTask", "parse"]
