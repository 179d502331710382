"""How large each format, profile and layout is: figures that do not depend on the machine or its load.

Prints the rows of the tables in docs/performance.md: the FITS file as KBMOD writes it, then every store made from it,
with the share of the capsule, and bytes per pixel of each layer.
"""

from __future__ import annotations

from pathlib import Path

from common import N_IMAGES, SIDE, folder, size, stack, work_unit

import wustore

LAYERS = ("science", "variance", "mask")


def layer_bytes(path: Path, layer: str) -> int:
    if path.is_dir():
        return size(path / layer)
    import h5py

    with h5py.File(path, "r") as file:
        return file[layer].id.get_storage_size()


def capsule_bytes(path: Path) -> int:
    if path.is_dir():
        return size(path / "fits")
    import h5py

    with h5py.File(path, "r") as file:
        return sum(file["fits"][name].id.get_storage_size() for name in file["fits"])


def row(name: str, path: Path, source: Path) -> None:
    pixels = N_IMAGES * SIDE * SIDE
    cells = [name, f"{size(path) / 1e6:.1f}", f"{size(path) / source.stat().st_size:.3f}"]
    cells += [f"{layer_bytes(path, layer) / pixels:.4f}" for layer in LAYERS]
    cells.append(f"{capsule_bytes(path) / size(path):.2%}")
    print(f"| {' | '.join(cells)} |", flush=True)


def main(place: Path) -> None:
    source = place / "kbmod.fits"
    work_unit(stack()).to_fits(source)
    print(f"{N_IMAGES} x {SIDE} x {SIDE}: {source.stat().st_size / 1e6:.1f} MB as KBMOD writes it")
    exact = place / "exact.fits"
    wustore.convert(source, exact, lossless=True)
    print(f"lossless FITS: {exact.stat().st_size / 1e6:.1f} MB, {exact.stat().st_size / source.stat().st_size:.3f}")
    print("| store | MB | of the FITS | science B/pixel | variance | mask | capsule |")
    for suffix, profiles in (("zarr", ("compact", "portable", "fast", "none")), ("h5", ("portable", "fast", "none"))):
        for profile in profiles:
            path = place / f"{profile}.{suffix}"
            wustore.convert(source, path, profile=profile)
            row(f"{suffix} {profile}", path, source)
    for layout in ("balanced", "cutouts"):
        for suffix in ("zarr", "h5"):
            path = place / f"{layout}.{suffix}"
            wustore.convert(source, path, layout=layout)
            row(f"{suffix} {layout}", path, source)


if __name__ == "__main__":
    with folder() as place:
        main(place)
