"""The smallest PEP 517 build backend: one module and its metadata in a wheel."""

from __future__ import annotations

import zipfile
from pathlib import Path

HERE = Path(__file__).parent
INFO = "wustore_npz-1.0.dist-info"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Write the wheel and return its name (PEP 517)."""
    name = "wustore_npz-1.0-py3-none-any.whl"
    files = {
        "wustore_npz.py": (HERE / "wustore_npz.py").read_text(encoding="utf-8"),
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: wustore-npz\nVersion: 1.0\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: example\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/entry_points.txt": "[wustore.backends]\nnpz = wustore_npz:NpzBackend\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{INFO}/RECORD,,\n"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        for path, text in {**files, f"{INFO}/RECORD": record}.items():
            wheel.writestr(path, text)
    return name
