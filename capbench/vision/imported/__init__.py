"""Features that others have computed: read from their files, checked against a data set, kept in the store.

A name such as "file/butd36" stands for them where an encoder is named. No network is behind it: models are trained and
scored on such features, without the photographs, but a new picture cannot be encoded.
"""

from __future__ import annotations

from capbench.vision.imported.store import FORMATS, Imported, check_imported, import_features, imported_features

__all__ = ["FORMATS", "Imported", "check_imported", "import_features", "imported_features"]
