"""The search configuration in every form, and YAML that never runs anything."""

from __future__ import annotations

import datetime
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits

from wustore.compat.configuration import SearchConfiguration, configuration_to_hdu, hdu_to_configuration
from wustore.compat.parameters import PARAMETERS, SECTIONS
from wustore.compat.yaml import dump_mapping, dump_value, load_mapping, load_value, plain
from wustore.errors import FormatError, StoreNotFoundError
from wustore.format.tagged_json import RawYaml

VALUES = [
    None,
    True,
    5,
    2.5,
    "text: with colon",
    b"bytes",
    [1, [2, None]],
    {"a": {"b": 1}},
    {1, 2},
    datetime.date(2024, 5, 1),
    datetime.datetime(2024, 5, 1, 12, 30),
    (1, (2, "x")),
    1 + 2j,
    math.inf,
]
NUMPY = [
    np.float64(1.5),
    np.bool_(True),
    np.datetime64("2024-05-01T00:00:01"),
    np.arange(6.0).reshape(2, 3),
    [np.float64(1.0), np.float64(2.0)],
    {"nested": (np.int32(1), [np.zeros(2)])},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_yaml_values_and_back(value: object) -> None:
    text = dump_value(value)
    assert text == yaml.dump(value, default_flow_style=True)
    back = load_value(text)
    assert type(back) is type(value)
    assert repr(back) == repr(value)
    assert not isinstance(back, RawYaml)


@pytest.mark.parametrize("value", [*VALUES, *NUMPY], ids=lambda value: type(value).__name__)
def test_plain_values_are_read_by_any_safe_reader(value: object) -> None:
    yaml.safe_load(dump_value(plain(value)))


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    text = f"!!python/object/apply:os.system ['touch {mark}']"
    assert load_value(text) == text
    assert isinstance(load_value(text), RawYaml)
    assert not mark.exists()
    assert dump_value(load_value(text)) == text


@pytest.mark.parametrize("value", [Path("/a/b"), np.array([1, None], dtype=object), *NUMPY])
def test_foreign_objects_keep_their_text(value: object) -> None:
    text = yaml.dump(value, default_flow_style=True)
    kept = load_value(text)
    assert isinstance(kept, RawYaml)
    assert dump_value(kept) == text
    together = load_mapping(dump_mapping({"a": kept, "b": 1}))
    assert together["b"] == 1
    assert load_value(dump_mapping({"a": together["a"]})) == load_value(dump_mapping({"a": kept}))


@pytest.mark.parametrize("text", ["[1, 2", "a: b: c", "[" * 5000, "\x00", "a: *b"])
def test_text_that_is_not_yaml(text: str) -> None:
    with pytest.raises(FormatError, match="YAML"):
        load_value(text)


def test_a_document_that_explodes_is_kept_as_text() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    names = "abcdefghij"
    for last, name in itertools.pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]")
    assert isinstance(load_value("\n".join(lines)), RawYaml)
    assert isinstance(load_value("&a [*a]"), RawYaml)


def test_an_integer_of_any_length_is_kept_as_text() -> None:
    text = "1:" * 3000 + "1"
    assert load_value(text) == text
    assert isinstance(load_value(text), RawYaml)
    assert load_value("1:30") == 90


def test_the_last_of_two_equal_keys_counts() -> None:
    assert load_value("{a: 1, a: 2}") == {"a": 2}


def test_a_mapping_is_needed() -> None:
    with pytest.raises(FormatError):
        load_mapping("[1, 2]")
    with pytest.raises(FormatError):
        load_mapping("1: 2")
    assert load_mapping("") == {}


# --- SearchConfiguration ---


def test_defaults_are_whole_and_valid() -> None:
    configuration = SearchConfiguration()
    assert len(configuration) == len(PARAMETERS) == 45
    assert next(iter(configuration)) == "clip_negative"
    assert configuration.validate()
    assert {parameter.section for parameter in PARAMETERS} <= set(SECTIONS)
    assert all(parameter.help.endswith(".") for parameter in PARAMETERS)


def test_defaults_are_not_shared() -> None:
    SearchConfiguration()["coadds"].append("mean")
    assert SearchConfiguration()["coadds"] == []


def test_mapping_and_equality() -> None:
    configuration = SearchConfiguration({"num_obs": 7, "own": (1, 2)})
    assert "own" in configuration
    assert configuration["num_obs"] == 7
    configuration["num_obs"] = 8
    configuration.set_multiple({"lh_level": 3.0})
    assert configuration == SearchConfiguration({"own": (1, 2), "lh_level": 3.0, "num_obs": 8})
    assert configuration != SearchConfiguration()
    other = configuration.copy()
    other["generator_config"]["name"] = "x"
    assert configuration["generator_config"]["name"] == "EclipticCenteredSearch"
    assert SearchConfiguration({"x": math.nan}) == SearchConfiguration({"x": math.nan})
    assert SearchConfiguration({"x": 1}) != SearchConfiguration({"x": True})
    with pytest.raises(KeyError):
        configuration["absent"]
    assert "num_obs: 8" in str(configuration)
    assert repr(SearchConfiguration({"num_obs": 7})) == "SearchConfiguration({'num_obs': 7})"


