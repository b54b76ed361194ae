"""The embedded data set: drawn scenes whose captions come with the true box of every phrase.

A scene is a canvas of 64 x 64 pixels in one of six settings, its background (snow, sand, night, water, grass, stone),
with two to four things that never overlap, each of a shape, colour, size and place. Later things often share colour or
shape with an earlier one, so colour must be bound to shape. The five captions of a scene follow a small grammar with
synonyms; all are true, of 5 to 16 words, and leave things out (large ones less often). A phrase names exactly the
things that fit its words: "a star" is said only if there is one star, and "two red circles" has two boxes. "A picture
of", "in the top left corner" and "on snow" name nothing drawn and are no phrases.

A caption seldom fits another image, since the hardest negative of a batch would then be a true match: of the 15,000
training captions of seed 0, in batches of 128 of nearly equal length, 4.8 % describe another image of their batch.
Among the 500 test images, a reader who understands every word (and guesses among the images that fit) ranks the right
one first for 88 % of the captions; for 77 % without relations and places, for 64 % without settings too.

The same seed gives the same bytes everywhere: all geometry is in integers, and the only generator is Python's
`Random(int).random()`, whose sequence the language guarantees.
"""

from __future__ import annotations

from capbench.data.scenes.dataset import scenes

__all__ = ["scenes"]
