"""SearchConfiguration: the parameters of a KBMOD search, in every form KBMOD stores them.

Names, defaults and their order are KBMOD's (April 2026). Parameters that this table does not know are kept
as they are, so configurations of older and newer KBMOD versions pass through.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from wustore.compat.yaml import dump_mapping, dump_value, load_mapping, load_value, plain
from wustore.errors import FormatError, StoreNotFoundError, UsageError

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU
    from astropy.table import Table

__all__ = ["PARAMETERS", "Parameter", "SearchConfiguration", "configuration_to_hdu", "hdu_to_configuration"]

logger = logging.getLogger(__name__)

SECTIONS = ("core", "filtering", "stamps", "clustering", "output", "other")
"""Sections of a configuration file, in the order they are written."""

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Parameter:
    """What is known about a search parameter.

    Attributes
    ----------
    name
        As in a configuration file.
    default
        The value where none is set.
    section
        One of `SECTIONS`.
    help
        One line on what it does.
    check
        Whether a value can be meant; may raise for one that cannot.
    """

    name: str
    default: Any
    section: str
    help: str
    check: Check

    def __str__(self) -> str:
        return f"{self.name}: {self.help} (Default: {self.default})"

    def accepts(self, value: Any) -> bool:
        """Return whether ``value`` can be meant."""
        try:
            return bool(self.check(value))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            return False


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(value: Any) -> bool:
    return isinstance(value, int)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _anything(value: Any) -> bool:
    return True


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _positive_integer(value: Any) -> bool:
    return _integer(value) and value > 0


def _not_negative(value: Any) -> bool:
    return _number(value) and value >= 0


def _interval(value: Any) -> bool:
    return len(value) == 2 and bool(value[0] < value[1])


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _one_of(*choices: Any) -> Check:
    return lambda value: value in choices


def _list_of(*choices: str) -> Check:
    return lambda value: isinstance(value, list) and all(item in choices for item in value)


_TWELVE_DEGREES = math.pi / 15
_GENERATOR = {
    "name": "EclipticCenteredSearch",
    "velocities": [92.0, 526.0, 257],
    "angles": [-_TWELVE_DEGREES, _TWELVE_DEGREES, 129],
    "angle_units": "radian",
    "velocity_units": "pix / d",
    "given_ecliptic": None,
}

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("clip_negative", False, "filtering", "Leave negative values out when sigma-G takes percentiles.", _flag),
    Parameter("cluster_eps", 20.0, "clustering", "Neighbourhood size of the clustering [pixel].", _not_negative),
    Parameter("cluster_type", "all", "clustering", "Which quantities the clustering compares.", _text),
    Parameter(
        "cluster_v_scale", 1.0, "clustering", "Weight of velocity against position in clustering.", _not_negative
    ),
    Parameter(
        "color_scale",
        None,
        "core",
        "Magnitude correction of each filter, by filter name.",
        _or_none(lambda value: isinstance(value, dict | int | float)),
    ),
    Parameter("cnn_filter", False, "filtering", "Judge stamps with a neural network.", _flag),
    Parameter("cnn_model", None, "filtering", "File of the neural network's weights.", _or_none(_text)),
    Parameter(
        "cnn_coadd_type",
        "mean",
        "filtering",
        "Coadd that the network sees: mean, median or sum.",
        _one_of("mean", "median", "sum"),
    ),
    Parameter("cnn_stamp_radius", 49, "filtering", "Radius of the stamps the network sees [pixel].", _positive_integer),
    Parameter("cnn_model_type", "resnet18", "filtering", "Architecture of the network, such as resnet18.", _text),
    Parameter(
        "coadds",
        [],
        "stamps",
        "Coadds to make of each result: mean, median, sum, weighted.",
        _list_of("mean", "median", "sum", "weighted"),
    ),
    Parameter("compute_ra_dec", True, "output", "Add sky positions to each result.", _flag),
    Parameter("cpu_only", False, "other", "Stay on the CPU even where there is a GPU.", _flag),
    Parameter("debug", False, "other", "Log debugging messages.", _flag),
    Parameter("do_clustering", True, "clustering", "Merge results that belong together.", _flag),
    Parameter("drop_columns", [], "output", "Columns to leave out of the results table.", _texts),
    Parameter(
        "encode_num_bytes",
        -1,
        "core",
        "Bytes per pixel value on the GPU: 1, 2 or 4; -1 leaves values as they are.",
        _one_of(-1, 1, 2, 4),
    ),
    Parameter(
        "generator_config",
        _GENERATOR,
        "core",
        "Which trajectories to try: the generator's name and its settings.",
        lambda value: isinstance(value, dict) and "name" in value,
    ),
    Parameter("generate_psi_phi", True, "filtering", "Compute psi and phi curves and keep them.", _flag),
    Parameter("gpu_filter", False, "filtering", "Do a first sigma-G filtering on the GPU.", _flag),
    Parameter("lh_level", 10.0, "filtering", "Lowest log-likelihood of a result that is kept.", _number),
    Parameter(
        "max_masked_pixels",
        0.5,
        "core",
        "Largest masked fraction of an image that is still used.",
        lambda value: _number(value) and 0.0 <= value <= 1.0,
    ),
    Parameter("max_results", 100_000, "filtering", "Most results to keep after all filters.", _integer),
    Parameter(
        "near_dup_thresh", 10, "filtering", "Distance below which results are near duplicates [pixel].", _integer
    ),
    Parameter("nightly_coadds", False, "stamps", "Make one more coadd for each calendar date.", _flag),
    Parameter("num_obs", 10, "filtering", "Fewest valid observations of a trajectory that is kept.", _integer),
    Parameter(
        "peak_offset_max",
        None,
        "filtering",
        "Largest distance between predicted and found peak [pixel].",
        _or_none(_number),
    ),
    Parameter("pred_line_cluster", False, "filtering", "Cluster results along predicted lines.", _flag),
    Parameter(
        "pred_line_params",
        [4.0, 2, 60],
        "filtering",
        "The three settings of the line prediction.",
        lambda value: isinstance(value, list) and len(value) == 3,
    ),
    Parameter(
        "psf_val",
        1.4,
        "core",
        "Width (standard deviation) of the Gaussian PSF where the data bring none [pixel].",
        lambda value: _number(value) and value > 0.0,
    ),
    Parameter("result_filename", None, "core", "File to save the results to.", _or_none(_text)),
    Parameter(
        "results_per_pixel", 8, "filtering", "Most results for each starting pixel from the GPU.", _positive_integer
    ),
    Parameter("save_all_stamps", False, "output", "Keep the stamps of every time with the results.", _flag),
    Parameter("save_config", True, "output", "Save the configuration beside the results.", _flag),
    Parameter(
        "separate_col_files",
        ["all_stamps"],
        "output",
        "Result columns (regular expressions) that get files of their own.",
        _texts,
    ),
    Parameter("sigmaG_filter", True, "filtering", "Filter light curves with sigma-G.", _flag),
    Parameter(
        "sigmaG_lims",
        [25, 75],
        "filtering",
        "Lower and upper percentile of sigma-G.",
        lambda value: _interval(value) and all(_number(item) for item in value),
    ),
    Parameter("stamp_radius", 10, "stamps", "Radius of the stamps [pixel].", _positive_integer),
    Parameter(
        "stamp_type",
        "sum",
        "stamps",
        "How stamps are combined: sum, mean, median, weighted.",
        _one_of("sum", "mean", "median", "weighted"),
    ),
    Parameter(
        "timeout_hours", None, "other", "Hours after which no further stage is started; None: no limit.", _anything
    ),
    Parameter("track_filtered", False, "filtering", "Keep what the filters dropped in a table of its own.", _flag),
    Parameter("x_pixel_bounds", None, "core", "First and last x of starting pixels; None: all.", _or_none(_interval)),
    Parameter(
        "x_pixel_buffer",
        None,
        "core",
        "How far beyond the image starting pixels may lie in x [pixel].",
        _or_none(lambda value: _integer(value) and value >= 0),
    ),
    Parameter("y_pixel_bounds", None, "core", "First and last y of starting pixels; None: all.", _or_none(_interval)),
    Parameter(
        "y_pixel_buffer",
        None,
        "core",
        "How far beyond the image starting pixels may lie in y [pixel].",
        _or_none(lambda value: _integer(value) and value >= 0),
    ),
)
_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


class SearchConfiguration:
    """The parameters of a search: KBMOD's defaults, overridden one by one.

    Parameters
    ----------
    data
        Values that replace defaults or add parameters.

    Examples
    --------
    >>> configuration = SearchConfiguration({"num_obs": 7})
    >>> configuration["num_obs"], configuration["lh_level"]
    (7, 10.0)
    """

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self._params: dict[str, Any] = {parameter.name: copy.deepcopy(parameter.default) for parameter in PARAMETERS}
        if data is not None:
            self.set_multiple(data)

    @classmethod
    def of(cls, given: Any) -> SearchConfiguration:
        """Return ``given`` itself, or what a mapping or KBMOD's own configuration holds, in its order.

        Raises
        ------
        UsageError
            Where it is no configuration.
        """
        if isinstance(given, SearchConfiguration):
            return given
        if isinstance(given, Mapping):
            return cls(given)
        values = getattr(given, "_params", None)
        if not isinstance(values, Mapping):
            raise UsageError("not a configuration", expected="SearchConfiguration or dict", found=type(given).__name__)
        configuration = cls()
        configuration._params = copy.deepcopy(dict(values))
        return configuration

    # -- values --

    def __contains__(self, key: object) -> bool:
        return key in self._params

    def __getitem__(self, key: str) -> Any:
        return self._params[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._params[key] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchConfiguration):
            return NotImplemented
        return self._params.keys() == other._params.keys() and all(
            _equal(value, other._params[key]) for key, value in self._params.items()
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __str__(self) -> str:
        return "Configuration:\n" + "".join(f"{key}: {value}\n" for key, value in self._params.items())

    def __repr__(self) -> str:
        changed = {
            key: value
            for key, value in self._params.items()
            if key not in _BY_NAME or not _equal(value, _BY_NAME[key].default)
        }
        return f"SearchConfiguration({changed!r})"

    def set(self, param: str, value: Any, warn_on_unknown: bool = False) -> None:
        """Set a parameter.

        Parameters
        ----------
        param
            Its name; one that KBMOD does not know is kept as well.
        value
            Its value.
        warn_on_unknown
            Log a warning for a name that was not there.
        """
        if warn_on_unknown and param not in self._params:
            logger.warning("Setting unknown parameter: %s", param)
        self._params[param] = value

    def set_multiple(self, overrides: Mapping[str, Any]) -> None:
        """Set several parameters from a mapping of names to values."""
        for key, value in overrides.items():
            self.set(key, value)

    def copy(self) -> SearchConfiguration:
        """Return a deep copy."""
        return copy.deepcopy(self)

    def validate(self) -> bool:
        """Return whether every known parameter has a value that can be meant; log the first that has not."""
        for key, value in self._params.items():
            parameter = _BY_NAME.get(key)
            if parameter is not None and not parameter.accepts(value):
                logger.warning("Invalid value for parameter %s: %s", key, value)
                return False
        return True

    def help(self, param: str | None = None) -> None:
        """Print what a parameter does, or all of them by section."""
        if param is not None:
            print(_BY_NAME.get(param, f"Parameter {param} is not recognized."))
            return
        print("KBMOD Supported Parameters:")
        for section in SECTIONS:
            print(f"\n--- {section.capitalize()} Parameters ---")
            for parameter in PARAMETERS:
                if parameter.section == section:
                    print(parameter)

    # -- forms --

    def to_dict(self) -> dict[str, Any]:
        """Return a deep copy of the values by name, in order."""
        return copy.deepcopy(self._params)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Return the defaults overridden by a mapping of names to values."""
        return cls(d)

    def to_yaml(self) -> str:
        """Return the values as YAML that any safe reader takes: tuples as lists, numpy values as numbers."""
        return dump_mapping({key: plain(value) for key, value in self._params.items()})

    @classmethod
    def from_yaml(cls, config: str | IO[str]) -> Self:
        """Return a configuration from YAML text or an open text file.

        Raises
        ------
        FormatError
            Where it is not YAML, or not a mapping.
        """
        return cls(load_mapping(config if isinstance(config, str) else config.read()))

    def to_table(self) -> Table:
        """Return a table of one row, one column of YAML text for each parameter."""
        from astropy.table import Table

        return Table(rows=[_cells(self._params)])

    @classmethod
    def from_table(cls, t: Table) -> Self:
        """Return a configuration from a table of one row of YAML texts.

        Raises
        ------
        FormatError
            Where the table has more than one row, or a cell is not YAML.
        """
        if len(t) > 1:
            raise FormatError("More than one row in the configuration table", expected=1, found=len(t))
        return cls({name: _load_cell(name, t[name][0]) for name in t.colnames} if len(t) else None)

    def to_hdu(self) -> BinTableHDU:
        """Return the table HDU that KBMOD writes (it is named KBMOD_CONFIG in a file)."""
        return configuration_to_hdu(self._params)

    @classmethod
    def from_hdu(cls, hdu: BinTableHDU) -> Self:
        """Return a configuration from KBMOD's table HDU.

        Raises
        ------
        FormatError
            Where the table has more than one row, or a cell is not YAML.
        """
        return cls(hdu_to_configuration(hdu))

    def to_file(self, filename: str | PathLike[str], overwrite: bool = False) -> None:
        """Write a YAML file, one section after the other, each parameter with its help.

        Parameters
        ----------
        filename
            Where to write.
        overwrite
            Replace an existing file; otherwise it is left alone and a warning is logged.
        """
        path = Path(filename)
        if path.is_file() and not overwrite:
            logger.warning("Configuration file %s already exists.", path)
            return
        rule = "# " + "=" * 70
        lines = []
        for section in SECTIONS:
            lines.append(f"{rule}\n# {section.capitalize()} Configuration\n{rule}\n")
            for parameter in PARAMETERS:
                if parameter.section == section and parameter.name in self._params:
                    entry = dump_mapping({parameter.name: plain(self._params[parameter.name])})
                    lines.append(f"\n# {parameter.help}\n{entry}")
            if section == "other":
                unknown = {key: plain(value) for key, value in self._params.items() if key not in _BY_NAME}
                lines += ["\n" + dump_mapping({key: value}) for key, value in unknown.items()]
            lines.append("\n")
        path.write_text("".join(lines), encoding="utf-8")

    @classmethod
    def from_file(cls, filename: str | PathLike[str]) -> Self:
        """Return a configuration from a YAML file.

        Raises
        ------
        StoreNotFoundError
            Where there is no such file.
        FormatError
            Where it does not hold a configuration.
        """
        path = Path(filename)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise StoreNotFoundError("no configuration file", path=path) from error
        except UnicodeDecodeError as error:
            raise FormatError("a configuration file is not text", path=path) from error
        return cls.from_yaml(text)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two values are the same; NaN equals NaN, 1 does not equal True."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bool(a == b) or (a != a and b != b)  # noqa: PLR0124 - NaN
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, str | int):
        return bool(a == b)
    return dump_value(a) == dump_value(b)