def test_unknown_names_are_logged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    SearchConfiguration().set("own", 1, warn_on_unknown=True)
    assert "own" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_obs", 2.5),
        ("psf_val", 0.0),
        ("encode_num_bytes", 3),
        ("sigmaG_lims", [75, 25]),
        ("sigmaG_lims", 5),
        ("coadds", ["min"]),
        ("x_pixel_bounds", [5, 5]),
        ("y_pixel_buffer", -1),
        ("generator_config", {}),
        ("debug", 1),
    ],
)
def test_validation(name: str, value: object, caplog: pytest.LogCaptureFixture) -> None:
    assert not SearchConfiguration({name: value}).validate()
    assert name in caplog.text


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    configuration = SearchConfiguration()
    configuration.help("lh_level")
    configuration.help("nonsense")
    out = capsys.readouterr().out
    assert "lh_level: " in out
    assert "not recognized" in out
    configuration.help()
    out = capsys.readouterr().out
    assert all(parameter.name in out for parameter in PARAMETERS)
    assert "Clustering" in out


RICH = {
    "num_obs": 7,
    "result_filename": "/data/\u00e9.ecsv",
    "long": "x" * 500 + "\n second line: [",
    "limits": (1, 2),
    "number": np.float64(2.5),
    "nan": math.nan,
    "nothing": None,
}


def test_every_form_reads_back(tmp_path: Path) -> None:
    configuration = SearchConfiguration(RICH)
    expected = SearchConfiguration(RICH | {"limits": [1, 2], "number": 2.5})
    assert SearchConfiguration.from_yaml(configuration.to_yaml()) == expected
    assert SearchConfiguration.from_yaml(io.StringIO(configuration.to_yaml())) == expected
    assert SearchConfiguration.from_table(configuration.to_table()) == expected
    assert SearchConfiguration.from_dict(configuration.to_dict()) == configuration
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), configuration.to_hdu()]).writeto(buffer)
    assert SearchConfiguration.from_hdu(fits.open(io.BytesIO(buffer.getvalue()))[1]) == expected
    path = tmp_path / "c.yaml"
    configuration.to_file(path)
    assert SearchConfiguration.from_file(path) == expected
    assert yaml.safe_load(path.read_text())["limits"] == [1, 2]
    assert "# Core Configuration" in path.read_text()


def test_a_file_is_not_overwritten_unasked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.yaml"
    SearchConfiguration({"num_obs": 1}).to_file(path)
    SearchConfiguration({"num_obs": 2}).to_file(path)
    assert SearchConfiguration.from_file(path)["num_obs"] == 1
    assert "already exists" in caplog.text
    SearchConfiguration({"num_obs": 2}).to_file(path, overwrite=True)
    assert SearchConfiguration.from_file(path)["num_obs"] == 2


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        SearchConfiguration.from_file(tmp_path / "absent.yaml")
    (tmp_path / "b").write_bytes(b"num_obs: \xff\xfe")
    with pytest.raises(FormatError):
        SearchConfiguration.from_file(tmp_path / "b")
    table = SearchConfiguration().to_table()
    table.add_row(table[0])
    with pytest.raises(FormatError, match="More than one row"):
        SearchConfiguration.from_table(table)
    broken = SearchConfiguration().to_table()
    broken["num_obs"] = ["[1, 2"]
    with pytest.raises(FormatError, match="num_obs"):
        SearchConfiguration.from_table(broken)


def test_no_parameters_at_all() -> None:
    assert hdu_to_configuration(configuration_to_hdu({})) == {}


def test_names_differing_in_case(tmp_path: Path) -> None:
    values = {"num_obs": 7, "Num_Obs": 99}
    path = tmp_path / "c.fits"
    fits.HDUList([fits.PrimaryHDU(), configuration_to_hdu(values)]).writeto(path)
    with fits.open(path) as hdus:
        assert hdu_to_configuration(hdus[1]) == values


def test_corpus_configurations_are_written_as_kbmod_writes_them(corpus: Path) -> None:
    compared = 0
    for path in [*sorted(corpus.glob("head/[abcg]_*/*.fits")), corpus / "head/m_config/m_rich.fits"]:
        with fits.open(path) as hdus:
            if "KBMOD_CONFIG" not in hdus:
                continue
            hdu = hdus["KBMOD_CONFIG"]
            again = configuration_to_hdu(hdu_to_configuration(hdu))
            again.name = "kbmod_config"
            buffer = io.BytesIO()
            fits.HDUList([fits.PrimaryHDU(), again]).writeto(buffer)
            place = hdu.fileinfo()
            start, stop = place["hdrLoc"], place["datLoc"] + place["datSpan"]
            assert buffer.getvalue()[2880:] == path.read_bytes()[start:stop], path
            compared += 1
    assert compared
