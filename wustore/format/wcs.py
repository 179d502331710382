"""FITS header text <-> `astropy.wcs.WCS`, losing no number. KBMOD's forms are in `wustore.compat.wcs`.

Inside wustore a WCS is *header text*: cards of 80 characters joined into one string. astropy's own
``to_header`` rounds to 14 digits and turns ``CDi_j`` into ``PCi_j``; `wcs_to_text` writes every number with
the shortest text that reads back to the same bits, then proves it by reading its own text.
Keyword rules: FITS standard 4.0, section 8; SIP: Shupe et al. 2005 (ASPC 347, 491).
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from wustore.errors import FidelityError, FormatError
from wustore.model.quiet import quiet

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = ["text_to_wcs", "wcs_to_text"]

CardValue = str | int | float | bool | None

_CARD = 80
_STANDARD_KEYWORD = re.compile(r"[A-Z0-9_-]{1,8}")
_LOOKUP_TABLES = ("cpdis1", "cpdis2", "det2im1", "det2im2")
_LOOKUP_KEYWORDS = {"cpdis1": "WUCPDIS1", "cpdis2": "WUCPDIS2", "det2im1": "WUD2IM1", "det2im2": "WUD2IM2"}
"""Our own keywords for distortion tables, which FITS itself keeps in further HDUs; other readers skip them."""
_TABLE_PARTS = ("data", "crpix", "crval", "cdelt")
_NO_FIX = "WUNOFIX"
"""Present and true if the WCS was made with ``fix=False`` and would read back differently with fixes."""

# Attribute of Wcsprm -> keyword. Scalars that wcslib prints with too few digits.
_SCALARS = {
    "restfrq": "RESTFRQ",
    "restwav": "RESTWAV",
    "equinox": "EQUINOX",
    "velangl": "VELANGL",
    "velosys": "VELOSYS",
    "zsource": "ZSOURCE",
    "mjdobs": "MJD-OBS",
    "mjdavg": "MJD-AVG",
    "mjdbeg": "MJD-BEG",
    "mjdend": "MJD-END",
    "jepoch": "JEPOCH",
    "bepoch": "BEPOCH",
    "tstart": "TSTART",
    "tstop": "TSTOP",
    "telapse": "TELAPSE",
    "timedel": "TIMEDEL",
    "timepixr": "TIMEPIXR",
    "timeoffs": "TIMEOFFS",
    "timrder": "TIMRDER",
    "timsyer": "TIMSYER",
    "xposure": "XPOSURE",
    "lonpole": "LONPOLE",
    "latpole": "LATPOLE",
}
_PER_AXIS = {
    "crpix": "CRPIX",
    "crval": "CRVAL",
    "crder": "CRDER",
    "csyer": "CSYER",
    "czphs": "CZPHS",
    "cperi": "CPERI",
}
_WITH_ALTERNATE = frozenset(
    ["RESTFRQ", "RESTWAV", "EQUINOX", "VELANGL", "VELOSYS", "ZSOURCE", "LONPOLE", "LATPOLE", *_PER_AXIS.values()]
)
_OBSGEO = ("OBSGEO-X", "OBSGEO-Y", "OBSGEO-Z", "OBSGEO-L", "OBSGEO-B", "OBSGEO-H")
_COMPARED = (
    *_SCALARS,
    *_PER_AXIS,
    "alt naxis ctype cunit cname name radesys specsys ssysobs ssyssrc dateobs dateavg datebeg dateend "
    "timesys trefpos trefdir plephem timeunit obsgeo mjdref velref colnum colax",
)
_COEFFICIENTS = "coefficients of the projection"

_COUNT = re.compile(r"NAXIS|WCSAXES[A-Z]?|(?:A|B|AP|BP)_ORDER")
_MOST = 9
"""The largest number of axes, and order of SIP, that is taken seriously."""

_COEFFICIENT = re.compile(r"(?:A|B|AP|BP)_\d+_\d+")


@contextlib.contextmanager
def quiet_astropy() -> Iterator[None]:
    """Silence astropy's warnings and notes: both are global state, hence the lock that `quiet` holds."""
    from astropy import log

    with quiet():
        level = log.level
        log.setLevel("ERROR")
        try:
            yield
        finally:
            log.setLevel(level)


