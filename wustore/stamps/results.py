"""What cutting out gives: stamps through time, and coadds of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError
from wustore.model.kbmod_rules import is_masked
from wustore.stamps import picture
from wustore.stamps.coadd import coadd
from wustore.stamps.notebook import facts_html, facts_text, span_of, text_of_bytes
from wustore.stamps.plot import draw, label_sky, new_figure
from wustore.stamps.sky import pixel_to_sky
from wustore.stamps.trajectories import NOWHERE

if TYPE_CHECKING:
    from astropy.wcs import WCS
    from matplotlib.figure import Figure

__all__ = ["Coadds", "Stamps"]

_STAMP_PIXELS = 84
"""Side of a stamp on a sheet [screen pixel], about; small ones are shown enlarged."""

_SHEET_PIXELS = 12_000_000
"""Largest sheet [screen pixel]: more rows than anyone looks at."""

_LOOK_FOR_OUTSIDE = 50_000_000
"""Pixels up to which a repr counts the stamps outside of the images: 10 ms."""


@dataclass(frozen=True, eq=False)
class _Shown:
    """A picture on a sheet: pixels (y, x), which are masked, lines of text, position and place on the time axis."""

    pixels: NDArray[Any]
    masked: NDArray[Any] | None
    text: list[str]
    position: int
    time: int


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Cut:
    """What stamps and coadds have in common: where they were cut out."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    times: NDArray[np.float64]
    images: NDArray[np.int64]
    radius: int
    ids: NDArray[Any] = field(default_factory=lambda: np.array(0))
    wcs: tuple[str | None, ...] = ()
    source: str = ""

    def sky(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the centres are on the sky.

        Returns
        -------
        ra, dec : ndarray
            ICRS [deg], shape S + (time,); NaN in an image without WCS.
        """
        return pixel_to_sky(self.wcs or (None,) * len(self.times), self.x, self.y)

    def wcs_of(self, *index: int) -> WCS:
        """Return the WCS of one stamp, whose pixels count from the corner of the stamp.

        Parameters
        ----------
        index
            Of the stamp, as for ``stamps.x``: the place on the time axis last.

        Raises
        ------
        UsageError
            If its image has no WCS.
        """
        from wustore.format.wcs import text_to_wcs
        from wustore.stamps.view import shifted_wcs

        text = self.wcs[index[-1]] if self.wcs else None
        if text is None:
            raise UsageError("an image has no WCS", where=f"image {self.images[index[-1]]}")
        side = 2 * self.radius + 1
        return text_to_wcs(
            shifted_wcs(text, int(self.x[index]) - self.radius, int(self.y[index]) - self.radius, side, side)
        )

    def _facts(self) -> dict[str, Any]:
        side = 2 * self.radius + 1
        shape = self.x.shape[:-1]
        return {
            "positions": " x ".join(map(str, shape)) if shape else "one",
            "images": span_of(self.times),
            "size": f"{side} x {side} pixels",
            "source": self.source or None,
        }

    def _marks(self, n: int, k: int) -> picture.Marks | None:
        """Return the marks of position ``n`` in the image at place ``k``."""
        if not self.wcs:
            return None
        n_times = len(self.times)
        x, y = (int(values.reshape(-1, n_times)[n, k]) for values in (self.x, self.y))
        return picture.marks_of(self.wcs[k], x, y)

    @property
    def _zoom(self) -> int:
        return max(_STAMP_PIXELS // (2 * self.radius + 1), 1)

    def _tile(self, one: _Shown, marks: picture.Marks | None) -> picture.Tile:
        zoom = self._zoom
        colours = picture.coloured(one.pixels, one.masked).repeat(zoom, axis=0).repeat(zoom, axis=1)
        return picture.Tile(colours, one.text, (), marks, zoom)

    def _projection(self, one: _Shown) -> WCS | None:
        """Return the WCS of a picture, None if there is none."""
        if not self.wcs or self.wcs[one.time] is None or self.x[one.position, one.time] == NOWHERE:
            return None
        return self.wcs_of(one.position, one.time)

    def _drawn(self, rows: list[list[_Shown]]) -> Figure:
        """Return a figure of rows of pictures: on the sky if they have a WCS, which labels the first of each row."""
        n_columns = max(map(len, rows), default=1)
        width, height = 1.4 * n_columns + 0.8, 1.8 * len(rows) + 0.3
        figure = new_figure(width, height, layout=None)  # a constrained one cuts the titles of WCSAxes
        figure.subplots_adjust(0.7 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.4 / height, 0.08, 0.4)
        for r, row in enumerate(rows):
            for c, one in enumerate(row):
                wcs = self._projection(one)
                axes = figure.add_subplot(len(rows), n_columns, r * n_columns + c + 1, projection=wcs)
                draw(axes, one.pixels, one.masked)
                axes.set_title("\n".join(one.text), fontsize=7)
                if wcs is None:
                    axes.set_axis_off()
                else:
                    label_sky(axes, visible=c == 0)
        return figure

    def _fitting(self, n: int, columns: int) -> int:
        """Return how many of ``n`` rows fit on a sheet."""
        one = columns * ((2 * self.radius + 1) * self._zoom + 30) ** 2
        return max(min(n, _SHEET_PIXELS // max(one, 1)), 1)

    def _titled(self, n: int, shown: int) -> str:
        return (self.source or "stamps") + (f": the first {shown} of {n} positions" if shown < n else "")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Stamps(_Cut):
    """Stamps through time.

    S is the shape of what they were asked for: () for one position, (n,) for n positions or trajectories. Each
    stamp has 2 * radius + 1 pixels in y and x.

    Attributes
    ----------
    science, variance
        Shape S + (time, y, x), in the unit of the store. NaN outside of the image and where the pixel is masked.
        None if not asked for.
    mask
        The flags as stored, 0 outside of the image and if the image has no mask layer. Shape S + (time, y, x).
        None if not asked for.
    inside
        True for a pixel of the image, False outside of it. Shape S + (time, y, x).
    x, y
        The pixels at the centres of the stamps. Shape S + (time,); `wustore.stamps.trajectories.NOWHERE` if a
        position is not a number.
    times
        MJD [days, UTC]. Shape (time,).
    images
        Indices of the images. Shape (time,).
    radius
        Pixels on either side of the centre.
    ids
        Name of each position or trajectory: from the table that it came in, else its number. Shape S.
    wcs
        Header text of the WCS of each image, None for an image without. Length time.
    source
        Path of the store.
    """

    science: NDArray[Any] | None
    variance: NDArray[Any] | None
    mask: NDArray[Any] | None
    inside: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.inside)

    @property
    def is_outside(self) -> NDArray[np.bool_]:
        """Which stamps have no pixel of the image, shape S + (time,)."""
        return np.asarray(~self.inside.any(axis=(-2, -1)))

    def coadd(self, kind: str = "mean") -> NDArray[np.float64]:
        """Return the coadd over time, shape S + (y, x), in the unit of the science layer.

        Parameters
        ----------
        kind
            One of `wustore.stamps.coadd.KINDS`; the rules are those of `wustore.stamps.coadd.coadd`.

        Raises
        ------
        UsageError
            For an unknown kind, or if the layers it needs were not asked for.
        """
        if self.science is None:
            raise UsageError("a coadd needs the science layer", hint="Ask for it in layers=….")
        return coadd(self.science, kind, self.variance)

    def coadds(self, kind: str = "mean") -> Coadds:
        """Return `coadd` as `Coadds`, which say where they come from; S is then flat.

        Parameters
        ----------
        kind
            As in `coadd`.
        """
        side, n_times = 2 * self.radius + 1, len(self.times)
        n = math.prod(self.x.shape[:-1])
        return Coadds(
            values=self.coadd(kind).reshape(n, side, side),
            kind=kind,
            x=self.x.reshape(n, n_times),
            y=self.y.reshape(n, n_times),
            ids=self.ids.reshape(n),
            **{name: getattr(self, name) for name in ("times", "images", "radius", "wcs", "source")},
        )

    # --- pictures ------------------------------------------------------------------------------------------

    def _all_facts(self) -> dict[str, Any]:
        layers = {"science": self.science, "variance": self.variance, "mask": self.mask}
        there = {name: values for name, values in layers.items() if values is not None}
        facts = self._facts()
        facts["layers"] = ", ".join(f"{name} ({values.dtype})" for name, values in there.items())
        facts["memory"] = text_of_bytes(sum(values.nbytes for values in there.values()) + self.inside.nbytes)
        n_outside = int(self.is_outside.sum()) if self.inside.size <= _LOOK_FOR_OUTSIDE else 0
        if n_outside:
            facts["outside"] = f"{n_outside} of {self.x.size} stamps have no pixel of their image"
        return facts

    def __repr__(self) -> str:
        return facts_text("Stamps", self._all_facts())

    def _repr_html_(self) -> str:
        few = self._first(4, 8)
        shown = few.sheet() if few.x.size and few.science is not None else None
        return facts_html("Stamps", self._all_facts(), shown)

    def _first(self, n: int, n_times: int) -> Stamps:
        """Return the stamps of the first positions in the first images."""
        total = len(self.times)

        def part(values: NDArray[Any] | None) -> NDArray[Any] | None:
            if values is None:
                return None
            flat = values.reshape(math.prod(self.x.shape[:-1]), total, *values.shape[self.x.ndim :])
            return flat[:n, :n_times]

        few = {name: part(getattr(self, name)) for name in ("science", "variance", "mask", "inside", "x", "y")}
        return replace(
            self,
            **few,  # type: ignore[arg-type]
            times=self.times[:n_times],
            images=self.images[:n_times],
            ids=self.ids.reshape(-1)[:n],
            wcs=self.wcs[:n_times],
        )

    def _rows(self, kind: str, n: int) -> Iterator[list[_Shown]]:
        """Yield what to show of each of the first positions: its coadd, and its stamps."""
        few = self._first(n, len(self.times))
        if few.science is None:
            raise UsageError("a picture shows the science layer, which is not there", hint="Ask for it in layers=….")
        for k, name in enumerate(few.ids.tolist()):
            variance = None if few.variance is None else few.variance[k]
            row = [_Shown(coadd(few.science[k], kind, variance), None, [f"id {name}", kind], k, 0)]
            for t, time in enumerate(few.times.tolist()):
                masked = None if few.mask is None else is_masked(few.mask[k, t])
                row.append(_Shown(few.science[k, t], masked, [f"image {few.images[t]}", f"{time:.5f}"], k, t))
            yield row

    def sheet(self, coadd: str = "mean") -> NDArray[np.uint8]:
        """Return a picture: a row for each position with its id, its coadd and the stamp at each time.

        Each stamp has its own stretch; masked pixels are in colour. The coadd has compass and scale bar. If there are
        too many positions for one picture, the title says how many of them it shows.

        Parameters
        ----------
        coadd
            Kind of coadd, one of `wustore.stamps.coadd.KINDS`.

        Returns
        -------
        ndarray
            Colours, shape (y, x, 3), uint8; `wustore.stamps.picture.png` makes a file of it.

        Raises
        ------
        UsageError
            If there is no stamp, or no science layer.
        """
        n = math.prod(self.x.shape[:-1])
        shown = self._fitting(n, len(self.times) + 1)
        tiles = [
            self._tile(one, self._marks(one.position, one.time) if column == 0 and len(self.times) else None)
            for row in self._rows(coadd, shown)
            for column, one in enumerate(row)
        ]
        return picture.labelled_sheet(tiles, columns=len(self.times) + 1, title=self._titled(n, shown))

    def plot(self, coadd: str = "mean", *, positions: int = 8, times: int = 10) -> Figure:
        """Plot the coadd and the stamps of the first positions with matplotlib.

        Images that have a WCS are drawn with astropy's WCSAxes, whose coordinates are those of each stamp; RA and Dec
        stand at the coadds.

        Parameters
        ----------
        coadd
            Kind of coadd, one of `wustore.stamps.coadd.KINDS`.
        positions, times
            How many to show at most.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        UsageError
            If there is no science layer.
        MissingDependencyError
            Without matplotlib (extra ``plot``).
        """
        few = self._first(positions, times)
        return few._drawn(list(few._rows(coadd, positions)))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Coadds(_Cut):
    """Coadded stamps.

    Attributes
    ----------
    values
        Shape (n, y, x), in the unit of the science layer; 0 where no time has data.
    kind
        One of `wustore.stamps.coadd.KINDS`.
    x, y, times, images, radius, ids, wcs, source
        As in `Stamps`.
    """

    values: NDArray[np.float64]
    kind: str

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return facts_text("Coadds", self._facts() | {"kind": self.kind})

    def _repr_html_(self) -> str:
        shown = self._first(24).sheet() if len(self) else None
        return facts_html("Coadds", self._facts() | {"kind": self.kind}, shown)

    def _first(self, n: int) -> Coadds:
        ids = self.ids.reshape(-1)[:n]
        return replace(self, values=self.values[:n], x=self.x[:n], y=self.y[:n], ids=ids)

    def sheet(self) -> NDArray[np.uint8]:
        """Return a picture of the coadds with their ids, compass and scale bar; see `Stamps.sheet`."""
        shown = self._fitting(len(self), 1)
        tiles = [
            self._tile(
                _Shown(self.values[k], None, [f"id {name}"], k, 0), self._marks(k, 0) if len(self.times) else None
            )
            for k, name in enumerate(self.ids.reshape(-1)[:shown].tolist())
        ]
        return picture.labelled_sheet(tiles, title=f"{self._titled(len(self), shown)}, {self.kind}")

    def plot(self, *, positions: int = 24) -> Figure:
        """Plot the first coadds with matplotlib: on the sky if they have a WCS.

        Parameters
        ----------
        positions
            How many to show at most.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingDependencyError
            Without matplotlib (extra ``plot``).
        """
        few = self._first(positions)
        shown = [
            _Shown(few.values[k], None, [f"id {name}", self.kind], k, 0) for k, name in enumerate(few.ids.tolist())
        ]
        return few._drawn([shown[start : start + 8] for start in range(0, len(shown), 8)])
