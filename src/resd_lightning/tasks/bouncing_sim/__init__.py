"""BouncingSim: write a function that predicts where bouncing polygons are at any time (RESD, Tasks)."""

from resd_lightning.tasks.bouncing_sim.task import BouncingSimTask

__all__ = ["BouncingSimTask"]
