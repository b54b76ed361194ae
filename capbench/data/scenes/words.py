"""What can be on a scene, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping

# The words for each meaning, the most usual first.
SHAPES: Mapping[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop"),
    "arrow": ("arrow",),
    "moon": ("moon", "crescent"),
    "bar": ("bar", "plank"),
    "cup": ("cup", "bowl"),
}
COLOURS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "blue": ("blue", "azure"),
    "green": ("green", "emerald"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "orange": ("orange",),
    "pink": ("pink", "rosy"),
    "brown": ("brown",),
    "turquoise": ("turquoise", "teal"),
}
SIZES: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge"),
}
THINGS = ("shape", "thing", "object")
RELATIONS: Mapping[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
    "near": ("next to", "beside", "close to"),
    "far": ("far from", "far away from"),
}
PLACES: Mapping[str, tuple[str, ...]] = {
    "top left": ("in the top left corner", "at the upper left"),
    "top right": ("in the top right corner", "at the upper right"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
    "top": ("at the top", "near the upper edge"),
    "bottom": ("at the bottom", "near the lower edge"),
    "left": ("on the left", "at the left edge"),
    "right": ("on the right", "at the right edge"),
    "middle": ("in the middle", "in the centre"),
}
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "snow": ("on snow", "in the snow"),
    "sand": ("on sand", "on the beach"),
    "night": ("at night", "in the dark"),
    "water": ("on water", "in the water"),
    "grass": ("on grass", "in a meadow"),
    "stone": ("on stone", "on the pavement"),
}