# --- cards --------------------------------------------------------------------------------------------


def _value_text(value: CardValue) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return f"{'T' if value else 'F':>20}"
    if isinstance(value, int | np.integer):
        return f"{int(value):>20d}"
    if not np.isfinite(value):
        raise FormatError("FITS headers have no form for this number", found=value)
    return f"{repr(float(value)).upper():>20}"


def header_cards(key: str, value: CardValue) -> str:
    """Return the card or cards (CONTINUE for long text) of one keyword."""
    if not _STANDARD_KEYWORD.fullmatch(key):
        from astropy.io.fits import Card

        with quiet_astropy():
            return str(Card(key, value).image)
    if not isinstance(value, str):
        return f"{key:8}= {_value_text(value)}"[:_CARD].ljust(_CARD)
    quoted = value.replace("'", "''")
    if len(quoted) <= 68:
        return f"{key:8}= '{quoted:8}'".ljust(_CARD)
    if "'" in value:
        from astropy.io.fits import Card

        return str(Card(key, value).image)  # splits between quotes, never inside a doubled one
    pieces = [value[k : k + 67] for k in range(0, len(value), 67)]
    texts = [f"'{piece}&'" for piece in pieces[:-1]] + [f"'{pieces[-1]}'"]
    heads = [f"{key:8}= "] + ["CONTINUE  "] * (len(pieces) - 1)
    return "".join((head + text).ljust(_CARD) for head, text in zip(heads, texts, strict=True))


def _header(text: str) -> Header:
    from astropy.io.fits import Header as FitsHeader

    try:
        text.encode("ascii")
        return FitsHeader.fromstring(text)
    except (ValueError, UnicodeError, IndexError, TypeError) as error:
        raise FormatError("not FITS header text", found=str(error)) from error


# --- text to WCS --------------------------------------------------------------------------------------


def _refuse_bombs(text: str) -> None:
    """Refuse cards by which wcslib and astropy would ask for memory without end, or end the process.

    The text is looked at, not astropy's header, which raises where any card has no value it knows.
    """
    for at in range(0, len(text), _CARD):
        image = text[at : at + _CARD]
        keyword, value = image[:8].rstrip(), image[10:].strip()
        if _COUNT.fullmatch(keyword):
            number = re.match(r"[+-]?\d+", value)
            bad = number is not None and int(number[0]) > _MOST
        else:
            # wcslib takes any text with a colon for a record, and SIP records it has no room for.
            bad = _COEFFICIENT.fullmatch(keyword) is not None and value.startswith("'")
        if bad:
            raise FormatError(
                "the header text does not describe a WCS",
                where=keyword,
                expected=f"at most {_MOST}" if _COUNT.fullmatch(keyword) else "a number",
                found=value[:20],
            )


def decode_header(text: str) -> WCS:
    from astropy import wcs as astropy_wcs
    from astropy.io.fits import VerifyError

    with quiet_astropy():
        header = _header(text)
        _refuse_bombs(text)
        try:
            key = " "
            if not any(name in header for name in ("CTYPE1", "CRPIX1", "CRVAL1", "WCSAXES")):
                alternates = {name[6] for name in header if re.fullmatch(r"CRPIX1[A-Z]", name)}
                key = min(alternates, default=" ")
            tables = {name: header[keyword] for name, keyword in _LOOKUP_KEYWORDS.items() if keyword in header}
            wcs = astropy_wcs.WCS(header, key=key, fix=not header.get(_NO_FIX, False))
            names: tuple[str, ...] = (
                ("DIMM1", "DIMM2") if "DIMM1" in header and "DIMM2" in header else ("NAXIS1", "NAXIS2")
            )
            names += tuple(f"NAXIS{j}" for j in range(3, wcs.naxis + 1))
            sizes = [int(header.get(name) or 0) for name in names[: wcs.naxis]]
            wcs.pixel_shape = sizes if any(sizes) else None
            for name, packed in tables.items():
                parts = json.loads(packed)
                data = np.frombuffer(base64.b64decode(parts["data"]), dtype="<f4").reshape(parts["shape"])
                setattr(
                    wcs,
                    name,
                    astropy_wcs.DistortionLookupTable(
                        data.astype(np.float32), tuple(parts["crpix"]), tuple(parts["crval"]), tuple(parts["cdelt"])
                    ),
                )
        except (
            astropy_wcs.WcsError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            OverflowError,
            AssertionError,
            MemoryError,
            OSError,
            RuntimeError,
            VerifyError,
        ) as error:
            if isinstance(error, FormatError):
                raise
            raise _no_wcs(error) from error
    return wcs


