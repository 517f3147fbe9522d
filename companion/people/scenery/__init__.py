"""Scenes: what is behind a person and how it lights them."""

from companion.people.scenery.outdoors import SCENES, draw_background, noise, surround

__all__ = ["SCENES", "draw_background", "noise", "surround"]