def _cells(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: dump_value(plain(value)) for key, value in values.items()}


def _load_cell(name: str, cell: Any) -> Any:
    text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
    try:
        return load_value(text)
    except FormatError as error:
        raise FormatError(
            "a configuration value is not YAML text", where=f"KBMOD_CONFIG, {name}", found=text[:80]
        ) from error


def configuration_to_hdu(values: Mapping[str, Any]) -> BinTableHDU:
    """Return KBMOD's configuration table: one row, one column of YAML text for each parameter, in order.

    Values that KBMOD could not read back are written in plain terms (tuples as lists, numpy values as numbers).
    """
    from astropy.io import fits
    from astropy.table import Table

    return fits.table_to_hdu(Table(rows=[_cells(values)]))


def hdu_to_configuration(hdu: BinTableHDU) -> dict[str, Any]:
    """Return what KBMOD's configuration table holds, by parameter name, in order.

    Raises
    ------
    FormatError
        Where the table has more than one row, or a cell is not YAML.
    """
    data = hdu.data
    if data is None or len(hdu.columns) == 0:
        return {}
    if len(data) > 1:
        raise FormatError("More than one row in the configuration table", where="KBMOD_CONFIG", expected=1)
    # By position: names that differ only in case are one name to astropy.
    return {name: _load_cell(name, data.field(k)[0]) for k, name in enumerate(hdu.columns.names) if len(data)}