def _no_wcs(error: Exception) -> FormatError:
    return FormatError(
        "the header text does not describe a WCS", found=f"{type(error).__name__}: {str(error).strip()}"[:300]
    )


@lru_cache(maxsize=512)
def decoded_header(text: str) -> WCS:
    return decode_header(text)


def text_to_wcs(text: str) -> WCS:
    """Return the WCS that header text describes.

    Parameters
    ----------
    text
        Cards of 80 characters. ``DIMM1``/``DIMM2`` (KBMOD) or ``NAXIS1``/``NAXIS2`` give ``pixel_shape``.

    Returns
    -------
    astropy.wcs.WCS
        A new object. Text with an alternate description only gives that one.

    Raises
    ------
    FormatError
        If the text is not a header or wcslib refuses it.
    """
    wcs = copy.deepcopy(decoded_header(text))
    wcs._wustore_text = text
    try:
        wcs._wustore_state = _state(wcs)
    except RuntimeError as error:  # what wcslib noticed no sooner
        raise _no_wcs(error) from error
    return wcs


def _parts(wcs: WCS) -> Iterator[tuple[str, Any]]:
    """Yield name and value of everything that can be changed in a WCS; of all WCSes the same names."""
    prm = wcs.wcs
    for names in _COMPARED:
        for name in names.split():
            yield name, getattr(prm, name, None)
    yield "cd", prm.has_cd()
    for name in ("pc", "cdelt", "pv", "ps"):
        yield name, getattr(prm, f"get_{name}")()
    yield "pixel_shape", wcs.pixel_shape
    for name in ("a", "b", "ap", "bp", "crpix"):
        yield f"sip.{name}", getattr(wcs.sip, name, None)
    for name in _LOOKUP_TABLES:
        for part in _TABLE_PARTS:
            yield name, getattr(getattr(wcs, name), part, None)


def _state(wcs: WCS) -> tuple[Any, ...]:
    """Return what shows whether a WCS was changed: 0.05 ms, while decoding takes 0.7."""
    with quiet():  # wcslib comments on cdelt if there is a cd
        return (wcs.sip is None, *(_frozen(value) for _, value in _parts(wcs)))


def _frozen(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, float):
        return value.hex()
    return value if value is None or isinstance(value, str | int) else tuple(str(item) for item in value)


# --- WCS to text --------------------------------------------------------------------------------------


def _table_value(wcs: WCS, name: str) -> str:
    table = getattr(wcs, name)
    data = np.asarray(table.data, dtype="<f4")
    parts = {
        "shape": list(data.shape),
        **{name: [float(value) for value in getattr(table, name)] for name in ("crpix", "crval", "cdelt")},
        "data": base64.b64encode(data.tobytes()).decode("ascii"),
    }
    return json.dumps(parts)


