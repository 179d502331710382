"""An example format: a WorkUnit in one numpy ``.npz`` archive. Small, not fast; shows what a backend must do."""

from __future__ import annotations

import json
import zipfile

import numpy as np

from wustore import CorruptError, FormatError, IncompleteError, OtherFormatError, UsageError
from wustore.backends.base import Backend, Writer
from wustore.backends.memory import MemoryReader
from wustore.format.document import arrays_of, document_of, meta_from
from wustore.model.meta import LAYERS, Image
from wustore.storage.files import open_regular
from wustore.storage.staging import Staging


class NpzReader(MemoryReader):
    """Reads the whole archive when it is opened: a real format would read when it is asked."""

    format = "npz"
    closed = False

    def image(self, i, layers=LAYERS):
        if self.closed:
            raise UsageError("the store has been closed", path=self.path)
        return super().image(i, layers)

    def close(self):
        self.closed = True

    def __reduce__(self):
        return NpzBackend().open, (self.path,)


class NpzWriter(Writer):
    def __init__(self, path, meta, *, overwrite):
        self._meta = meta
        self._staging = Staging(path, overwrite=overwrite)
        self._planes = {}

    def write(self, i, image, capsule=None):
        for layer in LAYERS:
            plane = image.layer(layer)
            if plane is not None:
                self._planes[f"{layer}_{i}"] = plane.copy()

    def commit(self):
        missing = [i for i in range(self._meta.n_images) if f"science_{i}" not in self._planes]
        if missing:
            raise IncompleteError("not every image was written", path=self._staging.target, found=f"missing {missing}")
        members = dict(self._planes)
        for spec in arrays_of(self._meta):
            # Text as JSON: a numpy object array would be pickled, and a pickle runs code.
            text = spec.data.dtype == object
            members[f"array/{spec.name}"] = np.array(json.dumps(spec.data.tolist())) if text else spec.data
            members[f"text/{spec.name}"] = np.array(text)
        members["document"] = np.array(json.dumps(document_of(self._meta)))
        with self._staging.path.open("wb") as file:
            np.savez_compressed(file, **members)
        self._staging.commit()

    def abort(self):
        self._planes = {}
        self._staging.abort()


class NpzBackend(Backend):
    name = "npz"
    suffixes = (".wu.npz", ".npz")
    description = "one numpy archive (example plug-in)"

    def recognises(self, start):
        return start.startswith(b"PK\x03\x04")

    def open(self, path, **options):
        with open_regular(path) as file:
            if not self.recognises(file.peek(4)):
                raise OtherFormatError("not an npz archive", path=path)
            return self._open(path, file)

    def _open(self, path, file):
        try:
            with np.load(file, allow_pickle=False) as archive:
                if "document" not in archive:
                    raise OtherFormatError("an npz archive, but not a WorkUnit in one", path=path)
                return self._read(path, archive)
        except FormatError:
            raise
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError) as error:
            raise CorruptError("the archive is damaged", path=path, found=str(error)) from error

    def _read(self, path, archive):
        def array(name):
            data = archive[f"array/{name}"]
            return np.array(json.loads(str(data)), dtype=object) if archive[f"text/{name}"] else data

        meta = meta_from(json.loads(str(archive["document"])), array, path=path)
        images = [Image(**{n: archive.get(f"{n}_{i}") for n in LAYERS}) for i in range(meta.n_images)]
        return NpzReader(meta, images, path=path)

    def create(self, path, meta, *, capsule=None, overwrite=False, workers=None, **options):
        if options:
            raise UsageError("unknown options", where="npz", expected="none", found=sorted(options))
        return NpzWriter(path, meta, overwrite=overwrite)