def _exact_numbers(wcs: WCS) -> dict[str, CardValue]:
    """Return keyword -> number at full precision, for everything that the attributes give."""
    prm = wcs.wcs
    alt = prm.alt.strip()
    numbers: dict[str, CardValue] = {}
    for attribute, keyword in _PER_AXIS.items():
        for j, value in enumerate(getattr(prm, attribute), start=1):
            numbers[f"{keyword}{j}{alt}"] = float(value)
    axes = range(1, prm.naxis + 1)
    matrix, letters = (prm.cd, "CD") if prm.has_cd() else (prm.get_pc(), "PC")
    for i in axes:
        for j in axes:
            numbers[f"{letters}{i}_{j}{alt}"] = float(matrix[i - 1][j - 1])
        if not prm.has_cd():
            numbers[f"CDELT{i}{alt}"] = float(prm.get_cdelt()[i - 1])
    for i, m, value in prm.get_pv():
        numbers[f"PV{i}_{m}{alt}"] = float(value)
    for attribute, keyword in _SCALARS.items():
        value = float(getattr(prm, attribute))
        numbers[keyword + (alt if keyword in _WITH_ALTERNATE else "")] = value
    for keyword, value in zip(_OBSGEO, prm.obsgeo, strict=True):
        numbers[keyword] = float(value)
    whole, part = (float(value) for value in prm.mjdref)
    if np.isfinite(whole) and np.isfinite(part) and part:
        numbers |= {"MJDREFI": whole, "MJDREFF": part}
    else:
        numbers["MJDREF"] = whole
    return {key: value for key, value in numbers.items() if np.isfinite(value)}  # type: ignore[arg-type]


def _sip_cards(wcs: WCS) -> dict[str, CardValue]:
    cards: dict[str, CardValue] = {}
    if wcs.sip is None:
        return cards
    for name in ("A", "B", "AP", "BP"):
        matrix = getattr(wcs.sip, name.lower())
        if matrix is None:
            continue
        cards[f"{name}_ORDER"] = len(matrix) - 1
        for (i, j), value in np.ndenumerate(matrix):
            if value != 0 or np.signbit(value):
                cards[f"{name}_{i}_{j}"] = float(value)
    return cards


def _build(wcs: WCS, *, fixed: bool) -> str:
    """Return header text from the attributes of ``wcs``."""
    prm = wcs.wcs
    alt = prm.alt.strip()
    # wcslib decides which keywords there are and how their text values read; the numbers are replaced.
    listed = {card.keyword: card.value for card in _header(prm.to_header(True)).cards if card.keyword not in _SKIPPED}
    numbers = _exact_numbers(wcs)
    if prm.has_cd():
        listed = {key: value for key, value in listed.items() if not re.match(r"(PC\d+_\d+|CDELT\d+)", key)}
    if "MJDREFI" in numbers or (not numbers.get("MJDREF") and not prm.dateref):
        listed.pop("MJDREF", None)  # wcslib prints its default of 0, from which `fix` would derive DATEREF
    cards: dict[str, CardValue] = {}
    if wcs.pixel_shape is not None:
        cards |= {f"NAXIS{j}": int(size) for j, size in enumerate(wcs.pixel_shape, start=1)}
    cards[f"WCSAXES{alt}"] = prm.naxis
    for key, value in listed.items():
        if isinstance(value, float) and key not in numbers and key.startswith(("CRVAL", "CDELT", "CRPIX", "CROTA")):
            continue
        cards[key] = numbers.pop(key, value)
    for key, value in numbers.items():
        if key in _REPORTED_ONLY_IF_LISTED or (key.startswith("REST") and value == 0):
            continue
        cards[key] = value
    cards |= _sip_cards(wcs)
    for name in _LOOKUP_TABLES:
        if getattr(wcs, name) is not None:
            cards[_LOOKUP_KEYWORDS[name]] = _table_value(wcs, name)
    if not fixed:
        cards[_NO_FIX] = True
    return "".join(header_cards(key, value) for key, value in cards.items())


_SKIPPED = frozenset({"", "COMMENT", "HISTORY", "END", "CONTINUE"})
# Derived by wcslib from others (epochs, dates): writing them where it does not would over-determine the header.
_REPORTED_ONLY_IF_LISTED = frozenset({"BEPOCH", "JEPOCH", "MJDREF"})


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    if not isinstance(a, str) and hasattr(a, "__len__"):
        left, right = (np.asarray(value if hasattr(value, "dtype") else list(value)) for value in (a, b))
        if left.dtype.kind in "fiu" and right.dtype.kind in "fiu":
            return left.shape == right.shape and bool(np.array_equal(left, right, equal_nan=True))
        return [str(item) for item in a] == [str(item) for item in b]
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (np.isnan(a) and np.isnan(b))
    return bool(a == b)


def _difference(a: WCS, b: WCS) -> str | None:
    """Return the name of the first thing in which two set-up WCSes differ, or None."""
    if (a.sip is None) != (b.sip is None):
        return "sip"
    for (name, left), (_, right) in zip(_parts(a), _parts(b), strict=True):
        if not _same(*(sorted(value) if name in {"pv", "ps"} else value for value in (left, right))):
            return name
    # wcslib turns the coefficients of TPV and its like into something that attributes do not show (`get_pv`
    # becomes empty), so what they do is compared, near the reference pixel and far from it.
    offsets = np.array([[0, 0], [1, 3], [-700, 300], [1500, 1900], [-2000, -1300], [37, -911]], dtype=float)
    if a.naxis == 2 and not _same(_world(a, offsets), _world(b, offsets)):
        return _COEFFICIENTS
    return None


def _world(wcs: WCS, offsets: Any) -> Any:
    from astropy.wcs import WcsError

    try:
        return wcs.wcs.p2s(wcs.wcs.crpix + offsets, 1)["world"]
    except (WcsError, ValueError):
        return np.full_like(offsets, np.nan)


def wcs_to_text(wcs: WCS) -> str:
    """Return header text from which `text_to_wcs` gives back ``wcs`` with every number bit for bit.

    Parameters
    ----------
    wcs
        With SIP, lookup-table distortions, alternate key, any projection; ``pixel_shape`` may be None.

    Returns
    -------
    str
        Cards of 80 characters. The very text ``wcs`` was read from, if it was and has not changed since.

    Raises
    ------
    FidelityError
        For a WCS that header text cannot hold (``-TAB`` tables in further HDUs, SIP terms beyond the order).
    """
    remembered: str | None = getattr(wcs, "_wustore_text", None)
    if remembered is not None and _state(wcs) == wcs._wustore_state:
        return remembered
    with quiet_astropy():
        mine = copy.deepcopy(wcs)
        try:
            mine.wcs.set()
        except Exception as error:
            raise FidelityError("wcslib refuses this WCS", found=str(error).strip()[:200]) from error
        if len(mine.wcs.tab):
            raise FidelityError("a WCS with -TAB lookup tables cannot be kept as header text", where="CTYPE")
        # A WCS that was never used still has the coefficients that `set` hides.
        unset = [] if mine.wcs.get_pv() else list(wcs.wcs.get_pv())
        differences = []
        for fixed in (True, False):
            text = _with_coefficients(_build(mine, fixed=fixed), unset, mine.wcs.alt.strip())
            again = decode_header(text)
            again.wcs.set()
            difference = _difference(mine, again)
            if difference is None:
                return text
            differences.append((difference, text))
    for difference, text in differences:
        if difference == _COEFFICIENTS:
            # wcslib gives hidden coefficients back with 14 digits only, so this text is the best there is.
            warnings.warn(
                f"{difference}: wcslib no longer has their last digits; kept with a relative error of 1e-14",
                UserWarning,
                stacklevel=2,
            )
            return text
    difference = differences[0][0]
    raise FidelityError("a WCS cannot be kept exactly as header text", where=difference)


def _with_coefficients(text: str, coefficients: list[tuple[int, int, float]], alt: str) -> str:
    """Return ``text`` with PV cards that the caller's WCS still had before it was set up."""
    if not coefficients:
        return text
    mine = {f"PV{i}_{m}{alt}": float(value) for i, m, value in coefficients}
    cards = [text[k : k + _CARD] for k in range(0, len(text), _CARD)]
    kept = [card for card in cards if card[:8].rstrip() not in mine]
    return "".join([*kept, *(header_cards(key, value) for key, value in mine.items())])
